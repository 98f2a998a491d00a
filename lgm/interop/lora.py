"""LoRA files (Hu et al. 2021, 2106.09685) of diffusers and of kohya's scripts, merged into weights as they are read.

A LoRA adds (alpha / r) B A to a weight [out, in], with A [r, in] and B [out, r].
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from lgm.interop.original_names import Original
from lgm.interop.weights import Weights, open_weights, read_metadata

Rows = tuple[int, int, int] | None

# what A and B are called: peft, diffusers before peft, its text encoders, its attention processors, kohya
ENDINGS = {
    ".lora_A.weight": ".lora_B.weight",
    ".lora.down.weight": ".lora.up.weight",
    ".lora_linear_layer.down.weight": ".lora_linear_layer.up.weight",
    "_lora.down.weight": "_lora.up.weight",
    ".lora_down.weight": ".lora_up.weight",
}
# place in a diffusers folder -> how modules of it are prefixed by diffusers, by kohya and in the original layout
PREFIXES = {
    "unet": ("unet.", "lora_unet_", "diffusion_model."),
    "transformer": ("transformer.", "lora_unet_", "lora_transformer_", "diffusion_model."),
    "text_encoder": ("text_encoder.", "lora_te_", "lora_te1_"),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_", "lora_te3_"),  # the latter is Flux's T5 in kohya's scripts
    "text_encoder_3": ("text_encoder_3.", "lora_te3_"),
}
_OTHERS = ("dora_scale", "lora_magnitude_vector", "hada_w", "lokr_w")


@dataclasses.dataclass(frozen=True)
class Update:
    """A low-rank change: `down` [r, in, ...] and `up` [out, r, ...], times `scale`."""

    down: np.ndarray
    up: np.ndarray
    scale: float

    def rows(self, part: tuple[int, int, int] | None) -> Update:
        """The update of the output rows from first / of to last / of, for `part` (first, last, of)."""
        if part is None:
            return self
        first, last, of = part
        count = self.up.shape[0]
        return dataclasses.replace(self, up=self.up[first * count // of : last * count // of])

    def added_to(self, weight: np.ndarray, strength: float) -> np.ndarray:
        """weight [out, in, ...] + strength scale up down, in float32. Raises ValueError where the shapes do not fit."""
        rank = self.down.shape[0]
        up, down = self.up.astype(np.float32), self.down.astype(np.float32)
        if up.size != weight.shape[0] * rank or down[0].size != weight[0].size:
            raise ValueError(f"a LoRA of {self.up.shape} x {self.down.shape} does not fit a weight of {weight.shape}")
        change = up.reshape(-1, rank) @ down.reshape(rank, -1)
        return weight.astype(np.float32) + np.float32(strength * self.scale) * change.reshape(weight.shape)


@dataclasses.dataclass(frozen=True)
class LoRA:
    """The updates of one file by the name of the module that they change, as the file has it."""

    path: Path
    updates: Mapping[str, Update]
    strength: float = 1.0


def read_lora(path: str | Path, strength: float = 1.0) -> LoRA:
    """A LoRA file (or a folder with one), to be merged `strength` times. Raises ValueError for any other file."""
    weights = open_weights(path)
    names = set(weights.names)
    if other := [name for name in names if any(word in name for word in _OTHERS)]:
        raise ValueError(f"{weights.path}: {min(other)!r} is of another method than LoRA; only LoRA can be merged")
    alphas = _alphas(weights.path)
    updates = {}
    for name in sorted(names):
        ending = next((e for e in ENDINGS if name.endswith(e)), None)
        if ending is None:
            continue
        module = name.removesuffix(ending)
        pair = module + ENDINGS[ending]
        if pair not in names:
            raise ValueError(f"{weights.path} has {name!r} without {pair!r}")
        down, up = np.array(weights.get(name)), np.array(weights.get(pair))
        alpha = alphas(module, down.shape[0])
        if f"{module}.alpha" in names:
            alpha = float(weights.get(f"{module}.alpha").astype(np.float32).item())
        updates[module + ("_lora" if ending == "_lora.down.weight" else "")] = Update(down, up, alpha / down.shape[0])
        names -= {name, pair, f"{module}.alpha"}
    if names or not updates:
        found = f"has {min(names)!r}" if names else "is empty"
        raise ValueError(f"{weights.path} {found}, which is no part of a LoRA; give a file of lora_A and lora_B")
    return LoRA(weights.path, updates, strength)


def merge(
    weights: Weights, loras: Iterable[LoRA], place: str, original: Original | None = None
) -> tuple[Weights, set[tuple[Path, str]]]:
    """(`weights` of the network at `place` with the LoRAs' changes to it, which (file, module) were used).

    `original` gives the names of its tensors in single-file checkpoints, which kohya's files may use; an update of a
    fused matrix there is divided among its parts here.
    """
    plain, flat = set(weights.names), _flat(weights, original)
    changes, used = dict(weights.changes), set()
    for lora in loras:
        for module, update in lora.updates.items():
            for name, part in _weights_of(module, place, plain, flat):
                changes[name] = _chained(changes.get(name), update.rows(part), lora, name)
                used.add((lora.path, module))
    return dataclasses.replace(weights, changes=changes), used


def check_all_used(loras: Iterable[LoRA], used: set[tuple[Path, str]]) -> None:
    """Raise ValueError, one line, naming a module that no network has."""
    for lora in loras:
        if left := [module for module in lora.updates if (lora.path, module) not in used]:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ValueError(f"{lora.path} changes {left[0]!r}{more}, which this system does not have")


def _flat(weights: Weights, original: Original | None) -> dict[str, list[tuple[str, Rows]]]:
    """Module names with underscores for dots, as kohya writes them -> the weights, and which rows each takes."""
    flat = {}
    for name in weights.names:
        if not name.endswith(".weight"):
            continue
        flat[_underscored(name)] = [(name, None)]
        if original is not None:
            source = original(name)
            if source.change != "swap" and source.name != name:
                flat.setdefault(_underscored(source.name), []).append((name, source.rows))
    return flat


def _underscored(name: str) -> str:
    return name.removesuffix(".weight").replace(".", "_")


def _weights_of(module: str, place: str, plain: set[str], flat: Mapping[str, list]) -> list[tuple[str, Rows]]:
    """The weights (and the rows of the update) that the file's `module` stands for in the network at `place`."""
    prefix = next((p for p in PREFIXES.get(place, ()) if module.startswith(p)), None)
    if prefix is None:
        return []
    inner = module.removeprefix(prefix)
    if prefix.endswith("_") or prefix == "diffusion_model.":
        return flat.get(inner.replace(".", "_"), [])
    # attention processors: "attn1.processor.to_out_lora" is attn1.to_out.0
    inner = re.sub(r"\.processor\.(\w+)_lora$", r".\1", inner)
    inner = re.sub(r"\.to_out$", ".to_out.0", inner)
    names = (f"{inner}.weight", f"text_model.{inner}.weight")
    return [(name, None) for name in names if name in plain][:1]


def _chained(before, update: Update, lora: LoRA, name: str):
    def change(weight: np.ndarray) -> np.ndarray:
        try:
            return update.added_to(weight if before is None else before(weight), lora.strength)
        except ValueError as error:
            raise ValueError(f"{lora.path}: {name}: {error}") from error

    return change


def _alphas(path: Path):
    """`alpha(module, rank)` as peft's configuration in the file's metadata says; the rank where it says nothing."""
    text = read_metadata(path).get("lora_adapter_metadata")
    table = json.loads(text) if text else {}

    def alpha(module: str, rank: int) -> float:
        place, _, inner = module.partition(".")
        for pattern, value in (table.get(f"{place}.alpha_pattern") or {}).items():
            if re.search(rf"(^|\.)({pattern})$", inner):
                return float(value)
        value = float(table.get(f"{place}.lora_alpha", rank))
        return value * rank**0.5 if table.get(f"{place}.use_rslora") else value

    return alpha
