"""Trains a tiny model for three steps on several meshes of 8 fake CPU devices and prints, as JSON, how far loss,
gradients and parameters are from those of one device. A program of its own: the number of devices is fixed at start."""

import json
import math
import os
import re
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
# with the emitters that users have: whose bits are compared here
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from lgm import config as schema  # noqa: E402
from lgm import gaussian, losses  # noqa: E402
from lgm.models import Conditioning, build  # noqa: E402
from lgm.parallel import put_batch  # noqa: E402
from lgm.train.optimizer import build_optimizer  # noqa: E402
from lgm.train.placing import layout_of, placed_step, state_shardings  # noqa: E402
from lgm.train.state import init_state  # noqa: E402

TEXT = dict(text_dim=16)
POOLED = dict(pooled_dim=8)
MODELS = {
    "unet": dict(family="unet", channels=4, block_channels=(16, 32), layers_per_block=1, transformer_depth=(0, 2),
                 mid_depth=0, heads=(4, 4), norm_groups=4, **TEXT),
    "dit": dict(family="dit", channels=4, width=32, depth=3, heads=4, classes=5, base_size=4),
    # three stacked blocks: two stages do not divide them
    "mmdit": dict(family="mmdit", channels=4, width=32, depth=4, heads=4, position_size=8, base_size=4, qk_norm="rms",
                  **TEXT, **POOLED),
    "flux": dict(family="flux", channels=4, width=32, depth=2, single_depth=3, heads=4, rotary_axes=(2, 2, 4), **TEXT,
                 **POOLED),
    "flux2": dict(family="flux2", channels=4, width=32, depth=2, single_depth=3, heads=4, rotary_axes=(2, 2, 2, 2),
                  guidance=False, **TEXT),
    "z_image": dict(family="z_image", channels=4, width=32, depth=3, refiner_depth=1, heads=4, rotary_axes=(2, 2, 4),
                    **TEXT),
    "qwen_image": dict(family="qwen_image", channels=4, width=32, depth=3, heads=4, rotary_axes=(2, 2, 4), **TEXT),
}  # fmt: skip
BATCH, SIDE, LENGTH = 16, 8, 5  # five words: no context divides them


def config_of(family: str, mesh: dict, **changes) -> schema.Config:
    # AdamW divides a gradient by its own size: where that is rounding alone, as of a key's bias, so is the update. An
    # eps above rounding and below all other gradients keeps the comparison one of meshes.
    optimizer = dict(lr=1e-2, eps=1e-4) | changes.pop("optimizer", {})
    return schema.from_dict(dict(name=family, model=MODELS[family] | changes.pop("model", {}), batch_size=BATCH,
                                 total_images=1000 * BATCH, optimizer=optimizer, mesh=mesh, **changes))  # fmt: skip


def batch_of(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    mask = rng.random((BATCH, LENGTH)) < 0.7
    mask[:, 0] = True
    return {"x": normal(BATCH, SIDE, SIDE, 4), "text": normal(BATCH, LENGTH, 16), "mask": mask,
            "pooled": normal(BATCH, 8), "label": rng.integers(0, 5, BATCH).astype(np.int32)}  # fmt: skip


def recording(config: schema.Config) -> optax.GradientTransformation:
    """A config's optimizer, in whose state the last gradients stand first, as they were before clipping."""
    record = optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params),
                                          lambda updates, state, params=None: (updates, updates))
    return optax.chain(record, build_optimizer(config))


def trainer(config: schema.Config, devices=None, optimizer=None):
    """(layout, places, step): what `lgm train` makes of a config, on batches as above."""
    layout = layout_of(config, devices)
    model, optimizer = build(config.model), optimizer or build_optimizer(config)
    objective = losses.denoising(gaussian.build("rectified_flow"), "flow", losses.density("logit_normal"),
                                 losses.weighting("constant"))  # fmt: skip

    def draw(batch, key):
        t, eps = objective.draw(key, batch["x"].shape)
        return {"t": t, "eps": eps}

    def loss(params, frozen, batch, key):
        cond = Conditioning(batch["text"], batch["mask"], batch["pooled"], batch["label"])
        predict = lambda x, t, cond: model.apply(params, x, t, cond)
        return objective.given(predict, batch["x"], cond, batch["t"], batch["eps"])

    abstract = jax.eval_shape(lambda: init_state(model.init(jax.random.key(0)), optimizer))
    places = state_shardings(layout, abstract, model.logical_axes(), config)
    return layout, places, placed_step(config, loss, draw, optimizer, layout, places)


def start_of(config: schema.Config, optimizer=None):
    """A first state without a zero: gates and last layers start at zero, behind which no gradient would be seen."""
    rng = np.random.default_rng(0)

    def values(path, leaf):
        name, fan_in = path[-1].key, np.prod(leaf.shape[-4:-1]) if leaf.ndim > 3 else leaf.shape[-min(leaf.ndim, 2)]
        spread = fan_in**-0.5 if name in ("kernel", "table") else 0.1
        return (spread * rng.normal(size=leaf.shape) + (name == "scale")).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(values, build(config.model).abstract())
    return jax.tree.map(np.asarray, init_state(params, optimizer or build_optimizer(config)))


def three_steps(config: schema.Config, start, devices=None) -> tuple[list[float], dict, dict, dict]:
    """(losses of three steps, gradients of the first, parameters after the third, collectives) from `start`."""
    layout, places, step = trainer(config, devices, recording(config))
    state, values, batches = jax.device_put(start, places), [], [put_batch(layout, batch_of(i)) for i in range(3)]
    step = step.lower(state, {}, batches[0]).compile()
    for seed, batch in enumerate(batches):
        state, metrics = step(state, {}, batch)
        values.append(float(metrics["loss"]))
        if seed == 0:
            gradients = jax.tree.map(np.asarray, state.opt_state[0])
    return values, gradients, jax.tree.map(np.asarray, state.params), collectives(step.as_text())


def collectives(hlo: str) -> dict[str, list]:
    """By kind, [elements of the result, in a loop?] of every collective of a compiled program."""
    found: dict[str, list] = {}
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    for line in hlo.splitlines():
        if match := re.search(rf" = (.*?) ({kinds})(-start)?\(", line):
            sizes = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", match[1])]
            found.setdefault(match[2], []).append([max(sizes, default=1), "while/body" in line])
    return found


def stacked_sizes(family: str) -> tuple[int, set[int], int]:
    """(elements of the largest parameter of one block, those of whole stacks that no other parameter has, those of the
    largest parameter that is used whole)."""
    model = build(config_of(family, {}).model)
    shapes = []
    note = lambda leaf, axes: shapes.append((leaf.shape, bool(axes) and axes[0] == "layers"))
    jax.tree.map(note, model.abstract(), model.logical_axes())
    blocks = {math.prod(shape[1:]) for shape, stacked in shapes if stacked}
    others = {math.prod(shape) for shape, stacked in shapes if not stacked}
    stacks = {math.prod(shape) for shape, stacked in shapes if stacked} - blocks - others
    return max(blocks), stacks, max(blocks | others)


def apart(tree, reference) -> tuple[float, str]:
    """(the largest distance of a parameter over its norm, which one). Norms below a millionth of the whole tree's are
    taken for that: what is zero but for rounding has no relative error."""
    whole = np.sqrt(sum(float((leaf.astype(np.float64) ** 2).sum()) for leaf in jax.tree.leaves(reference)))
    worst = 0.0, ""
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(reference), strict=True):
        distance = np.linalg.norm(ours.astype(np.float64) - theirs) / max(np.linalg.norm(theirs), 1e-6 * whole)
        worst = max(worst, (float(distance), jax.tree_util.keystr(path, simple=True, separator="/")))
    return worst


def main(family: str, cases: list[dict], optimizer: str) -> None:
    one = config_of(family, {}, optimizer={"name": optimizer})
    start = start_of(one, recording(one))
    values, gradients, params, _ = three_steps(one, start, jax.devices()[:1])
    largest, stacks, alone = stacked_sizes(family)
    first = {}  # the bits of the first case's gradients

    def differing(tree) -> list[str]:
        """The parameters whose gradients have not the very bits of the first case."""
        found = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.tobytes()
                 for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        first.update({} if first else found)
        return [name for name in found if found[name] != first[name]]

    for case in cases:
        found, found_gradients, found_params, moved = three_steps(config_of(family, **case), start)
        row = {"case": case, "loss": max(abs(a / b - 1) for a, b in zip(found, values, strict=True)),
               "gradients": apart(found_gradients, gradients), "params": apart(found_params, params),
               "other_bits": differing(found_gradients), "collectives": moved,
               "largest_of_a_block": largest, "largest_alone": alone, "stacks": sorted(stacks)}  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
