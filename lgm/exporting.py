"""From a run or a folder of diffusers to what others read: a folder of diffusers, single files in the original layout,
a LoRA file, a program that jax alone runs, else a folder of our own.

Our own, which `lgm sample --from` reads, holds config.json (the run's config), model.safetensors (float32; every tensor
is named by its path, "denoiser/blocks/..." or "text/..."), autoencoder/ and tokenizer.json.
"""

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgm import config as schema
from lgm import files
from lgm.artifact import HOW_TO_RUN, Drawing, Program, program_of_folder, program_of_run, save_program
from lgm.casting import cast
from lgm.files import write_atomically, write_json
from lgm.interop.components import component, names_in_library, read_carried, read_json, save_component
from lgm.interop.keymap import flatten, unflatten
from lgm.interop.lora_export import STEM, Form, Naming, Pair, pairs_of, pairs_of_file, save_lora
from lgm.interop.lora_files import LoRA, check_all_used
from lgm.interop.schedulers import TARGET_OF, read_schedule
from lgm.interop.schedules import Schedule
from lgm.interop.single_export import Network, save_originals
from lgm.interop.single_file import original_of
from lgm.interop.tensor_files import open_weights, save
from lgm.model_card import CARD, Stated, card, run_sections, task_of
from lgm.models import Model, Params, build, family_of, lora
from lgm.models.autoencoder import AutoencoderConfig
from lgm.parallel import Layout, put
from lgm.parsing import ConfigError
from lgm.system import System, build_system, sharder
from lgm.systems import released
from lgm.systems.folders import load_pipeline, save_pipeline
from lgm.systems.release import TEXT, Pipeline, Released
from lgm.weights import is_diffusers, locate, save_autoencoder

WEIGHTS, AUTOENCODER, TOKENIZER = "model", "autoencoder", "tokenizer.json"
DTYPES = {None: None, "float32": np.float32, "bfloat16": jnp.bfloat16, "float16": np.float16}
LORA_FORMS: dict[str, Form] = {"lora-diffusers": "diffusers", "lora-kohya": "kohya", "lora-comfy": "comfy"}
FORMS = ("diffusers", "original", *LORA_FORMS, "stablehlo")
WHOLE = ("diffusers", "original", "stablehlo")  # forms for which a LoRA's run needs the weights that it changes
_READERS = {"diffusers": "diffusers' load_lora_weights", "kohya": "kohya's scripts, ComfyUI", "comfy": "ComfyUI"}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is asked of an export. `form` is one of FORMS, by default "lora-diffusers" of a LoRA's run and "diffusers"
    of all else, `dtype` one of DTYPES, `drawing` is of form "stablehlo" alone; `stated` goes into its card."""

    form: str | None = None
    dtype: str | None = None
    stated: Stated = Stated()
    drawing: Drawing = Drawing()

    def __post_init__(self):
        if self.form is not None and self.form not in FORMS:
            raise ConfigError(f"--form={self.form} is unknown; there are {', '.join(FORMS)}")
        if self.form != "stablehlo" and (given := self.drawing.given):
            raise ConfigError(f"--{given} goes with --form=stablehlo")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a run's export comes from, for its card."""

    workdir: str = ""
    images: int = 0
    weights: str = "ema"


def export_run(system: System, trained: Params, frozen: Params, out: str, wanted: Wanted = Wanted(),
               origin: Origin = Origin()) -> str:
    """Write a denoiser's run to the new folder `out`, whole or not at all; returns one line on what was written.

    A LoRA's run gives its LoRA, or in a form of whole weights those that it is merged into. Raises ValueError, one
    line, where a folder's text encoders tie the run to diffusers and a part has no equal there.
    """
    check_new(out)
    config, form = system.config, wanted.form or ("lora-diffusers" if system.config.lora else "diffusers")
    sections = run_sections(config, origin.workdir, origin.images, origin.weights) if origin.workdir else {}
    say = functools.partial(card, config.name, stated=wanted.stated, sections=sections,
                            task=task_of(config.model, config.text is not None))  # fmt: skip
    if form in LORA_FORMS:
        if not config.lora:
            raise ConfigError(f"--form={form} goes with a run of config.lora; this one's weights are all its own")
        return _export_lora(system, trained["lora"], out, LORA_FORMS[form], DTYPES[wanted.dtype], say)
    if config.lora:
        trained = {"denoiser": lora.merged(frozen["denoiser"], trained["lora"], config.lora)}
        system = dataclasses.replace(system, denoiser=build(config.model))
    if form == "stablehlo":
        program = program_of_run(system, {**frozen, **trained}, wanted.drawing)
        return _export_program(program, out, DTYPES[wanted.dtype], say)
    if system.folder is None:
        reason = "captions are masked and their encoder is trained along" if system.text else "it has no text"
        if form == "original" or wanted.dtype is not None:
            flag = "--form=original" if form == "original" else f"--dtype={wanted.dtype}"
            raise ConfigError(f"{flag} goes with a run that is exported as a folder of diffusers, which has no such "
                              f"pipeline: {reason}")
        _export_own(system, trained, frozen, out, say)
        return f"wrote {out}, which `lgm sample --from` reads; diffusers has no such pipeline: {reason}"
    pipeline, params = _pipeline_of(system, trained, frozen)
    return _export_pipeline(pipeline, params, out, form, DTYPES[wanted.dtype], say)


def export_folder(folder: str, out: str, *, single_file: str | Sequence[str] = (), loras: Sequence[LoRA] = (),
                  wanted: Wanted = Wanted()) -> str:  # fmt: skip
    """Write a diffusers folder in the form that is `wanted`, with the networks of a `single_file` in its own's place
    and `loras` merged; of a form of LoRAs the one LoRA alone, by the folder's names. Weights keep the types that they
    are of where none is asked for. Returns one line on what was written. Raises ValueError, one line, as
    `load_pipeline`."""
    check_new(out)
    form = wanted.form or "diffusers"
    dtype = DTYPES[wanted.dtype]
    title = files.place(folder, "--from").name
    say = functools.partial(card, title, stated=wanted.stated)
    if form in LORA_FORMS:
        if len(loras) != 1 or single_file:
            raise ConfigError(f"--form={form} with --from=DIFFUSERS_DIR writes one LoRA file anew; give it by --lora, "
                              "and no --single-file")
        return _convert_lora(folder, loras[0], out, LORA_FORMS[form], dtype, say)
    pipeline, params = load_pipeline(folder, single_file=single_file, loras=loras)
    say = functools.partial(say, task=task_of(pipeline.denoiser.config, True))
    if form == "stablehlo":
        return _export_program(program_of_folder(pipeline, params, wanted.drawing), out, dtype, say)
    return _export_pipeline(pipeline, params, out, form, dtype, say)


def _export_pipeline(pipeline: Pipeline, params: Mapping[str, Params], out: str, form: str, dtype: Any,
                     say: Callable[..., str]) -> str:
    """A system as a folder of diffusers, or as single files in the layout of its original."""
    tags = [_kind(pipeline.process), *(["diffusers"] if form == "diffusers" else [])]
    if form == "diffusers":
        held = str(np.dtype(_held(pipeline, dtype)))
        loading = (f"```python\nimport torch\nfrom diffusers import DiffusionPipeline\n\npipeline = DiffusionPipeline."
                   f'from_pretrained("path/of/this/folder", torch_dtype=torch.{held})\n```\n\n'
                   'or `lgm sample --from=path/of/this/folder --prompt="..." --out=x.png`.')
        text = say(f"A {pipeline.name} in the layout of diffusers.", loading, library="diffusers", tags=tags)
        save_pipeline(out, pipeline, params, dtype, text)
        return f"wrote {out}, a {pipeline.name} that diffusers, `lgm sample --from` and `lgm import` read"
    configs = {place: model.config for place, model in pipeline.models.items()}
    networks = {place: Network(pipeline.classes[place], config, params[place], pipeline.beside.get(place),
                               pipeline.held.get(place) if dtype is None else dtype)
                for place, config in configs.items()}  # fmt: skip
    whole, written = pipeline.system.whole(configs), []

    def write(path: Path) -> None:
        written.extend(save_originals(path, networks, whole, pipeline.schedule))
        names = " ".join(f"--single-file={name}" for name in written)
        loading = (f"`lgm sample --from=FOLDER {names}`, `from_single_file(..., config=FOLDER)` of diffusers and "
                   f"ComfyUI read {'it' if whole else 'them'}, where FOLDER is a {pipeline.name} of this architecture "
                   "in the layout of diffusers; scheduler and tokenizers are that folder's.")
        text = say(f"The weights of a {pipeline.name} in the layout of its original, "
                   f"{'in one file' if whole else 'each network in a file of its own'}.", loading,
                   library="diffusers", tags=tags)  # fmt: skip
        (path / CARD).write_text(text, encoding="utf-8")

    files.write_folder(out, write)
    return f"wrote {out}/{written[0]}{f' and {len(written) - 1} more' if written[1:] else ''}, in the original layout"


def _held(pipeline: Pipeline, dtype: Any) -> Any:
    """The type that a folder's denoiser is written in."""
    types = list(pipeline.held.get(pipeline.system.denoiser, {}).values())
    return dtype or max(types, key=types.count, default=np.float32)


def _kind(process: Any) -> str:
    return "flow-matching" if process.name == "rectified_flow" else "diffusion"


def _export_program(program: Program, out: str, dtype: Any, say: Callable[..., str]) -> str:
    def write(path: Path) -> None:
        save_program(path, program, dtype)
        text = say(program.about, HOW_TO_RUN, library="jax", tags=["stablehlo", "jax"], task=program.task)
        (path / CARD).write_text(text, encoding="utf-8")

    files.write_folder(out, write)
    return f"wrote {out}: `python {out}/run.py --out=x.png` draws with jax alone, on CPU, GPU or TPU"


def check_new(out: str) -> None:
    """Raise ConfigError, one line, where something is at `out` already, or nothing can be."""
    path = files.place(out, "--out")
    if path.exists():
        raise ConfigError(f"--out={out} is there already; give the name of a new folder")
    files.check_writable(path, "--out")


def _export_lora(system: System, adapter: Params, out: str, form: Form, dtype: Any, say: Callable[..., str]) -> str:
    config = system.config
    theirs = released(config.model)
    if theirs is None:
        raise ConfigError(f"diffusers has no names for the LoRA of a {config.family}")
    model, _ = theirs.form(config.model, None)  # whose matrices are the same
    place, name = theirs.denoiser, theirs.component
    pairs = pairs_of(component(name).rules(model), jax.device_get(adapter), config.lora)
    return _write_lora(theirs, {place: (_naming(theirs, place, name, model, form), pairs)}, out, form, dtype, say)


def _convert_lora(folder: str, lora: LoRA, out: str, form: Form, dtype: Any, say: Callable[..., str]) -> str:
    """One LoRA file in another form, by the names of the networks of a folder."""
    pipeline, _ = load_pipeline(folder, only=())
    networks, used = {}, set()
    for place, model in pipeline.models.items():
        name = pipeline.classes[place]
        pairs, found = pairs_of_file(lora, place, names_in_library(name, model.config),
                                     original_of(place, name, model.config))  # fmt: skip
        used |= found
        if pairs:
            networks[place] = _naming(pipeline.system, place, name, model.config, form), pairs
    check_all_used([lora], used)
    say = functools.partial(say, task=task_of(pipeline.denoiser.config, True))
    return _write_lora(pipeline.system, networks, out, form, dtype, say)


def _write_lora(system: Released, networks: Mapping[str, tuple[Naming, Iterable[Pair]]], out: str, form: Form,
                dtype: Any, say: Callable[..., str]) -> str:
    loading = f"`lgm sample --from=FOLDER --lora={STEM}.safetensors`, and {_READERS[form]}"
    loading += "." if form != "diffusers" else (
        f':\n\n```python\npipeline.load_lora_weights("path/of/this/folder", weight_name="{STEM}.safetensors")\n```')
    text = say(f"A LoRA of a {system.name}.", loading, library="diffusers", tags=["lora", "diffusers"], adapter=True)

    def write(path: Path) -> None:
        save_lora(path, networks, form, dtype)
        (path / CARD).write_text(text, encoding="utf-8")

    files.write_folder(out, write)
    return f"wrote {out}/{STEM}.safetensors, which {_READERS[form]} and `lgm sample --lora` read"


def _naming(system: Released, place: str, name: str, config: Any, form: Form) -> Naming:
    """What a network's modules are called in a LoRA file of a form. Raises ConfigError where it has no names."""
    if form == "diffusers":
        return Naming(f"{place}.")
    if system.kohya is None:
        which = system.name.removesuffix("Pipeline")
        raise ConfigError(f"kohya's scripts and ComfyUI have no names for a {which}; export its LoRA by "
                          "--form=lora-diffusers")
    if place != system.denoiser:
        prefixes = system.kohya_text if form == "kohya" else system.comfy_text
        return Naming(prefixes[place])
    original = original_of(place, name, config) if form == "comfy" or system.kohya == "original" else None
    return Naming("diffusion_model." if form == "comfy" else "lora_unet_", original)


def export_autoencoder(folder: str, config: AutoencoderConfig, params: Params, latents: np.ndarray,
                       text: str = "") -> str:  # fmt: skip
    """Write an AutoencoderKL whose scale is that of `latents`, with the `text` of a card; returns one line on what was
    written."""
    config = dataclasses.replace(config, scale=float(1.0 / np.std(latents)), shift=0.0)

    def write(path: Path) -> None:
        save_component(path, "AutoencoderKL", config, params)
        (path / CARD).write_text(text, encoding="utf-8")

    files.write_folder(folder, write)
    return f"wrote {folder}, an AutoencoderKL that diffusers and config.autoencoder read"


def _pipeline_of(system: System, trained: Params, frozen: Params) -> tuple[Pipeline, dict[str, Params]]:
    """The folder that the text came from, with the run's denoiser, autoencoder and schedule in place of its own."""
    config = system.config
    source = config.text.folder
    theirs, params = load_pipeline(source, only=TEXT)
    place = theirs.system.denoiser
    if type(theirs.denoiser.config) is not type(config.model):
        raise ConfigError(f"diffusers' {theirs.name} has no {config.family}; train one with config.text.folder of its "
                          "own system to export it")
    model, weights = config.model, trained["denoiser"]
    if system.conditioning.jump:
        raise ConfigError("config.model.jump=True has no equal in diffusers, whose networks are told one time")
    model, weights = theirs.system.form(model, weights)
    schedule = _schedule_of(system)
    vae = Model(_standard(system, theirs.system), system.autoencoder.module)
    models = dict(theirs.models) | {place: build(model), "vae": vae}
    unit = family_of(model).unit(model)
    rows, columns, _ = system.latent_shape()
    side = rows if rows == columns else round(math.sqrt(rows * columns) / unit) * unit  # a folder names a square's
    size = family_of(model).native_side(model) or side
    if config.text.classes:
        options = {**theirs.options, "id2label": dict(enumerate(config.text.classes))}
        theirs = dataclasses.replace(theirs, options=options)
    # all in the type that was trained: diffusers computes with what files hold, and refuses two types in one pipeline
    pipeline = dataclasses.replace(theirs, models=models, schedule=schedule, process=schedule.build(), sample_size=size,
                                   carried=_carried(config, theirs), held={})  # fmt: skip
    return pipeline, params | {place: weights, "vae": frozen["autoencoder"]}


def _carried(config: schema.Config, theirs: Pipeline) -> dict[str, Mapping[str, Any]]:
    """What the networks' own folders say besides (of the autoencoder whether float16 is too narrow for it), where they
    are others than the text's."""
    place = theirs.system.denoiser
    vae = locate(config.autoencoder)
    carried = {**theirs.carried, "vae": read_carried(vae, theirs.classes["vae"]) if is_diffusers(vae) else {}}
    if config.init_from and (folder := files.local(config.init_from) / place / "config.json").is_file():
        carried[place] = read_carried(folder.parent, theirs.classes[place])
    return carried


def _standard(system: System, theirs: Released) -> AutoencoderConfig:
    """The autoencoder's configuration, if the program of `theirs` standardizes latents as it does."""
    config = system.autoencoder.config
    if config.latents_mean is not None and theirs.standardizes not in ("means", "patches"):
        raise ConfigError(f"config.autoencoder={system.config.autoencoder!r} standardizes each channel by its mean; "
                          f"diffusers' {theirs.name} knows one scale and shift, so that the run cannot be exported")
    return config


def _schedule_of(system: System) -> Schedule:
    """The scheduler that the run is sampled with; the nearest one there is for lgm's own grid of times.

    Its prediction_type is what the run was trained to predict, whatever the folder that it started from says.
    """
    config, given = system.config, system.config.sampling.schedule
    if "_class_name" in given:
        schedule, target = read_schedule(given), config.loss.target
        if schedule.target == target:
            return schedule
        kind = next((kind for kind, ours in TARGET_OF.items() if ours == target), None)
        if kind is None or schedule.process["name"] == "rectified_flow":
            raise ConfigError(f"config.loss.target={target!r} is nothing that diffusers' {given['_class_name']} can be "
                              "told; sample with a schedule of lgm's own, or train its prediction_type")
        return read_schedule({**given, "prediction_type": kind})
    if config.process["name"] == "rectified_flow":
        if config.loss.target != "flow":
            raise ConfigError(f"config.loss.target={config.loss.target!r} of a rectified flow is nothing that a "
                              "scheduler of diffusers can be told; 'flow' is")
        if (own := config.process.get("shift", 1.0)) != 1.0:
            raise ConfigError(f"config.process.shift={own}: diffusers' networks are told how much noise there is, and "
                              "this one another clock; shift config.loss.density and config.sampling.schedule instead")
        shift = system.shift(given.get("shift", 1.0))
        return Schedule({"name": "rectified_flow"}, "flow", "euler", "flow", shift=shift)
    return Schedule(dict(config.process), config.loss.target, "ddim", "trailing")


def _export_own(system: System, trained: Params, frozen: Params, out: str, say: Callable[..., str]) -> None:
    loading = '`lgm sample --from=path/of/this/folder --prompt="..." --out=x.png`'
    text = say("A latent generative model in lgm's own layout.", loading, library="lgm", tags=[_kind(system.process)])
    values = schema.to_dict(system.config) | {"init_from": None}

    def write(folder: Path) -> None:
        tensors = ((name, cast(name, np.asarray(leaf), np.float32)) for name, leaf in flatten(trained).items())
        save(tensors, folder, WEIGHTS)
        save_autoencoder(folder / AUTOENCODER, system.autoencoder.config, frozen["autoencoder"], np.float32)
        if system.text:
            write_atomically(folder / TOKENIZER, system.tokenizer.tokenizer.to_str().encode())
        (folder / CARD).write_text(text, encoding="utf-8")
        write_json(folder / "config.json", values)

    files.write_folder(out, write)


def is_exported(folder: str | Path) -> bool:
    """Whether `folder` is of our own kind."""
    path = files.place(folder, "--from")
    return (path / AUTOENCODER / "config.json").is_file() and (path / "config.json").is_file()


def open_exported(folder: str, layout: Layout | None = None) -> tuple[System, Params, Params]:
    """(system, its whole parameters, frozen parameters) of a folder of our own kind, in the places of `layout` or as
    numpy arrays. Raises ValueError, one line; a network of a module of one's own is one too, until that is imported or
    named in LGM_TRUST, for a folder may be anybody's and a module is code."""
    path = files.local(folder)
    values = read_json(path / "config.json") | {"autoencoder": str(path / AUTOENCODER)}
    _trusted(folder, values)
    if values.get("text") and values["text"].get("encoder"):
        values["text"] = values["text"] | {"tokenizer": str(path / TOKENIZER)}
    system, frozen = build_system(schema.from_dict(values), layout)
    parts = {"denoiser": system.denoiser} | ({"text": system.text} if system.text else {})
    abstract = {name: model.abstract() for name, model in parts.items()}
    weights = open_weights(path)
    leaves = flatten(abstract)
    if missing := sorted(set(leaves) - set(weights.names)):
        raise ValueError(f"{weights.path} lacks {missing[0]!r} of {len(missing)}; is it of another architecture?")
    for name, leaf in leaves.items():
        if weights.shape(name) != leaf.shape:
            raise ValueError(f"{weights.path}: {name!r} has shape {weights.shape(name)}; the model's is {leaf.shape}")
    shard = sharder(layout)
    places = {name: shard(model) for name, model in parts.items()} if shard else jax.tree.map(lambda _: None, abstract)
    place = dict(zip(leaves, jax.tree.leaves(places, is_leaf=lambda leaf: leaf is None), strict=True))
    read = lambda name: np.array(weights.get(name)) if shard is None else put(weights.get(name), place[name])
    return system, unflatten(abstract, {name: read(name) for name in leaves}), frozen


def _trusted(folder: str, values: dict[str, Any]) -> None:
    text = values.get("text")
    for section, key in ((values.get("model"), "family"), (values.get("loss"), "name"),
                         (text.get("encoder") if isinstance(text, dict) else None, "family")):  # fmt: skip
        name = section.get(key) if isinstance(section, dict) else None
        module, colon, _ = name.partition(":") if isinstance(name, str) else ("", "", "")
        if colon and module not in sys.modules and module not in os.environ.get("LGM_TRUST", "").split(","):
            raise ConfigError(f"{folder} names the module {module}, whose code would be run; where you know it, set "
                              f"LGM_TRUST={module}")
