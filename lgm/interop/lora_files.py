"""LoRA files of diffusers, peft, kohya's scripts and their kin, merged into weights as they are read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from lgm.interop.lora_names import inner_name, targets_of
from lgm.interop.lora_scales import scales_of
from lgm.interop.lora_updates import Update, update_of
from lgm.interop.original_names import Original
from lgm.interop.tensor_files import Weights, open_weights
from lgm.untrusted import finite

# endings of tensors' names -> what the tensor is: peft, diffusers before peft, its text encoders, its attention
# processors, kohya, lycoris. The longest that fits counts.
ENDINGS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_B.bias": "up_bias",
    ".lora_embedding_A": "table_down",  # [rank, rows] and [columns, rank] of a table, which is no matrix transposed
    ".lora_embedding_B": "table_up",
    ".lora_embedding_A.default": "table_down",
    ".lora_embedding_B.default": "table_up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".down.weight": "down",
    ".up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "diff",  # lycoris, of a norm's scale and shift
    ".b_norm": "diff_b",
    **{f".hada_{part}": part for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{part}": f"k{part.removeprefix('w')}"
       for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LoRA:
    """The updates of one file by the name of the module that they change, as the file has it."""

    path: Path
    updates: Mapping[str, Update]
    strength: float = 1.0


def read_lora(path: str | Path, strength: float = 1.0) -> LoRA:
    """A LoRA file (or a folder with one), to be merged `strength` times. Raises ValueError for any other file."""
    if not math.isfinite(strength):
        raise ValueError(f"{path}: a strength of {strength} is not finite; write one as 0.8")
    weights = open_weights(path)
    modules: dict[str, dict[str, np.ndarray]] = {}
    unknown = []
    for name in sorted(weights.names):
        module, part = _divided(name)
        if part is None:
            unknown.append(name)
            continue
        if part in modules.setdefault(module, {}):
            raise ValueError(f"{weights.path} has {name!r} under another name too; keep one of them")
        modules[module][part] = np.array(weights.get(name))
    for module in [m for m in modules if set(modules[m]) == {"alpha"} and f"{m}_lora" in modules]:
        modules[f"{module}_lora"].setdefault("alpha", modules.pop(module)["alpha"])  # an attention processor's
    if unknown or not modules:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        found = f"has {unknown[0]!r}{more}" if unknown else "is empty"
        raise ValueError(f"{weights.path} {found}, which is no part of a LoRA; give a file of lora_A and lora_B")
    scales, updates = scales_of(weights.path), {}
    for module, parts in modules.items():
        alpha = parts.pop("alpha", None)
        if not parts:
            raise ValueError(f"{weights.path} has {module + '.alpha'!r} without the matrices that it scales")
        for one, other in (("table_down", "up"), ("table_up", "down")):
            if one in parts:
                parts[other] = parts.pop(one).T
                if "magnitude" in parts:  # of columns there
                    parts["dora_scale"] = parts.pop("magnitude").reshape(1, -1)
        for one, other in (("down", "up"), ("up", "down")):
            if one in parts and other not in parts:
                raise ValueError(f"{weights.path} has {module!r} with lora_{one} without lora_{other}")
        try:
            updates[module] = update_of(parts, lambda rank, m=module, a=alpha: scales(m, rank, a))  # noqa: B023
        except ValueError as error:
            raise ValueError(f"{weights.path}: {module!r} {error}") from error
    return LoRA(weights.path, updates, strength)


def _divided(name: str) -> tuple[str, str | None]:
    """(module, what the tensor is); None for one that is no part of a LoRA."""
    ending = max((e for e in ENDINGS if name.endswith(e)), key=len, default=None)
    return (name.removesuffix(ending), ENDINGS[ending]) if ending else (name, None)


def merge(
    weights: Weights, loras: Iterable[LoRA], place: str, original: Original | None = None
) -> tuple[Weights, set[tuple[Path, str]]]:
    """(`weights` of the network at `place` with the LoRAs' changes to it, which (file, module) were used).

    `original` gives the names of its tensors in single-file checkpoints, which the files may use; an update of a
    fused matrix there is divided among its parts here. Raises ValueError where a file changes a weight twice.
    """
    loras = list(loras)
    table = targets_of(weights.names, original) if loras else {}
    changes, used = dict(weights.changes), set()
    for lora in loras:
        changed: dict[str, str] = {}
        for module, update in lora.updates.items():
            inner = inner_name(module, place)
            for target in () if inner is None else table.get(inner, ()):
                try:
                    part = update.part(target.rows, target.swap)
                except ValueError as error:
                    raise ValueError(f"{lora.path}: {module!r}: {error}") from error
                for name, add in _additions(target.module, part):
                    if name not in weights.entries:
                        raise ValueError(f"{lora.path}: {module!r} changes {name!r}, which this system does not have")
                    if name in changed:
                        raise ValueError(f"{lora.path} changes {name!r} twice, by {changed[name]!r} and by {module!r}")
                    changed[name] = module
                    changes[name] = _chained(changes.get(name), add, lora, name)
                used.add((lora.path, module))
    return dataclasses.replace(weights, changes=changes), used


def check_all_used(loras: Iterable[LoRA], used: set[tuple[Path, str]]) -> None:
    """Raise ValueError, one line, naming a module that no network has."""
    for lora in loras:
        if left := [module for module in lora.updates if (lora.path, module) not in used]:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ValueError(f"{lora.path} changes {left[0]!r}{more}, which this system does not have")


def _additions(module: str, update: Update) -> list[tuple[str, Callable]]:
    """(tensor, how the update is added to it) of a module of ours."""
    found = [] if update.product is None else [(f"{module}.weight", update.added_to)]
    return found + ([] if update.bias is None else [(f"{module}.bias", update.added_to_bias)])


def _chained(before, add: Callable[[np.ndarray, float], np.ndarray], lora: LoRA, name: str):
    def change(tensor: np.ndarray) -> np.ndarray:
        try:
            return add(tensor if before is None else before(tensor), lora.strength)
        except ValueError as error:
            raise ValueError(f"{lora.path}: {name}: {error}") from error

    return change


def lora_of(text: str) -> LoRA:
    """The LoRA of "path" or "path:strength"."""
    path, _, strength = text.rpartition(":")
    if not path or "/" in strength or Path(text).exists():
        return read_lora(Path(text) if Path(text).exists() else text)
    try:
        times = finite(strength)
    except ValueError:
        raise ValueError(f"{text!r}: the strength {strength!r} is no finite number; write path:0.8") from None
    return read_lora(path, times)
