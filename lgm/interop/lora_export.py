"""LoRA files that others load, of adapters trained here or of other files: diffusers' names, kohya's or ComfyUI's."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lgm.casting import cast
from lgm.interop.keymap import CONV_AS_LINEAR, LINEAR, Rule, Rules, Transform, parts_of
from lgm.interop.lora_files import LoRA
from lgm.interop.lora_names import inner_name, targets_of
from lgm.interop.original_names import Original, Source
from lgm.interop.tensor_files import save
from lgm.models.lora import Adapter, LoRAConfig

STEM = "pytorch_lora_weights"  # the name that diffusers looks for
Form = Literal["diffusers", "kohya", "comfy"]


class Pair(NamedTuple):
    """What one module of theirs changes by, scale up down: down [rank, in, ...], up [out, rank, ...]. Modules that
    share a `down` have one `key`. `magnitude` [out] is DoRA's of the changed weight's rows."""

    module: str
    down: np.ndarray
    up: np.ndarray
    key: tuple[str, int | None]
    scale: float
    magnitude: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Naming:
    """What the modules of one network are called in a file: its `prefix`, then the name in the `original` layout, or
    without one in the library's."""

    prefix: str
    original: Original | None = None


def save_lora(folder: str | Path, networks: Mapping[str, tuple[Naming, Iterable[Pair]]], form: Form = "diffusers",
              dtype: Any = None) -> None:
    """Write pytorch_lora_weights.safetensors of networks by place ("unet", "transformer", "text_encoder"), cast to
    `dtype`, by default float32.

    The scale is folded into B, so that the file needs no alpha, but in kohya's form every module has one. ComfyUI's
    modules are called as in its own checkpoints, kohya's with underscores for dots. Raises ValueError for a matrix that
    the form has no name for and for values that are not finite.
    """
    tensors: list[tuple[str, np.ndarray]] = []
    for naming, pairs in networks.values():
        if form == "diffusers":
            tensors += [(naming.prefix + name, tensor) for name, tensor in lora_tensors(pairs)]
        else:
            fused = fused_pairs(pairs, naming.original)
            tensors += kohya_tensors(fused, naming.prefix) if form == "kohya" else [
                (naming.prefix + name, tensor) for name, tensor in lora_tensors(fused, peft=False)]
    dtype = np.float32 if dtype is None else dtype
    save([(name, cast(name, tensor, dtype)) for name, tensor in tensors], folder, STEM)


def lora_tensors(pairs: Iterable[Pair], peft: bool = True) -> Iterator[tuple[str, np.ndarray]]:
    """A and B of every module of theirs, and DoRA's lengths by the name of `peft` or of LyCORIS. Matrices that we fuse
    share A and divide B."""
    for module, down, up, _, scale, magnitude in pairs:
        yield f"{module}.lora_A.weight", down
        yield f"{module}.lora_B.weight", up * np.float32(scale)
        if magnitude is not None:
            yield (f"{module}.lora_magnitude_vector.weight", magnitude) if peft else _dora_scale(module, magnitude, up)


def kohya_tensors(pairs: Iterable[Pair], prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """lora_down, lora_up and alpha of every module."""
    for module, down, up, _, scale, magnitude in pairs:
        name = prefix + module.replace(".", "_")
        yield f"{name}.lora_down.weight", down
        yield f"{name}.lora_up.weight", up
        yield f"{name}.alpha", np.asarray(scale * len(down), np.float32)
        if magnitude is not None:
            yield _dora_scale(name, magnitude, up)


def _dora_scale(module: str, magnitude: np.ndarray, up: np.ndarray) -> tuple[str, np.ndarray]:
    """LyCORIS' and ComfyUI's name of lengths [out, 1, ...], which they take for rows' as the first axis is as long."""
    return f"{module}.dora_scale", magnitude.reshape(-1, *(1,) * (up.ndim - 1))


def fused_pairs(pairs: Iterable[Pair], original: Original | None) -> Iterator[Pair]:
    """The changes of the modules of the `original` layout, or without it of theirs.

    Where the original fuses matrices, one update of as many ranks as they have downs changes their rows, and others by
    nothing.
    """
    modules: dict[str, list[tuple[Source, Pair]]] = {}
    for pair in pairs:
        source = original(f"{pair.module}.weight") if original else Source(f"{pair.module}.weight")
        if not source.name.endswith(".weight") or source.change not in (None, "swap"):
            raise ValueError(f"{pair.module} has no equal in such LoRA files; leave it out of the targets")
        modules.setdefault(source.name.removesuffix(".weight"), []).append((source, pair))
    for module, parts in modules.items():
        downs = {pair.key: pair.down for _, pair in parts}
        ends = dict(zip(downs, np.cumsum([len(down) for down in downs.values()]).tolist(), strict=True))
        rank, scales = sum(map(len, downs.values())), {pair.scale for _, pair in parts}
        scale = scales.pop() if len(scales) == 1 else 1.0
        first, last, of = parts[0][0].rows or (0, 1, 1)
        rows = len(parts[0][1].up) // (last - first) * of
        up = np.zeros((rows, rank, *parts[0][1].up.shape[2:]), np.float32)
        lengths = None if all(pair.magnitude is None for _, pair in parts) else np.zeros(rows, np.float32)
        covered = 0
        for source, pair in parts:
            first, last, of = source.rows or (0, 1, 1)
            change = pair.up if pair.scale == scale else pair.up * np.float32(pair.scale)
            change = np.roll(change, rows // 2, 0) if source.change == "swap" else change
            end = ends[pair.key]
            up[first * rows // of : last * rows // of, end - len(pair.down) : end] = change
            if lengths is not None and pair.magnitude is not None:
                covered += len(pair.magnitude)
                rolled = np.roll(pair.magnitude, rows // 2) if source.change == "swap" else pair.magnitude
                lengths[first * rows // of : last * rows // of] = rolled
        if lengths is not None and covered < rows:
            raise ValueError(f"{module} is one matrix there, and DoRA's lengths are known of a part of its rows; merge "
                             "the file into the folder by --lora instead")
        yield Pair(module, np.concatenate(list(downs.values())), up, (module, None), scale, lengths)


def pairs_of(rules: Rules, adapter: Adapter, config: LoRAConfig) -> Iterator[Pair]:
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
            yield Pair(name.removesuffix(".weight"), *shaped, (path, layer), config.scale)


def pairs_of_file(lora: LoRA, place: str, names: Iterable[str], original: Original | None
                  ) -> tuple[list[Pair], set[tuple[Path, str]]]:  # fmt: skip
    """(what a LoRA file changes of the network at `place`, which (file, module) that is), by the `names` of the
    network's tensors and those of its `original`. Raises ValueError, one line, for a change that is no LoRA or DoRA."""
    table, pairs, used = targets_of(names, original), [], set()
    for module, update in lora.updates.items():
        inner = inner_name(module, place)
        for target in () if inner is None else table.get(inner, ()):
            columns = update.magnitude is not None and update.magnitude.ndim > 1
            if update.factors is None or columns or update.bias is not None:
                what = ("a DoRA of columns" if columns else "a LoRA with biases" if update.factors is not None else
                        "no LoRA of two matrices")  # fmt: skip
                raise ValueError(f"{lora.path}: {module!r} is {what}; only LoRAs and DoRAs of rows go into a file of "
                                 "another form; merge it into the folder by --lora instead")
            try:
                select = update.part(target.rows, target.swap).select
                up = select(update.factors[1])
            except ValueError as error:
                raise ValueError(f"{lora.path}: {module!r}: {error}") from error
            scale = float(lora.strength * update.scale)
            lengths = None if update.magnitude is None else select(update.magnitude)
            pairs.append(Pair(target.module, update.factors[0], up, (module, None), scale, lengths))
            used.add((lora.path, module))
    return pairs, used
