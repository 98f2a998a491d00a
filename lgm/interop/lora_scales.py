"""What a LoRA's product is multiplied by: alpha / rank, or with rslora alpha / sqrt(rank), as peft combines them.

alpha is a tensor beside the matrices, or stands in a configuration of peft: adapter_config.json beside the file, or
the text `lora_adapter_metadata` within it, which holds one for every network under its place. Where nothing says it,
alpha is the rank.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lgm.interop.tensor_files import read_header, read_metadata
from lgm.untrusted import shown

_LONGEST_NAME = 400
_PEFT = "base_model.model."
_BEGINNINGS = ("gaussian", "eva", "orthogonal", "lycoris")  # of a LoRA; peft's others change the base weights, too
_OTHERWISE = ("fan_in_fan_out", "layer_replication", "alora_invocation_tokens", "use_bdlora", "use_qalora")
Scale = Callable[[str, int | None, np.ndarray | None], float]


def scales_of(path: Path) -> Scale:
    """`scale(module, rank, alpha)` of a file: `alpha` is the module's own tensor, `rank` None where LoKr has none.

    Raises ValueError, one line, for a configuration that cannot be read or does not fit.
    """
    beside, metadata = path.parent / "adapter_config.json", read_metadata(path)
    text, source = metadata.get("lora_adapter_metadata"), f"{path}: lora_adapter_metadata"
    whole = beside.is_file() and (path.name.startswith("adapter_model") or
                                  all(name.startswith(_PEFT) for name in read_header(path)))
    if whole:
        text, source = beside.read_text(encoding="utf-8", errors="replace"), str(beside)
    try:
        table = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise ValueError(f"{source} is no JSON object; save the adapter again")
    _check_options(table, source)
    stated = _kohya(metadata)

    def scale(module: str, rank: int | None, alpha: np.ndarray | None) -> float:
        place, _, inner = module.partition(".")
        options = table if whole else _below(table, place)
        inner = module.removeprefix(_PEFT) if whole else inner
        r = _matching(options, "rank_pattern", inner, options.get("r"), source)
        if rank is None and r is None:
            return 1.0  # LoKr of whole matrices has no rank to divide by
        if r is not None and rank is not None and r != rank:
            raise ValueError(f"is of rank {rank}, but {source} says r={r!r}")
        rank = _number("r", r, source) if rank is None else rank
        if rank < 1:
            raise ValueError(f"has rank {rank}; it must be at least 1")
        if alpha is not None:
            if alpha.size != 1:
                raise ValueError(f"has an alpha of shape {alpha.shape}; it is one number")
            value = _number("alpha", float(alpha.astype(np.float32).item()), "its tensor")
        else:
            given = options.get("lora_alpha", options.get("alpha"))
            value = _matching(options, "alpha_pattern", inner, given, source)
            if value is None and not options and stated not in (None, 1.0):
                raise ValueError(f"has no alpha, though ss_network_alpha / ss_network_dim is {stated:g} in the file's "
                                 "metadata; save it with its alphas")  # fmt: skip
            value = rank if value is None else _number("alpha", value, source)
        return value / (math.sqrt(rank) if options.get("use_rslora") is True else rank)

    return scale


def _check_options(table: Mapping[str, Any], source: str) -> None:
    """Raise ValueError, one line, for a peft of which W + scale up down is not the whole."""
    for key, value in table.items():
        option = key.rpartition(".")[2]
        if option in _OTHERWISE and value:
            raise ValueError(f"{source}: {key}={shown(value)} is not supported; only a LoRA without it")
        if option == "init_lora_weights" and isinstance(value, str) and value not in _BEGINNINGS:
            raise ValueError(f"{source}: {key}={shown(value)} is a LoRA of base weights that it has changed, which are "
                             "not here; save it with peft's path_initial_model_for_weight_conversion")


def _below(table: Mapping[str, Any], place: str) -> dict[str, Any]:
    prefix = f"{place}."
    return {key.removeprefix(prefix): value for key, value in table.items() if key.startswith(prefix)}


def _matching(options: Mapping[str, Any], key: str, module: str, default: Any, source: str) -> Any:
    """The value of the first pattern that fits the end of a module's name from a dot on, as peft looks it up."""
    patterns = options.get(key) or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"cannot be scaled: {source}: {key} is no object of names and numbers")
    ends = [module[i:] for i in range(len(module)) if i == 0 or module[i - 1] == "."]
    for pattern, value in patterns.items():
        if re.fullmatch(r"\^?(\w|\\?\.)*", pattern):  # a plain name
            if pattern.replace("\\.", ".").lstrip("^") in (ends[:1] if pattern.startswith("^") else ends):
                return value
            continue
        # a search that could take for ever is refused rather than begun
        if len(pattern) > _LONGEST_NAME or len(module) > _LONGEST_NAME or re.search(r"[)][*+{?]|[*+}][*+{]", pattern) \
                or sum(pattern.count(sign) for sign in "*+{") > 2:  # fmt: skip
            raise ValueError(f"cannot be scaled: {source}: {key}: {pattern[:80]!r} is too involved; write plain names")
        try:
            fits = any(re.fullmatch(pattern, end) for end in ends)
        except re.error as error:
            raise ValueError(f"cannot be scaled: {source}: {key}: {pattern!r} is no pattern ({error})") from error
        if fits:
            return value
    return default


def _number(name: str, value: Any, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"cannot be scaled: {name}={value!r} in {source} is no finite number")
    return value


def _kohya(metadata: Mapping[str, str]) -> float | None:
    """alpha / rank that kohya's scripts note in the metadata, where they do."""
    try:
        return float(metadata["ss_network_alpha"]) / float(metadata["ss_network_dim"])
    except (KeyError, ValueError, ZeroDivisionError):
        return None
