"""Adapters trained here, in the LoRA files that others load: diffusers' names, or those of kohya's scripts."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from lgm.casting import cast
from lgm.interop.keymap import CONV_AS_LINEAR, LINEAR, Rule, Rules, Transform, parts_of
from lgm.interop.original_names import Original, Source
from lgm.interop.tensor_files import save
from lgm.models.lora import Adapter, LoRAConfig

STEM = "pytorch_lora_weights"  # the name that diffusers looks for
Form = Literal["diffusers", "kohya"]


class Pair(NamedTuple):
    """What one module of theirs changes by, up down: down [rank, in, ...], up [out, rank, ...]. Modules that share a
    `down` have one `key`."""

    module: str
    down: np.ndarray
    up: np.ndarray
    key: tuple[str, int | None]


def save_lora(folder: str | Path, adapters: Mapping[str, tuple[Rules, Adapter]], config: LoRAConfig,
              form: Form = "diffusers", original: Original | None = None) -> None:
    """Write pytorch_lora_weights.safetensors.

    `adapters` has the key map of a network and its adapter by place ("unet", "transformer", "text_encoder"). In the
    form of diffusers alpha is folded into B, so that the file needs none. In that of kohya's scripts the denoiser's
    modules have the names of the `original` layout, where that is what its users' programs know, or of diffusers.
    Raises ValueError for a matrix that diffusers could not adapt and for values that are not finite.
    """
    tensors: list[tuple[str, np.ndarray]] = []
    for place, (rules, adapter) in adapters.items():
        if form == "kohya":
            tensors += kohya_tensors(pairs_of(rules, adapter), config.scale, original)
        else:
            tensors += [(f"{place}.{name}", tensor) for name, tensor in lora_tensors(rules, adapter, config)]
    save([(name, cast(name, tensor, np.float32)) for name, tensor in tensors], folder, STEM)


def lora_tensors(rules: Rules, adapter: Adapter, config: LoRAConfig) -> Iterator[tuple[str, np.ndarray]]:
    """A and B of every module of theirs. Matrices that we fuse share A and divide B."""
    for module, down, up, _ in pairs_of(rules, adapter):
        yield f"{module}.lora_A.weight", down
        yield f"{module}.lora_B.weight", up * np.float32(config.scale)


def kohya_tensors(pairs: Iterable[Pair], scale: float, original: Original | None) -> Iterator[tuple[str, np.ndarray]]:
    """lora_down, lora_up and alpha of every module of the original layout, or without it of theirs.

    Where the original fuses matrices, one update of as many ranks as they have downs changes their rows, and others by
    nothing.
    """
    modules: dict[str, list[tuple[Source, Pair]]] = {}
    for pair in pairs:
        source = Source(f"{pair.module}.weight") if original is None else original(f"{pair.module}.weight")
        if not source.name.endswith(".weight") or source.change not in (None, "swap"):
            raise ValueError(f"{pair.module} has no equal in kohya's files; leave it out of the targets")
        modules.setdefault(source.name.removesuffix(".weight"), []).append((source, pair))
    for module, parts in modules.items():
        downs = {pair.key: pair.down for _, pair in parts}
        ends = dict(zip(downs, np.cumsum([len(down) for down in downs.values()]).tolist(), strict=True))
        rank = sum(map(len, downs.values()))
        first, last, of = parts[0][0].rows or (0, 1, 1)
        rows = len(parts[0][1].up) // (last - first) * of
        up = np.zeros((rows, rank, *parts[0][1].up.shape[2:]), np.float32)
        for source, pair in parts:
            first, last, of = source.rows or (0, 1, 1)
            change = np.roll(pair.up, rows // 2, 0) if source.change == "swap" else pair.up
            end = ends[pair.key]
            up[first * rows // of : last * rows // of, end - len(pair.down) : end] = change
        name = f"lora_unet_{module.replace('.', '_')}"
        yield f"{name}.lora_down.weight", np.concatenate(list(downs.values()))
        yield f"{name}.lora_up.weight", up
        yield f"{name}.alpha", np.asarray(scale * rank, np.float32)


def pairs_of(rules: Rules, adapter: Adapter) -> Iterator[Pair]:
    """Every module of theirs that an adapter changes. Raises ValueError for a matrix that diffusers could not adapt."""
    of_path = {rule.ours: rule for rule in rules if isinstance(rule, Rule)}
    for path, pair in adapter.items():
        rule = of_path.get(path)
        if rule is None or rule.transform.pattern not in (LINEAR.pattern, CONV_AS_LINEAR.pattern) or rule.axis != -1:
            raise ValueError(f"{path} has no equal in diffusers that a LoRA could adapt; leave it out of the targets")
        down, up = np.asarray(pair["down"], np.float32), np.asarray(pair["up"], np.float32)
        spatial = (1, 1) if rule.transform.pattern == CONV_AS_LINEAR.pattern else ()
        chunks = Transform(order=rule.transform.order)
        for name, layer, part in parts_of(rule, up):
            a, b = (down if layer is None else down[layer]).T, chunks.to_theirs(part).T
            shaped = (np.ascontiguousarray(x).reshape(*x.shape, *spatial) for x in (a, b))
            yield Pair(name.removesuffix(".weight"), *shaped, (path, layer))
