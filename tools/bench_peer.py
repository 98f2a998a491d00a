"""Time diffusers' model of a shape under torch.compile: what `bench_train.py --peer` and `bench_sample.py --peer` call.

Reads the shape as JSON from standard input and prints figures as JSON. Needs torch and diffusers, and no jax.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import diffusers
import torch


def inputs_of(shape: dict[str, Any], device: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(x as the network takes it, all else that it is told) of a batch of noise."""
    normal = lambda *size: torch.randn(*size, device=device)
    count, rows, columns = shape["batch"], shape["rows"], shape["columns"]
    x = normal(count, shape["channels"], rows, columns)
    told = {"timestep": torch.full((count,), 500, device=device)}
    if shape["text"]:
        told["encoder_hidden_states"] = normal(count, shape["text"][1], shape["text"][0])
    match shape["class"]:
        case "DiTTransformer2DModel":
            told["class_labels"] = torch.zeros(count, dtype=torch.long, device=device)
        case "SD3Transformer2DModel":
            told["pooled_projections"] = normal(count, shape["pooled"])
        case "FluxTransformer2DModel":
            x = normal(count, rows // 2 * (columns // 2), 4 * shape["channels"])
            told |= {"timestep": told["timestep"] / 1000, "pooled_projections": normal(count, shape["pooled"]),
                     "img_ids": torch.zeros(x.shape[1], 3, device=device),
                     "txt_ids": torch.zeros(shape["text"][1], 3, device=device)}  # fmt: skip
            if shape["guidance"]:
                told["guidance"] = torch.full((count,), 3.5, device=device)
        case "UNet2DConditionModel" if shape["pooled"]:
            ids = torch.full((count, 6), 1024.0, device=device)
            told["added_cond_kwargs"] = {"text_embeds": normal(count, shape["pooled"]), "time_ids": ids}
    return x, told


def main() -> None:
    """Build, compile, time, print."""
    shape = json.load(sys.stdin)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    training, half = shape["mode"] == "train", shape["dtype"] == "bfloat16"
    kind = getattr(diffusers, shape["class"])
    model = kind.from_config({key: value for key, value in shape["config"].items() if not key.startswith("_")})
    model = model.to(device).train(training)
    if training and shape["remat"] == "full":
        model.enable_gradient_checkpointing()
    if not training and half:
        model = model.to(torch.bfloat16)
    run = torch.compile(model)
    if getattr(model, "_repeated_blocks", None):  # a block a program: the whole takes minutes
        model.compile_repeated_blocks()
        run = model
    x, told = inputs_of(shape, device)
    if not training and half:
        convert = lambda value: ({k: convert(v) for k, v in value.items()} if isinstance(value, dict) else
                                 value.bfloat16() if value.is_floating_point() else value)  # fmt: skip
        x, told = convert(x), convert(told)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda") if training else None

    def step():
        if not training:
            with torch.no_grad():
                return run(x, **told).sample
        with torch.autocast(device, torch.bfloat16, enabled=half):
            out = run(x, **told).sample
        loss = out.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    start = time.perf_counter()
    step()
    wait()
    compile_seconds, seconds = time.perf_counter() - start, []
    step()
    for _ in range(shape["calls"]):
        wait()
        start = time.perf_counter()
        for _ in range(shape["steps"]):
            step()
        wait()
        seconds.append((time.perf_counter() - start) / shape["steps"])
    median = statistics.median(seconds)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
    print(json.dumps({"step_s": median, "least_s": min(seconds), "most_s": max(seconds), "peak_gb": peak,
                      "images_per_second": shape["batch"] / median, "compile_s": compile_seconds}))  # fmt: skip


if __name__ == "__main__":
    main()
