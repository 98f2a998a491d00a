"""Single-file checkpoints of released systems, read as diffusers' folders are.

A file holds several networks under prefixes, which stand with each class (`components`) or, of encoders that several
systems have at several places, here. `section` shows one of them under the names that diffusers uses, without reading a
tensor, so that one key map serves both.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lgm.interop import original_names as names
from lgm.interop.components import COMPONENTS, component
from lgm.interop.original_names import Layouts, Original, Source
from lgm.interop.schedules import Schedule
from lgm.interop.tensor_files import Entry, Weights, read_metadata
from lgm.untrusted import shown

_CLIP_ALONE = [("", names.same), ("", names.clip_text_bare), ("transformer.", names.same),
               ("transformer.", names.clip_text_bare), ("", names.open_clip_text)]  # fmt: skip
_T5_ALONE = [("", names.same), ("transformer.", names.same)]
# place of a text encoder in a diffusers folder -> how its class begins -> its layouts, the likeliest first
ENCODERS: dict[str, dict[str, Layouts]] = {
    "text_encoder": {"CLIP": [(prefix, names.unprojected(layout)) for prefix, layout in (
        ("cond_stage_model.transformer.", names.same),
        ("cond_stage_model.transformer.", names.clip_text_bare),
        ("cond_stage_model.model.", names.open_clip_text),
        ("conditioner.embedders.0.transformer.", names.same),
        ("conditioner.embedders.0.transformer.", names.clip_text_bare),
        ("text_encoders.clip_l.transformer.", names.same),
        *_CLIP_ALONE,
    )]},
    "text_encoder_2": {
        "CLIP": [
            ("conditioner.embedders.1.model.", names.open_clip_text),
            ("conditioner.embedders.0.model.", names.open_clip_text),  # SDXL's refiner
            ("text_encoders.clip_g.transformer.", names.same),
            *_CLIP_ALONE,
        ],
        "T5": [("text_encoders.t5xxl.transformer.", names.same), *_T5_ALONE],
    },
    "text_encoder_3": {"T5": [("text_encoders.t5xxl.transformer.", names.same), *_T5_ALONE]},
}  # fmt: skip
_PREFIXES = tuple({p for found in [*(found for kinds in ENCODERS.values() for found in kinds.values()),
                                   *(kind.layouts for kind in COMPONENTS.values())] for p, _ in found}
                  - {"", "transformer."})  # which also begins OpenCLIP's names
# what training leaves in a file beside its networks: copies, losses, and tables that the schedule gives anyway
_LEFT_PREFIXES = ("model_ema.", "loss.", "first_stage_model.loss.", "first_stage_model.model_ema.", "vae.loss.")
_LEFT_NAMES = {
    "betas", "logvar", "lvlb_weights", "global_step", "denoiser.sigmas", "denoiser.log_sigmas", "scaled_fp8",
    "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
}  # fmt: skip
# ComfyUI's, beside a text encoder: the scale of a CLIP's whole
_LEFT_NAMES |= {prefix[:-1].rpartition(".")[0] + ".logit_scale" for prefix in _PREFIXES}
_MARKERS = ("v_pred", "ztsnr")
_STATED = "modelspec.prediction_type"  # which sd-scripts write
# and a projection where none is used, which SD 2's and Flux's files have, and a norm that Z-Image does not use
_UNUSED = ("logit_scale", "attn_mask", "position_ids", "text_projection", "text_projection.weight", "norm_final.weight")
# the other halves of whole models whose text encoder alone is used: those of images, and that write
_HALVES = ("visual.", "vision_model.", "visual_projection.", "decoder.", "lm_head.")


class Section(NamedTuple):
    """One network of a file under diffusers' names, and the file's own names of all that belongs to it."""

    weights: Weights
    names: frozenset[str]


def original_of(place: str, name: str, config: Any) -> Original | None:
    """The layout of the network at `place` in single files; None where it is not known."""
    found = layouts_at(place, name)
    return found[0][1](config) if found else None


def layouts_at(place: str, name: str) -> Layouts:
    """Those of the network of class `name` at a place, the likeliest first."""
    here = next((v for k, v in ENCODERS.get(place, {}).items() if name.startswith(k)), None)
    return component(name).layouts if here is None else here


def section(weights: Weights, place: str, name: str, config: Any, wanted: Iterable[str]) -> Section | None:
    """The network at `place` of class `name`, with the tensors `wanted`, or None where the file does not hold it.

    A tensor that is missing from the file is missing from the result, and one of that network that diffusers has no
    name for keeps its own, so that the key map names both. SD 2's text encoder has one block more than is used. Names
    that do not say which text encoder it is are of the one of that width.
    """
    wanted = list(wanted)
    for prefix, layout in layouts_at(place, name):
        original = layout(config)
        sources = {theirs: original(theirs) for theirs in wanted}
        if sum(prefix + s.name in weights.entries for s in sources.values()) <= len(wanted) // 2:
            continue
        table = _token_table(weights) if place in _TEXT and prefix in _ALONE else None
        if table is None or weights.shape(table)[1:] == (config.width,):
            return _translated(weights, prefix, sources, config)
    return None


_TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3")
_ALONE = ("", "transformer.")
_TABLES = ("text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight", "shared.weight",
           "token_embedding.weight", "encoder.embed_tokens.weight", "model.embed_tokens.weight")  # fmt: skip


def _token_table(weights: Weights) -> str | None:
    """The table of tokens of a file of one text encoder alone, which is as wide as that is."""
    return next((key for prefix in _ALONE for table in _TABLES if (key := prefix + table) in weights.entries), None)


def _translated(weights: Weights, prefix: str, sources: dict[str, Source], config: Any) -> Section:
    entries, changes = {}, {}
    for theirs, source in sources.items():
        entry = weights.entries.get(prefix + source.name)
        if entry is None:
            continue
        entries[theirs] = _part(entry, source)
        made = [f for f in (weights.changes.get(prefix + source.name), _CHANGES.get(source.change)) if f is not None]
        if made:
            changes[theirs] = functools.partial(functools.reduce, lambda tensor, change: change(tensor), made)
    used = {prefix + source.name for source in sources.values()}
    unused = (f"transformer.resblocks.{getattr(config, 'depth', 0)}.", *_HALVES)
    inside = {name for name in weights.entries if name.startswith(prefix) and not _left(name)
              and not any(name.startswith(p) for p in _PREFIXES if p != prefix)}
    for name in inside - used:
        inner = name.removeprefix(prefix)
        if not inner.endswith(_UNUSED) and not inner.startswith(unused):
            entries[inner] = weights.entries[name]
    return Section(Weights(weights.path, entries, changes), frozenset(inside | used & weights.entries.keys()))


def _left(name: str) -> bool:
    return name in _LEFT_NAMES or name in _MARKERS or name.startswith(_LEFT_PREFIXES)


def check_all_used(weights: Weights, sections: Mapping[str, Section], system: str, configs: Mapping[str, Any]) -> None:
    """Raise ValueError, one line, counting the tensors of a file that are of none of its `sections`, by place, and
    naming the first, or for a file without any.

    `configs` has every place of the `system`. What training leaves in files does not count, nor do networks of places
    that the system does without.
    """
    if not sections:
        raise ValueError(f"{weights.path} {_unfit(weights, system, configs)}")
    taken = frozenset().union(*(found.names for found in sections.values()))
    absent = tuple(prefix for place, kinds in ENCODERS.items() if place not in configs
                   for found in kinds.values() for prefix, _ in found if prefix in _PREFIXES)  # fmt: skip
    elsewhere = tuple(prefix for place in configs for found in ENCODERS.get(place, {}).values() for prefix, _ in found)
    absent = tuple(prefix for prefix in absent if prefix not in elsewhere)
    if unused := sorted(name for name in weights.entries if name not in taken and not _left(name)
                        and not name.startswith(absent)):
        raise ValueError(f"{weights.path} has {len(unused)} tensors that no network of this system takes, first "
                         f"{shown(unused[0])}; give a file of this system, in a layout that is known")


def check_apart(sections: Mapping[str, Section], place: str, found: Section) -> None:
    """Raise ValueError, one line, where the tensors that `place` has `found` are those of another place already."""
    for other, section in sections.items():
        if both := section.names & found.names:
            raise ValueError(f"{found.weights.path}: {min(both)!r} is of {other} as well as of {place}, which are as "
                             "wide as each other here; name its tensors as a whole checkpoint does")  # fmt: skip


def _unfit(weights: Weights, system: str, configs: Mapping[str, Any]) -> str:
    """Why no network of a system is in a file."""
    table, widths = _token_table(weights), {place: configs[place].width for place in _TEXT if place in configs}
    if table is not None and widths and weights.shape(table)[1:] not in {(width,) for width in widths.values()}:
        words = " and ".join(f"{width} in {place}" for place, width in widths.items())
        return f"has {table!r} of shape {weights.shape(table)}; the text encoders of this {system} are of width {words}"
    first = f", first {shown(min(weights.entries))}" if weights.entries else ""
    return f"holds no network of a {system} in a layout that is known ({len(weights.entries)} tensors{first})"


def schedule_of(weights: Weights, config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler_config.json `config` as the markers of a file change it: "v_pred" stands for v-prediction, as does
    modelspec.prediction_type=v of its metadata, "ztsnr" for betas rescaled to zero terminal SNR, whose last entry then
    must be drawn from, so that spacing is trailing.

    Raises ValueError, one line, for markers of a system whose schedule cannot be that, or that contradict each other.
    """
    said = [marker for marker in _MARKERS if marker in weights.entries]
    stated = read_metadata(weights.path).get(_STATED) if weights.path.suffix == ".safetensors" else None
    if stated not in (None, "epsilon", "v"):
        raise ValueError(f"{weights.path}: its metadata says {_STATED}={shown(stated)}; 'epsilon' and 'v' are known")
    if stated == "epsilon" and ("v_pred" in said or config.get("prediction_type", "epsilon") == "v_prediction"):
        other = "it is marked 'v_pred'" if "v_pred" in said else "the folder's scheduler has 'v_prediction'"
        raise ValueError(f"{weights.path}: its metadata says {_STATED}='epsilon', but {other}; keep what is so")
    if stated == "v" and "v_pred" not in said:
        said = ["v_pred", *said]
    if not said:
        return dict(config)
    name, kind = config.get("_class_name", ""), config.get("prediction_type", "epsilon")
    if name.startswith("FlowMatch") or kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"{weights.path} is marked {said[0]!r}, but the folder's {name} is one of {kind!r}; give the "
                         "folder of the file's own system")
    if said == ["ztsnr"] and kind == "epsilon":
        raise ValueError(f"{weights.path} is marked 'ztsnr' without 'v_pred': pure noise says nothing to a network "
                         "that predicts noise; give a folder whose scheduler has prediction_type 'v_prediction'")
    changed = dict(config) | {"prediction_type": "v_prediction"}
    if "ztsnr" in said:
        if name not in _RESCALING:
            changed["_class_name"] = "EulerDiscreteScheduler"
        changed |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return changed


def markers_of(schedule: Schedule) -> tuple[dict[str, str], list[str]]:
    """(metadata, names of empty tensors) by which `schedule_of` knows what a network of a diffusion predicts. Raises
    ValueError, one line, for what single files have no mark for."""
    process = schedule.process
    if process["name"] == "rectified_flow":
        return {}, []
    if process["name"] != "ddpm" or schedule.target not in ("eps", "v"):
        raise ValueError(f"single files have no mark for a network of process {process['name']!r} that predicts "
                         f"{schedule.target!r}; export a folder of diffusers")
    if schedule.target == "eps":
        return {_STATED: "epsilon"}, []
    return {_STATED: "v"}, ["v_pred", *(["ztsnr"] if process.get("zero_terminal_snr") else [])]


# the schedulers of diffusers that can be told to end in pure noise
_RESCALING = ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
              "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "LCMScheduler", "TCDScheduler")  # fmt: skip


def _part(entry: Entry, source: Source) -> Entry:
    """Where the rows that `source` names lie, in the shape that the change will give them."""
    shape, start = entry.shape, entry.start
    if source.rows is not None:
        first, last, of = source.rows
        if shape[0] % of:
            raise ValueError(f"{entry.path}: {source.name!r} has {shape[0]} rows, which are not {of} equal parts")
        unit = shape[0] // of
        if entry.scale is not None and len(entry.scale) > 1:
            entry = dataclasses.replace(entry, scale=entry.scale[first * unit : last * unit])
        start += first * unit * int(np.prod(shape[1:])) * entry.dtype.itemsize
        shape = ((last - first) * unit, *shape[1:])
    if source.change == "transpose":
        shape = shape[::-1]
    if source.change == "squeeze" and shape[2:] == (1, 1):
        shape = shape[:2]
    return dataclasses.replace(entry, start=start, shape=shape)


_CHANGES = {
    "swap": lambda rows: np.roll(rows, len(rows) // 2, axis=0),
    "transpose": lambda matrix: matrix.reshape(matrix.shape[::-1]).T,
    "identity": lambda matrix: np.eye(len(matrix), dtype=matrix.dtype),
}
