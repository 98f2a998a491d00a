"""diffusers' folders of text-to-image systems, read and written: model_index.json and all it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lgm import files
from lgm.data.text_tokenizers import TextTokenizer, read_text_tokenizer, save_text_tokenizer
from lgm.interop import single_file as single_files
from lgm.interop.components import (
    COMPONENTS,
    load_component,
    names_in_library,
    read_carried,
    read_config,
    read_json,
    save_component,
    write_json,
)
from lgm.interop.diffusers_configs import SCORED_IDS
from lgm.interop.fields import FLAG, Kind, check, fixed
from lgm.interop.lora import LoRA, check_all_used, merge
from lgm.interop.original_names import Original
from lgm.interop.scaled import descaled
from lgm.interop.schedulers import read_schedule, write_schedule
from lgm.interop.schedules import Schedule
from lgm.interop.single_file import original_of, section
from lgm.interop.tables import SCHEDULER
from lgm.interop.weights import Weights, open_weights
from lgm.models import Model, Params, Told, build, family_of
from lgm.models.autoencoder import AutoencoderConfig
from lgm.parsing import near_miss
from lgm.process import Process
from lgm.untrusted import shown

PENULTIMATE = {"hidden": "penultimate"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a pipeline class is made of: its denoiser, tokenizers by text encoder, and what those hand out."""

    denoiser: str
    tokenizer_of: Mapping[str, str]
    encoder_options: Mapping[str, Any]


LAYOUTS: dict[str, Layout] = {
    "StableDiffusionPipeline": Layout("unet", {"text_encoder": "tokenizer"}, {}),
    "StableDiffusionXLPipeline": Layout(
        "unet", {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}, PENULTIMATE
    ),
    "StableDiffusion3Pipeline": Layout(
        "transformer",
        {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"},
        PENULTIMATE,
    ),
    "FluxPipeline": Layout("transformer", {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}, {}),
    "DiTPipeline": Layout("transformer", {}, {}),
}


def _is_names(value: Any) -> bool:
    pairs = value.items() if isinstance(value, dict) else [("", None)]
    return all(key.isdecimal() and len(key) < 8 and isinstance(name, str) for key, name in pairs)


# entries of model_index.json that are no parts; those that only a pipeline of another name has are carried
OPTIONS = {
    "force_zeros_for_empty_prompt": FLAG,
    "id2label": Kind("an object of texts by number", _is_names),
    "is_distilled": fixed(False),  # of Flux.2
    "requires_aesthetics_score": FLAG,
}
FORMAT = "0.38.0"  # the version of diffusers that first reads all that is written here as it is meant
SCORES = (6.0, 2.5)  # of a picture and of what it should not be, as SDXL's refiner is told by diffusers
VARIANTS = ("Img2Img", "Inpaint")  # of a pipeline's class, with the same parts


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: a static argument of compiled functions
class Pipeline:
    """A text-to-image system without its parameters.

    name: diffusers' class. models, classes: every network and its class by its place in the folder ("unet" or
    "transformer", "vae", "text_encoder", ...). sample_size: the side in latent pixels that the denoiser was trained at.
    options: the other entries of model_index.json. carried: what the config.json of each network says besides.
    variant: what stands before "Pipeline" in the folder's own class, one of `VARIANTS` or nothing.
    """

    name: str
    models: Mapping[str, Model]
    classes: Mapping[str, str]
    tokenizers: Mapping[str, TextTokenizer]
    schedule: Schedule
    process: Process
    sample_size: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    carried: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    variant: str = ""

    @property
    def layout(self) -> Layout:
        """What its class is made of."""
        return LAYOUTS[self.name]

    @property
    def scored(self) -> bool:
        """Whether the denoiser is told an aesthetic score, as SDXL's refiner is."""
        return bool(self.options.get("requires_aesthetics_score"))

    @property
    def inpaints(self) -> bool:
        """Whether the denoiser sees a mask and the picture around it."""
        return self.told.beside > 0

    @property
    def told(self) -> Told:
        """What the denoiser is told."""
        return family_of(self.denoiser.config).told(self.denoiser.config)

    @property
    def denoiser(self) -> Model:
        """The network that is sampled from."""
        return self.models[self.layout.denoiser]


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
    name = index["_class_name"]
    layout = LAYOUTS[name]
    singles = [descaled(open_weights(path)) for path in ([single_file] if isinstance(single_file, str | Path) else
                                                         single_file)]  # fmt: skip
    models, params, classes, tokenizers, carried, used = {}, {}, {}, {}, {}, set()
    sections: dict[Path, dict[str, single_files.Section]] = {single.path: {} for single in singles}
    for place in (layout.denoiser, "vae", *layout.tokenizer_of):
        if place not in parts:
            continue  # SD3 without T5
        if place in layout.tokenizer_of and not parts.get(layout.tokenizer_of[place]):
            raise ValueError(f"{folder}/model_index.json names no {layout.tokenizer_of[place]}, which {place} needs")
        classes[place] = OLD_NAMES.get((name, parts[place][1]), parts[place][1])
        changes = {} if place == "vae" else {"dtype": dtype}
        if classes[place].startswith("CLIP"):
            changes |= layout.encoder_options
        config = read_config(folder / place, classes[place], **changes)
        if place == "unet" and index.get("requires_aesthetics_score"):
            changes |= _scored(config)
            config = dataclasses.replace(config, **changes)
        carried[place] = read_carried(folder / place, classes[place])
        if place in layout.tokenizer_of:
            tokenizers[place] = read_text_tokenizer(folder / layout.tokenizer_of[place])
            check_tokenizer(tokenizers[place], config, folder / layout.tokenizer_of[place])
        found = None
        for single in singles:
            here = section(single, place, classes[place], config, names_in_library(classes[place], config))
            if here is not None and found is not None:
                raise ValueError(f"{found.weights.path} and {single.path} both hold the {place}; give one of them")
            if here is not None:
                single_files.check_apart(sections[single.path], place, here)
                sections[single.path][place] = found = here
        if only is not None and place not in only:
            models[place] = build(config)
            continue
        models[place], params[place] = load_component(
            folder / place,
            classes[place],
            held_in=None if place == "vae" else dtype,
            shard=shard,
            weights=None if found is None else found.weights,
            adapt=_merging(loras, place, original_of(place, classes[place], config), used),
            **changes,
        )
    check_all_used(loras, used)
    for single in singles:
        single_files.check_all_used(single, sections[single.path], name, {p: m.config for p, m in models.items()})
    check_autoencoder(models["vae"].config, name, folder / "vae")
    if name == "StableDiffusionXLPipeline":
        _check_text({place: model.config for place, model in models.items()}, folder)
    variant = index["_variant"]
    corrections = CORRECTED.get(name.replace("Pipeline", f"{variant}Pipeline"), {})
    schedule = _read_schedule(folder / "scheduler" / "scheduler_config.json", corrections, singles)
    size = read_json(folder / layout.denoiser / "config.json").get("sample_size") or DEFAULT_SIZE.get(name, 64)
    options = {k: v for k, v in index.items() if not k.startswith("_") and not isinstance(v, list)}
    if family_of(config := models[layout.denoiser].config).told(config).beside:
        variant = "Inpaint"
    elif index.get("requires_aesthetics_score") and name == "StableDiffusionXLPipeline":
        variant = variant or "Img2Img"  # the plain pipeline has no such option
    pipeline = Pipeline(name, models, classes, tokenizers, schedule, schedule.build(), size, options, carried, variant)
    return pipeline, params


def _scored(config: Any) -> dict[str, int]:
    """What a U-Net's configuration, which tells only the sum, is where an aesthetic score stands for a target size."""
    if not config.micro_ids:
        return {}
    more = (config.micro_ids - SCORED_IDS) * config.micro_dim
    return {"micro_ids": SCORED_IDS, "pooled_dim": config.pooled_dim + more}


def _check_text(configs: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError, one line, where SDXL's U-Net takes other widths than its text encoders give."""
    unet, width = configs["unet"], sum(config.width for place, config in configs.items() if place.startswith("text_"))
    path = folder / "unet" / "config.json"
    if unet.text_dim != width:
        raise ValueError(f"{path}: cross_attention_dim={unet.text_dim}, but the text encoders that model_index.json "
                         f"names give {width}")
    if unet.pooled_dim != (pooled := configs["text_encoder_2"].projection_dim):
        raise ValueError(f"{path}: projection_class_embeddings_input_dim leaves {unet.pooled_dim} for the text's "
                         f"vector, which has {pooled}; does requires_aesthetics_score in model_index.json fit it?")


def _read_index(folder: Path) -> tuple[dict[str, Any], dict[str, list]]:
    """(model_index.json, its parts that are there). Raises ValueError where a necessary one is not."""
    path = folder / "model_index.json"
    index = read_json(path)
    name = index.get("_class_name", "")
    name = name if isinstance(name, str) else ""
    variant = next((variant for variant in VARIANTS if name.endswith(f"{variant}Pipeline")), "")
    name = name.replace(f"{variant}Pipeline", "Pipeline")
    index |= {"_class_name": name, "_variant": variant}
    if name not in LAYOUTS:
        raise ValueError(f"{path}: _class_name={shown(name)} is not known{near_miss(name, LAYOUTS)}")
    layout = LAYOUTS[name]
    known = {layout.denoiser, "vae", "scheduler", *layout.tokenizer_of, *layout.tokenizer_of.values()}
    parts = {place: entry for place, entry in index.items() if isinstance(entry, list)}
    for place, entry in index.items():
        pair = isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str | None) for e in entry)
        if place in known and not pair or isinstance(entry, list) and not pair:
            raise ValueError(f"{path}: {place}={shown(entry)} is no pair of a library and a class")
    parts = {place: entry for place, entry in parts.items() if entry[1] is not None}
    needed = ["text_encoder_2"] if name == "StableDiffusionXLPipeline" else list(layout.tokenizer_of)[:1]
    for place in (layout.denoiser, "vae", "scheduler", *needed):  # SDXL's refiner has its second encoder alone
        if place not in parts:
            raise ValueError(f"{path} names no {place}, which a {name} needs")
    check(index, {key: kind for key, kind in OPTIONS.items() if key not in parts}, str(path))
    return index, parts


def check_tokenizer(tokenizer: TextTokenizer, encoder: Any, folder: Path) -> None:
    """Raise ValueError, one line, for a tokenizer of more words, or longer texts, than its encoder has room for."""
    if (most := tokenizer.largest_id) >= encoder.vocab_size:
        raise ValueError(f"{folder} gives ids up to {most}; its text encoder knows {encoder.vocab_size}")
    longest = family_of(encoder).reach(encoder)
    if longest is not None and tokenizer.max_length > longest:
        raise ValueError(f"{folder}: model_max_length={tokenizer.max_length} is more than its text encoder takes "
                         f"({longest})")


def check_autoencoder(config: AutoencoderConfig, name: str, folder: Path) -> None:
    """Raise ValueError, one line, for a standardization of latents that diffusers' pipeline `name` does not make."""
    if config.shift and name not in ("StableDiffusion3Pipeline", "FluxPipeline"):
        raise ValueError(f"{folder}: shift_factor={config.shift} has no part in a {name}; give null")
    if config.latents_mean is not None and name != "StableDiffusionXLPipeline":
        raise ValueError(f"{folder}: latents_mean and latents_std have no part in a {name}; give null")


def _merging(loras: Sequence[LoRA], place: str, original: Original | None, used: set) -> Callable[[Weights], Weights]:
    """A change of weights that merges the LoRAs and notes in `used` what of them it took."""

    def adapt(weights: Weights) -> Weights:
        weights, found = merge(weights, loras, place, original)
        used.update(found)
        return weights

    return adapt


OLD_NAMES = {("DiTPipeline", "Transformer2DModel"): "DiTTransformer2DModel"}  # as the released folders have it
DEFAULT_SIZE = {"FluxPipeline": 128}  # its transformer's configuration does not say


def save_pipeline(folder: str | Path, pipeline: Pipeline, params: Mapping[str, Params], dtype: Any = None) -> None:
    """Write a folder that `DiffusionPipeline.from_pretrained` reads; weights cast to `dtype` where given.

    The folder appears whole or not at all. Raises ValueError, one line, when it exists or when a part has no equal in
    diffusers.
    """
    folder = files.place(folder, "--out")
    if folder.exists():
        raise ValueError(f"{folder} is there already; give the name of a new folder")

    def write(temporary: Path) -> None:
        name = pipeline.name.replace("Pipeline", f"{pipeline.variant}Pipeline")
        index: dict[str, Any] = {"_class_name": name, "_diffusers_version": FORMAT}
        for place, model in pipeline.models.items():
            name = pipeline.classes[place]
            index[place] = [COMPONENTS[name].library, name]
            options = pipeline.carried.get(place, {})
            save_component(temporary / place, name, model.config, params[place], dtype, options)
        for place, tokenizer in pipeline.tokenizers.items():
            place = pipeline.layout.tokenizer_of[place]
            index[place] = ["transformers", tokenizer.config.get("tokenizer_class", "PreTrainedTokenizerFast")]
            save_text_tokenizer(tokenizer, temporary / place)
        scheduler = write_schedule(pipeline.schedule)
        index["scheduler"] = ["diffusers", scheduler["_class_name"]]
        write_json(temporary / "scheduler" / "scheduler_config.json", scheduler)
        if pipeline.sample_size != DEFAULT_SIZE.get(pipeline.name):
            config = temporary / pipeline.layout.denoiser / "config.json"
            write_json(config, read_json(config) | {"sample_size": pipeline.sample_size})
        vae = temporary / "vae" / "config.json"  # whose size is that of the tiles that diffusers may decode in
        side = pipeline.sample_size * pipeline.models["vae"].config.factor
        write_json(vae, read_json(vae) | {"sample_size": side})
        absent = {place: [None, None] for place in OPTIONAL.get(pipeline.name, ()) if place not in index}
        write_json(temporary / "model_index.json", index | absent | dict(pipeline.options))

    files.write_folder(folder, write)


# parts that a pipeline can do without; model_index.json says so
OPTIONAL = {
    "StableDiffusionPipeline": ("safety_checker", "feature_extractor", "image_encoder"),
    "StableDiffusionXLPipeline": ("text_encoder", "tokenizer", "feature_extractor", "image_encoder"),
    "StableDiffusion3Pipeline": ("text_encoder_3", "tokenizer_3", "feature_extractor", "image_encoder"),
    "FluxPipeline": ("feature_extractor", "image_encoder"),
}


# what diffusers' pipeline sets in any scheduler's configuration, whatever its file says
CORRECTED = {
    **dict.fromkeys(("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
                    {"steps_offset": 1, "clip_sample": False}),
    "StableDiffusionInpaintPipeline": {"steps_offset": 1, "skip_prk_steps": True},
}  # fmt: skip


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
