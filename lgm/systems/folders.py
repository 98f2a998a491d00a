"""diffusers' folders of text-to-image systems, read and written: model_index.json and all it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lgm import files
from lgm.data.text_tokenizers import TextTokenizer, read_text_tokenizer, save_text_tokenizer
from lgm.interop import single_file as single_files
from lgm.interop.components import (
    COMPONENTS,
    component,
    load_component,
    names_in_library,
    read_carried,
    read_config,
    read_json,
    save_component,
    write_json,
)
from lgm.interop.diffusers_configs import SCORED_IDS
from lgm.interop.fields import FLAG, Kind, check
from lgm.interop.lora_files import LoRA, check_all_used, merge
from lgm.interop.original_names import Original
from lgm.interop.scaled import descaled
from lgm.interop.schedulers import read_schedule, write_schedule
from lgm.interop.schedules import Schedule
from lgm.interop.single_file import original_of, section
from lgm.interop.tables import SCHEDULER
from lgm.interop.tensor_files import Weights, open_weights
from lgm.models import Model, Params, build, family_of
from lgm.models.autoencoder import AutoencoderConfig
from lgm.parsing import near_miss
from lgm.systems import SYSTEMS
from lgm.systems.release import Pipeline, Released
from lgm.untrusted import shown


def _is_names(value: Any) -> bool:
    pairs = value.items() if isinstance(value, dict) else [("", None)]
    return all(key.isdecimal() and len(key) < 8 and isinstance(name, str) for key, name in pairs)


# entries of model_index.json that are no parts; those that only a pipeline of another name has are carried
OPTIONS = {
    "force_zeros_for_empty_prompt": FLAG,
    "id2label": Kind("an object of texts by number", _is_names),
    "is_distilled": FLAG,
    "requires_aesthetics_score": FLAG,
}
FORMAT = "0.38.0"  # the version of diffusers that first reads all that is written here as it is meant
VARIANTS = ("Img2Img", "Inpaint")  # of a pipeline's class, with the same parts


def load_pipeline(
    folder: str | Path,
    *,
    dtype: str = "float32",
    shard: Callable[[Model], Any] | None = None,
    single_file: str | Path | Sequence[str | Path] = (),
    loras: Sequence[LoRA] = (),
    only: Collection[str] | None = None,
) -> tuple[Pipeline, dict[str, Params]]:
    """(pipeline, parameters by place) of a diffusers folder; with `only`, the parameters of those places alone.

    Denoiser and text encoders compute and are held in `dtype`, the autoencoder in float32. `shard(model)` gives the
    shardings to build parameters straight into. The networks that a `single_file` in an original layout holds, or one
    of several, are read from it instead of the folder; `loras` are merged into the weights. Raises ValueError, one
    line, naming what is missing, damaged or has no equal here.
    """
    folder = files.local(folder)
    index, parts = _read_index(folder)
    system = SYSTEMS[index["_class_name"]]
    singles = [descaled(open_weights(path)) for path in ([single_file] if isinstance(single_file, str | Path) else
                                                         single_file)]  # fmt: skip
    scored = system.scored and index.get("requires_aesthetics_score")
    models, params, classes, tokenizers, carried, beside, held, used = {}, {}, {}, {}, {}, {}, {}, set()
    sections: dict[Path, dict[str, single_files.Section]] = {single.path: {} for single in singles}
    for place in (system.denoiser, "vae", *system.tokenizer_of):
        if place not in parts:
            continue  # SD3 without T5
        tokenizer = system.tokenizer_of.get(place)
        if tokenizer is not None and not parts.get(tokenizer):
            raise ValueError(f"{folder}/model_index.json names no {tokenizer}, which {place} needs")
        classes[place] = system.old_names.get(parts[place][1], parts[place][1])
        changes = {} if place == "vae" else {"dtype": dtype}
        changes |= system.encoder_options.get(place, {})
        config = read_config(folder / place, classes[place], **changes)
        if place == system.denoiser and scored:
            changes |= _scored(config)
            config = dataclasses.replace(config, **changes)
        carried[place] = read_carried(folder / place, classes[place])
        if tokenizer is not None:
            tokenizers[place] = read_text_tokenizer(folder / tokenizer)
            check_tokenizer(tokenizers[place], config, folder / tokenizer, system.words)
        found = file = None
        for single in singles:
            here = section(single, place, classes[place], config, names_in_library(classes[place], config))
            if here is not None and found is not None:
                raise ValueError(f"{found.weights.path} and {single.path} both hold the {place}; give one of them")
            if here is not None:
                single_files.check_apart(sections[single.path], place, here)
                sections[single.path][place] = found = here
                file = single
        if only is not None and place not in only:
            models[place] = build(config)
            continue
        models[place], params[place] = load_component(
            folder / place,
            classes[place],
            held_in=None if place == "vae" else dtype,
            shard=shard,
            weights=None if found is None else found.weights,
            adapt=_merging(loras, place, original_of(place, classes[place], config), used, held),
            **changes,
        )
        if (others := component(classes[place]).beside) is not None:
            beside[place] = others(open_weights(folder / place) if file is None else file)
            held[place] |= dtypes_of(beside[place])
    check_all_used(loras, used)
    configs = {place: model.config for place, model in models.items()}
    for single in singles:
        single_files.check_all_used(single, sections[single.path], system.name, configs)
    check_autoencoder(models["vae"].config, system, folder / "vae")
    system.check(configs, folder)
    variant = index["_variant"]
    corrections = system.corrected.get(variant, {})
    schedule = _read_schedule(folder / "scheduler" / "scheduler_config.json", corrections, singles)
    size = read_json(folder / system.denoiser / "config.json").get("sample_size") or system.default_size or 64
    options = {k: v for k, v in index.items() if not k.startswith("_") and not isinstance(v, list)}
    pipeline = Pipeline(system, models, classes, tokenizers, schedule, schedule.build(), size, options, carried,
                        beside=beside, held=held)
    if pipeline.inpaints:
        variant = "Inpaint"
    elif pipeline.scored:
        variant = variant or "Img2Img"  # the plain pipeline has no such option
    return dataclasses.replace(pipeline, variant=variant), params


def _scored(config: Any) -> dict[str, int]:
    """What a U-Net's configuration, which tells only the sum, is where an aesthetic score stands for a target size."""
    if not config.micro_ids:
        return {}
    more = (config.micro_ids - SCORED_IDS) * config.micro_dim
    return {"micro_ids": SCORED_IDS, "pooled_dim": config.pooled_dim + more}


def _read_index(folder: Path) -> tuple[dict[str, Any], dict[str, list]]:
    """(model_index.json, its parts that are there). Raises ValueError where a necessary one is not."""
    path = folder / "model_index.json"
    if not path.exists() and (folder / "checkpoints").is_dir():
        raise ValueError(f"{path} is not there: {folder} is a run's folder; give it by --workdir, or export it first")
    index = read_json(path)
    name = index.get("_class_name", "")
    name = name if isinstance(name, str) else ""
    variant = next((variant for variant in VARIANTS if name.endswith(f"{variant}Pipeline")), "")
    name = name.replace(f"{variant}Pipeline", "Pipeline")
    index |= {"_class_name": name, "_variant": variant}
    if name not in SYSTEMS:
        raise ValueError(f"{path}: _class_name={shown(name)} is not known{near_miss(name, SYSTEMS)}")
    system = SYSTEMS[name]
    known = {system.denoiser, "vae", "scheduler", *system.tokenizer_of, *system.tokenizer_of.values()}
    parts = {place: entry for place, entry in index.items() if isinstance(entry, list)}
    for place, entry in index.items():
        pair = isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str | None) for e in entry)
        if place in known and not pair or isinstance(entry, list) and not pair:
            raise ValueError(f"{path}: {place}={shown(entry)} is no pair of a library and a class")
    parts = {place: entry for place, entry in parts.items() if entry[1] is not None}
    for place in (system.denoiser, "vae", "scheduler", *system.needed):
        if place not in parts:
            raise ValueError(f"{path} names no {place}, which a {name} needs")
    check(index, {key: kind for key, kind in OPTIONS.items() if key not in parts}, str(path))
    return index, parts


def check_tokenizer(tokenizer: TextTokenizer, encoder: Any, folder: Path, words: Collection[str] = ()) -> None:
    """Raise ValueError, one line, for a tokenizer of more words, or longer texts, than its encoder has room for, or
    without one of the `words` that its system's program needs."""
    if absent := [word for word in words if tokenizer.tokenizer.token_to_id(word) is None]:
        raise ValueError(f"{folder} has no token {absent[0]!r}, which its system puts around each text")
    if (most := tokenizer.largest_id) >= encoder.vocab_size:
        raise ValueError(f"{folder} gives ids up to {most}; its text encoder knows {encoder.vocab_size}")
    longest = family_of(encoder).reach(encoder)
    if longest is not None and tokenizer.max_length > longest:
        raise ValueError(f"{folder}: model_max_length={tokenizer.max_length} is more than its text encoder takes "
                         f"({longest})")


def check_autoencoder(config: AutoencoderConfig, system: Released, folder: Path) -> None:
    """Raise ValueError, one line, for a standardization of latents that a system's program does not make."""
    if config.shift and system.standardizes not in ("shift", "patches"):
        raise ValueError(f"{folder}: shift_factor={config.shift} has no part in a {system.name}; give null")
    if config.latents_mean is not None and system.standardizes not in ("means", "patches"):
        raise ValueError(f"{folder}: latents_mean and latents_std have no part in a {system.name}; give null")


def _merging(loras: Sequence[LoRA], place: str, original: Original | None, used: set, held: dict
             ) -> Callable[[Weights], Weights]:  # fmt: skip
    """A change of weights that merges the LoRAs and notes in `used` what of them it took, in `held` what types the
    weights are of."""

    def adapt(weights: Weights) -> Weights:
        held[place] = dtypes_of(weights)
        weights, found = merge(weights, loras, place, original)
        used.update(found)
        return weights

    return adapt


def dtypes_of(weights: Weights) -> dict[str, np.dtype]:
    """The type of every tensor as it would be written again: its own but for float8, which becomes bfloat16 or, where
    it is scaled, float32."""
    eight = lambda entry: entry.dtype.itemsize == 1 and entry.dtype.name.startswith("float8")
    wider = lambda entry: np.dtype(np.float32) if entry.scale is not None else np.dtype(ml_dtypes.bfloat16)
    return {name: wider(entry) if eight(entry) else entry.dtype for name, entry in weights.entries.items()}


def save_pipeline(folder: str | Path, pipeline: Pipeline, params: Mapping[str, Params], dtype: Any = None,
                  card: str | None = None) -> None:
    """Write a folder that `DiffusionPipeline.from_pretrained` reads; weights cast to `dtype` where given, else to the
    types that they were of (`Pipeline.held`). The text `card` becomes its README.md.

    The folder appears whole or not at all. Raises ValueError, one line, when it exists or when a part has no equal in
    diffusers.
    """
    folder = files.place(folder, "--out")
    if folder.exists():
        raise ValueError(f"{folder} is there already; give the name of a new folder")
    system = pipeline.system

    def write(temporary: Path) -> None:
        name = pipeline.name.replace("Pipeline", f"{pipeline.variant}Pipeline")
        index: dict[str, Any] = {"_class_name": name, "_diffusers_version": FORMAT}
        for place, model in pipeline.models.items():
            name = pipeline.classes[place]
            index[place] = [COMPONENTS[name].library, name]
            options, beside = pipeline.carried.get(place, {}), pipeline.beside.get(place)
            save_component(temporary / place, name, model.config, params[place],
                           pipeline.held.get(place) if dtype is None else dtype, options, beside)
        for place, tokenizer in pipeline.tokenizers.items():
            place = system.tokenizer_of[place]
            index[place] = ["transformers", tokenizer.kind]
            save_text_tokenizer(tokenizer, temporary / place)
        scheduler = write_schedule(pipeline.schedule)
        index["scheduler"] = ["diffusers", scheduler["_class_name"]]
        write_json(temporary / "scheduler" / "scheduler_config.json", scheduler)
        if pipeline.sample_size != system.default_size:
            config = temporary / system.denoiser / "config.json"
            write_json(config, read_json(config) | {"sample_size": pipeline.sample_size})
        if "sample_size" in component(pipeline.classes["vae"]).table:  # that of the tiles that diffusers may decode in
            vae, side = temporary / "vae" / "config.json", pipeline.sample_size * pipeline.models["vae"].config.factor
            write_json(vae, read_json(vae) | {"sample_size": side})
        absent = {place: [None, None] for place in system.optional if place not in index}
        write_json(temporary / "model_index.json", index | absent | dict(pipeline.options))
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8")

    files.write_folder(folder, write)


def _read_schedule(path: Path, corrections: Mapping[str, Any], singles: Sequence[Weights] = ()) -> Schedule:
    config = read_json(path, infinite=True)
    try:
        check(config, SCHEDULER, "scheduler_config.json")
        config |= corrections
        for single in singles:
            config = single_files.schedule_of(single, config)
        return read_schedule(config)
    except (ValueError, KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
        words = error if isinstance(error, ValueError) else f"scheduler_config.json is no scheduler's ({error!r})"
        raise ValueError(f"{path.parent}: {words}") from error
