"""From a run to a folder: diffusers' where it has an equal, a LoRA file of an adapter, else a folder of our own.

Our own, which `lgm sample --from` reads, holds config.json (the run's config), model.safetensors (float32; every tensor
is named by its path, "denoiser/blocks/..." or "text/..."), autoencoder/ and tokenizer.json.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgm import config as schema
from lgm import files
from lgm.casting import cast
from lgm.files import write_atomically, write_json
from lgm.interop.components import component, read_carried, read_json, save_component
from lgm.interop.keymap import flatten, unflatten
from lgm.interop.lora_export import STEM, Form, save_lora
from lgm.interop.lora_files import LoRA
from lgm.interop.schedulers import TARGET_OF, read_schedule
from lgm.interop.schedules import Schedule
from lgm.interop.single_file import original_of
from lgm.interop.tensor_files import open_weights, save
from lgm.models import Model, Params, build, family_of
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


def export_run(system: System, trained: Params, frozen: Params, out: str, dtype: str | None = None,
               form: Form | None = None) -> str:
    """Write a denoiser's run to the new folder `out`, whole or not at all; returns one line on what was written.

    The weights of a diffusers folder are cast to `dtype` where given; a LoRA has the names of `form`, diffusers' by
    default.

    Raises ValueError, one line, where a folder's text encoders tie the run to diffusers and a part has no equal there.
    """
    check_new(out)
    if dtype is not None and (system.config.lora or system.folder is None):
        raise ConfigError(f"--dtype={dtype} goes with a run that is exported as a folder of diffusers")
    if form is not None and not system.config.lora:
        raise ConfigError(f"--lora-form={form} goes with a run of config.lora")
    if system.config.lora:
        _export_lora(system, trained["lora"], out, form or "diffusers")
        readers = "diffusers' load_lora_weights" if form != "kohya" else "kohya's scripts, ComfyUI"
        return f"wrote {out}/{STEM}.safetensors, which {readers} and `lgm sample --lora` read"
    if system.folder is None:
        _export_own(system, trained, frozen, out)
        reason = "captions are masked and their encoder is trained along" if system.text else "it has no text"
        return f"wrote {out}, which `lgm sample --from` reads; diffusers has no such pipeline: {reason}"
    pipeline, params = _pipeline_of(system, trained, frozen)
    save_pipeline(out, pipeline, params, DTYPES[dtype])
    return f"wrote {out}, a {pipeline.name} that diffusers and `lgm sample --from` read"


def check_new(out: str) -> None:
    """Raise ConfigError, one line, where something is at `out` already."""
    if files.place(out, "--out").exists():
        raise ConfigError(f"--out={out} is there already; give the name of a new folder")


def export_folder(
    folder: str, out: str, *, single_file: str | Sequence[str] = (), loras: Sequence[LoRA] = (),
    dtype: str | None = None,
) -> str:
    """Write a diffusers folder anew, with the networks of a `single_file` in its own's place, `loras` merged and the
    weights cast to `dtype`; returns one line on what was written. Raises ValueError, one line, as `load_pipeline`."""
    check_new(out)
    pipeline, params = load_pipeline(folder, single_file=single_file, loras=loras)
    save_pipeline(out, pipeline, params, DTYPES[dtype])
    return f"wrote {out}, a {pipeline.name} that diffusers, `lgm sample --from` and `lgm import` read"


def _export_lora(system: System, adapter: Params, out: str, form: Form) -> None:
    config = system.config
    theirs = released(config.model)
    if theirs is None:
        raise ConfigError(f"diffusers has no names for the LoRA of a {config.family}")
    if form == "kohya" and theirs.kohya is None:
        which = theirs.name.removesuffix("Pipeline")
        raise ConfigError(f"kohya's scripts have no names for a {which}; export its LoRA "
                          "without --lora-form=kohya")
    model, _ = theirs.form(config.model, None)  # whose matrices are the same
    place, name = theirs.denoiser, theirs.component
    original = original_of(place, name, model) if theirs.kohya == "original" else None
    adapters = {place: (component(name).rules(model), jax.device_get(adapter))}
    files.write_folder(out, lambda folder: save_lora(folder, adapters, config.lora, form, original))


def export_autoencoder(folder: str, config: AutoencoderConfig, params: Params, latents: np.ndarray) -> str:
    """Write an AutoencoderKL whose scale is that of `latents`; returns one line on what was written."""
    config = dataclasses.replace(config, scale=float(1.0 / np.std(latents)), shift=0.0)
    files.write_folder(folder, lambda path: save_component(path, "AutoencoderKL", config, params))
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
    pipeline = dataclasses.replace(theirs, models=models, schedule=schedule, process=schedule.build(), sample_size=size,
                                   carried=_carried(config, theirs))  # fmt: skip
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


def _export_own(system: System, trained: Params, frozen: Params, out: str) -> None:
    values = schema.to_dict(system.config) | {"init_from": None}

    def write(folder: Path) -> None:
        tensors = ((name, cast(name, np.asarray(leaf), np.float32)) for name, leaf in flatten(trained).items())
        save(tensors, folder, WEIGHTS)
        save_autoencoder(folder / AUTOENCODER, system.autoencoder.config, frozen["autoencoder"], np.float32)
        if system.text:
            write_atomically(folder / TOKENIZER, system.tokenizer.tokenizer.to_str().encode())
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
