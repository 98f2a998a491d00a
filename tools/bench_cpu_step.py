"""Time the quickstarts' train steps on this CPU beside torch's of the same networks, eager and under torch.compile.

    python tools/bench_cpu_step.py                                    both networks, AdamW and Muon, and all parts
    python tools/bench_cpu_step.py --config configs/quickstart.py --part adamw --torch eager --json step.json

One process, the same cores, rounds of one after the other, so that what else the machine does meets all alike. Parts:
`adamw` and `muon` are whole steps: text encoder, denoiser, loss, gradient, its norm and clipping, the optimizer, EMA,
and the check that loss and norm are finite; `gradient` is that of the loss alone, `forward` the loss alone; `sampling`
is a batch of latents drawn from captions by the config's solver, steps and guidance. torch's: diffusers' network,
scheduler and loop and transformers' CLIP of the config's widths, fused AdamW, foreach EMA, Muon by one compiled batch
of Newton-Schulz products a shape. Data is in neither. Prints milliseconds of the best and of the median round, of wall
and of processor time, and GFLOP/s by lgm's count of the network (three forward passes a step, two a guided step).
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import jax
import torch
import transformers

from lgm import config as schema
from lgm.drawing import draw_latents
from lgm.parallel import put_batch
from lgm.system import build_system
from lgm.train.main import keep_freed_memory, task_of
from lgm.train.optimizer import build_optimizer
from lgm.train.placing import layout_of, placed_step, state_shardings
from lgm.train.state import drawn, init_state, run_once

CONFIGS = ("configs/quickstart.py", "configs/quickstart_unet.py")
PARTS = ("adamw", "muon", "gradient", "forward", "sampling")
SD_NOISE = dict(num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def ours(config, part: str) -> tuple[Callable[[], None], float]:
    """(one call of a part as `lgm train` or `lgm sample` makes it, FLOPs of it)."""
    if part == "sampling":
        return drawing(config)
    layout = layout_of(config)
    task = task_of(config)(config, layout, Path(tempfile.mkdtemp()))
    if part in ("gradient", "forward"):
        return alone(config, task, put_batch(layout, next(task.batches)), part)
    optimizer = build_optimizer(config)
    create = lambda: init_state(task.init(jax.random.key(config.seed)), optimizer)
    places = state_shardings(layout, jax.eval_shape(create), task.logical_axes, config)
    step, batch = placed_step(config, task.loss, task.draw, optimizer, layout, places), next(task.batches)
    state, batch = run_once(create, out_shardings=places)(), put_batch(layout, batch)

    def once():
        nonlocal state
        state, metrics = step(state, task.frozen, batch)
        jax.block_until_ready(metrics)

    return once, task.flops * config.batch_size


def alone(config, task, batch, part: str) -> tuple[Callable[[], None], float]:
    """The loss of a batch, what is drawn for it included, or its gradient."""
    key, params = jax.random.key(config.seed), task.init(jax.random.key(config.seed))
    loss = lambda params, batch: task.loss(params, task.frozen, batch | drawn(task.draw, batch, key, 0.0), key)[0]
    function = jax.jit(jax.value_and_grad(loss) if part == "gradient" else loss)
    flops = task.flops * config.batch_size
    return lambda: jax.block_until_ready(function(params, batch)), flops / (1 if part == "gradient" else 3)


def drawing(config) -> tuple[Callable[[], None], float]:
    """A batch of latents from captions."""
    system, frozen = build_system(config)
    params, captions = system.init(jax.random.key(0)), ["a smiling face"] * config.batch_size
    x, t = (jax.ShapeDtypeStruct((2 * config.batch_size, *shape), "float32") for shape in (system.latent_shape(), ()))
    tokens, mask = system.tokenize(captions * 2)
    cond = jax.eval_shape(system.condition, params, tokens, mask)
    work = system.denoiser.flops(x, t, cond) * config.sampling.steps
    return lambda: draw_latents(system, system.whole(params, frozen), frozen, captions), work


class Torch(torch.nn.Module):
    """A text encoder and the denoiser that reads it; the loss of a batch."""

    def __init__(self, config):
        super().__init__()
        text, model = config.text.encoder, config.model
        self.text = transformers.CLIPTextModel(transformers.CLIPTextConfig(
            vocab_size=text.vocab_size, hidden_size=text.width, intermediate_size=4 * text.width,
            num_hidden_layers=text.depth, num_attention_heads=text.heads, max_position_embeddings=text.max_length,
            bos_token_id=0, eos_token_id=2,
        ))  # fmt: skip
        self.flow = hasattr(model, "patch_size")
        if self.flow:
            self.denoiser = diffusers.SD3Transformer2DModel(
                sample_size=model.position_size, patch_size=model.patch_size, in_channels=model.channels,
                out_channels=model.channels, num_layers=model.depth, attention_head_dim=model.width // model.heads,
                num_attention_heads=model.heads, joint_attention_dim=model.text_dim, caption_projection_dim=model.width,
                pooled_projection_dim=model.pooled_dim, pos_embed_max_size=model.position_size, qk_norm="rms_norm",
            )  # fmt: skip
        else:
            self.denoiser = diffusers.UNet2DConditionModel(
                in_channels=model.channels, out_channels=2 * model.channels, block_out_channels=model.block_channels,
                layers_per_block=model.layers_per_block, cross_attention_dim=model.text_dim,
                down_block_types=("CrossAttnDownBlock2D",) * len(model.block_channels),
                up_block_types=("CrossAttnUpBlock2D",) * len(model.block_channels), attention_head_dim=model.heads,
                norm_num_groups=model.norm_groups, use_linear_projection=model.linear_projection,
            )  # fmt: skip

        self.register_buffer("alpha_bar", diffusers.DDPMScheduler(**SD_NOISE).alphas_cumprod)

    def forward(self, x, eps, t, tokens):
        """The loss: rectified flow, or the prediction of eps on SD's table of noise, weighted by the time."""
        hidden = self.text(tokens).last_hidden_state
        wide = lambda a: a[:, None, None, None]
        if self.flow:
            return (self.predict(wide(1 - t) * x + wide(t) * eps, 1000 * t, hidden) - (eps - x)).square().mean()
        kept = self.alpha_bar[(999 * t).long()]
        error = self.predict(wide(kept.sqrt()) * x + wide((1 - kept).sqrt()) * eps, 999 * t, hidden) - eps
        return (error.square().mean((1, 2, 3)) * (1 - kept) / kept).mean()

    def predict(self, x, times, hidden):
        """What the network says of x at times of 0 to 1000."""
        if self.flow:
            return self.denoiser(x, hidden, hidden.mean(1), times, return_dict=False)[0]
        change, gain = self.denoiser(x, times, hidden, return_dict=False)[0].chunk(2, 1)
        return x + change + gain * x


def orthogonalized(x):
    """Muon's five Newton-Schulz products of a stack of matrices [N, I, O], I <= O."""
    a, b, c = NEWTON_SCHULZ
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-8)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon:
    """Muon for the matrices and convolutions within the network, AdamW for the rest."""

    def __init__(self, model, rate: float):
        inner = lambda name, p: p.ndim > 1 and "blocks" in name or "layers" in name and p.ndim > 1
        named = list(model.named_parameters())
        self.matrices = [p for name, p in named if inner(name, p)]
        self.adamw = torch.optim.AdamW([p for name, p in named if not inner(name, p)], lr=rate, fused=True)
        self.momenta, self.rate = [torch.zeros_like(p) for p in self.matrices], rate
        self.orthogonalized = torch.compile(orthogonalized)

    @torch.no_grad()
    def step(self):
        self.adamw.step()
        gradients = [p.grad for p in self.matrices]
        torch._foreach_mul_(self.momenta, 0.95)
        torch._foreach_add_(self.momenta, gradients)
        torch._foreach_add_(gradients, self.momenta, alpha=0.95)
        groups = collections.defaultdict(list)
        for p in self.matrices:
            x = p.grad.reshape(len(p), -1)
            tall = x.shape[0] > x.shape[1]
            groups[tuple(sorted(x.shape))].append((p, x.mT if tall else x, tall))
        for members in groups.values():
            done = self.orthogonalized(torch.stack([x for _, x, _ in members]))
            for (p, _, tall), x in zip(members, done, strict=True):
                p.sub_((x.mT if tall else x).reshape(p.shape), alpha=self.rate)


def theirs(config, part: str, compiled: bool) -> Callable[[], None]:
    """One call of torch's of a part."""
    torch.manual_seed(0)
    model, size = Torch(config), config.batch_size
    if part == "sampling":
        return their_drawing(config, model, compiled)
    parameters = [p for p in model.parameters()]
    average = [p.detach().clone() for p in parameters]
    rule = Muon(model, 1e-4) if part == "muon" else torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    loss_of = torch.compile(model) if compiled else model
    x, tokens = torch.randn(size, config.model.channels, 8, 8), torch.randint(1, 4000, (size, 16))

    def once():
        with torch.set_grad_enabled(part != "forward"):
            loss = loss_of(x, torch.randn_like(x), torch.rand(size), tokens)
        if part == "forward":
            return
        loss.backward()
        if part == "gradient":
            for p in parameters:
                p.grad = None
            return
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise RuntimeError("the loss is not finite")
        rule.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 0.01)
        for p in parameters:
            p.grad = None

    return once


def their_drawing(config, model: Torch, compiled: bool) -> Callable[[], None]:
    """A batch of latents by diffusers' scheduler in its pipelines' loop, both passes of guidance as one batch."""
    size, drawn = config.batch_size, config.sampling
    scheduler = (diffusers.FlowMatchEulerDiscreteScheduler() if model.flow else
                 diffusers.DDIMScheduler(**SD_NOISE, clip_sample=False, timestep_spacing="trailing"))  # fmt: skip
    predict = torch.compile(model.predict) if compiled else model.predict
    tokens = torch.randint(1, 4000, (2 * size, 16))

    @torch.no_grad()
    def once():
        hidden = model.text(tokens).last_hidden_state
        x = torch.randn(size, config.model.channels, 8, 8)
        scheduler.set_timesteps(drawn.steps)
        for t in scheduler.timesteps:
            none, told = predict(torch.cat([x, x]), t.float().expand(2 * size), hidden).chunk(2)
            x = scheduler.step(none + drawn.guidance * (told - none), t, x, return_dict=False)[0]

    return once


def compared(steps: dict[str, Callable[[], None]], rounds: int, each: int) -> dict[str, dict[str, float]]:
    """Milliseconds a step of each, a round of each after the other."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    first = {}
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        first[name] = time.perf_counter() - start
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            wall, processor = time.perf_counter(), time.process_time()
            for _ in range(each):
                step()
            found[name].append(((time.perf_counter() - wall) / each * 1e3,
                                (time.process_time() - processor) / each * 1e3))
    of = lambda name, how, column: how([pair[column] for pair in found[name]])
    return {name: {"ms": of(name, min, 0), "median_ms": of(name, statistics.median, 0),
                   "processor_ms": of(name, min, 1), "median_processor_ms": of(name, statistics.median, 1),
                   "first_s": first[name]} for name in steps}  # fmt: skip


def main() -> None:
    """Measure all that is asked for, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", nargs="+", default=CONFIGS)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--each", type=int, default=4, help="steps of a round")
    parser.add_argument("--torch", nargs="*", choices=("compiled", "eager"), default=["compiled", "eager"])
    parser.add_argument("--json", help="a file to write")
    words = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = {}
    print(f"{'':40}{'ms':>8}{'median':>8}{'CPU ms':>8}{'median':>8}{'GFLOP/s':>9}{'first s':>9}")
    for path in words.config:
        for part in words.part:
            config = schema.load(path, [("optimizer.name", part)] if part in ("adamw", "muon") else [])
            step, flops = ours(config, part)
            peers = {f"torch {how}": theirs(config, part, how == "compiled") for how in words.torch}
            steps = {"lgm": step, **peers}
            for name, row in compared(steps, words.rounds, 1 if part == "sampling" else words.each).items():
                label = f"{Path(path).stem}, {part}, {name}"
                rows[label] = row | {"gflops": flops / row["ms"] / 1e6}
                print(f"{label:40}{row['ms']:8.1f}{row['median_ms']:8.1f}{row['processor_ms']:8.1f}"
                      f"{row['median_processor_ms']:8.1f}{rows[label]['gflops']:9.1f}{row['first_s']:9.1f}", flush=True)
    if words.json:
        Path(words.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
