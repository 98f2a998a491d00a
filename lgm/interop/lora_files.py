"""LoRA files of diffusers, peft, kohya's scripts and their kin, merged into weights as they are read."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from lgm.interop.keymap import several
from lgm.interop.lora_names import inner_name, targets_of
from lgm.interop.lora_scales import scales_of
from lgm.interop.lora_updates import Update, update_of
from lgm.interop.original_names import Original
from lgm.interop.tensor_files import Weights, open_weights
from lgm.untrusted import finite

# what a tensor is, by the endings of its name: peft's, diffusers' before peft, its text encoders', its attention
# processors', kohya's, lycoris'. The longest that fits counts.
_SPELLED = {
    "down": (".lora_A.weight", ".lora_A.default.weight", ".lora.down.weight", ".lora_linear_layer.down.weight",
             ".down.weight", ".lora_down.weight"),
    "up": (".lora_B.weight", ".lora_B.default.weight", ".lora.up.weight", ".lora_linear_layer.up.weight",
           ".up.weight", ".lora_up.weight"),
    "up_bias": (".lora_B.bias",),
    # [rank, rows] and [columns, rank] of a table, which is no matrix transposed
    "table_down": (".lora_embedding_A", ".lora_embedding_A.default"),
    "table_up": (".lora_embedding_B", ".lora_embedding_B.default"),
    "mid": (".lora_mid.weight",),
    "alpha": (".alpha",),
    "dora_scale": (".dora_scale",),
    "magnitude": tuple(f".lora_magnitude_vector{end}" for end in ("", ".weight", ".default.weight")),
    "diff": (".diff", ".w_norm"),  # lycoris', of a norm's scale and shift
    "diff_b": (".diff_b", ".b_norm"),
    **{part: (f".hada_{part}",) for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"k{part.removeprefix('w')}": (f".lokr_{part}",)
       for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}  # fmt: skip
ENDINGS = {ending: part for part, endings in _SPELLED.items() for ending in endings}


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
        ending = max((e for e in ENDINGS if name.endswith(e)), key=len, default=None)
        if ending is None:
            unknown.append(name)
            continue
        module, part = name.removesuffix(ending), ENDINGS[ending]
        if part in modules.setdefault(module, {}):
            raise ValueError(f"{weights.path} has {name!r} under another name too; keep one of them")
        modules[module][part] = np.array(weights.get(name))
    for module in [m for m in modules if set(modules[m]) == {"alpha"} and f"{m}_lora" in modules]:
        modules[f"{module}_lora"].setdefault("alpha", modules.pop(module)["alpha"])  # an attention processor's
    if unknown or not modules:
        found = f"has {several(unknown)}" if unknown else "is empty"
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
                for end, has, add in (("weight", part.product, part.added_to), ("bias", part.bias, part.added_to_bias)):
                    if has is None:
                        continue
                    name = f"{target.module}.{end}"
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
            raise ValueError(f"{lora.path} changes {several(left)}, which this system does not have")


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
