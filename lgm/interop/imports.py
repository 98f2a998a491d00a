"""From a diffusers folder to a run: its text encoders as a run's frozen ones, its weights to start from, its config."""

from __future__ import annotations

import dataclasses
import functools
import pprint
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgm import config as schema
from lgm import files
from lgm.data import open_images
from lgm.files import write_atomically
from lgm.interop.components import component, write_json
from lgm.interop.diffusers_dir import SCORES, Pipeline, load_pipeline
from lgm.interop.keymap import check
from lgm.interop.pipelines import defaults_of
from lgm.interop.prompts import encode, nothing, tokenize, zeros_for_nothing
from lgm.interop.schedulers import write_schedule
from lgm.interop.weights import Weights, load, open_weights
from lgm.models import Conditioning, Model, Params, family_of
from lgm.parsing import ConfigError, as_dict

FREE = ("dtype", "remat", "group")  # what a run may choose otherwise than the weights it starts from


@dataclasses.dataclass(frozen=True, eq=False)
class FolderText:
    """The frozen text encoders and tokenizers of a diffusers folder, as a run's text side.

    Captions become one row of ids: those of all encoders side by side, in the order of `lengths`. `size` is that of
    the images, which SDXL is told. A class-conditional system's captions name classes.
    """

    pipeline: Pipeline
    size: tuple[int, int]
    lengths: Mapping[str, int]

    def encode(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids [B, L] int32, mask [B, L] bool); a row of the mask is False where there is no caption."""
        ids = self._joined(tokenize(self.pipeline, captions))
        return ids, np.ones(ids.shape, bool)

    @property
    def unconditional(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask [L] of no caption."""
        ids = self._joined(nothing(self.pipeline, 1))[0]
        return ids, np.zeros(ids.shape, bool)

    def condition(self, params: Mapping[str, Params], ids_BL: jax.Array, mask_BL: jax.Array) -> Conditioning:
        """What the denoiser is told, as the folder's own pipeline tells it."""
        ends = np.cumsum(list(self.lengths.values()))[:-1]
        ids = dict(zip(self.lengths, jnp.split(ids_BL, ends, 1), strict=True))
        cond = encode(self.pipeline, params, ids, self.size, defaults_of(self.pipeline).guidance)
        if self.pipeline.scored:
            scores_B = jnp.where(mask_BL.any(1), *SCORES)
            cond = dataclasses.replace(cond, micro=cond.micro.at[:, -1].set(scores_B))
        if not zeros_for_nothing(self.pipeline):
            return cond
        some_B = mask_BL.any(1)
        text = jnp.where(some_B[:, None, None], cond.text, 0)
        return dataclasses.replace(cond, text=text, pooled=jnp.where(some_B[:, None], cond.pooled, 0))

    def _joined(self, ids: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([ids[place] for place in self.lengths], 1).astype(np.int32)


def load_text(
    folder: str,
    size: tuple[int, int],
    dtype: str,
    shard: Callable[[Model], Any] | None = None,
    classes: Sequence[str] = (),
) -> tuple[FolderText, dict[str, Params]]:
    """(the text side of a folder, the parameters of its text encoders by place), computed and held in `dtype`.

    `classes` are names for those of a class-conditional system, in the place of its own.
    """
    places = ("text_encoder", "text_encoder_2", "text_encoder_3")
    pipeline, params = load_pipeline(folder, dtype=dtype, shard=shard, only=places)
    if classes:
        pipeline = dataclasses.replace(pipeline, options={**pipeline.options, "id2label": dict(enumerate(classes))})
    lengths = {place: ids.shape[1] for place, ids in nothing(pipeline, 1).items()}
    return FolderText(pipeline, size, lengths), params


def open_denoiser(folder: str, model: Model, key: str = "config.init_from") -> Callable[..., Params]:
    """`read(dtype=None, shardings=None)` of the weights of a folder's denoiser, once they are seen to be for `model`.

    The configuration must be the folder's but for how it computes. Raises ConfigError, one line, naming what differs.
    """
    pipeline, _ = load_pipeline(folder, only=())
    theirs = pipeline.denoiser.config
    if type(theirs) is not type(model.config):
        found, wanted = family_of(theirs).name, family_of(model.config).name
        raise ConfigError(f"{key}={folder!r} holds a {found}; config.model.family={wanted!r} cannot start from it")
    for name, value in as_dict(theirs).items():
        mine = as_dict(model.config)[name]
        if name not in FREE and mine != value:
            raise ConfigError(f"config.model.{name}={mine!r}, but that of {key}={folder!r} is {value!r}")
    place = pipeline.layout.denoiser
    rules, weights = _open_checked(files.local(folder) / place, pipeline.classes[place], model)
    return functools.partial(load, rules, model.abstract(), weights)


def _open_checked(folder: Path, name: str, model: Model) -> tuple[list, Weights]:
    """(key map, weights) of the network of class `name` in a folder, which are seen to be for `model`; none is read."""
    kind = component(name)
    rules, weights = kind.rules(model.config), kind.prepare(open_weights(folder))
    try:
        check(rules, model.abstract(), weights.names, weights.shape)
    except ValueError as error:
        raise ConfigError(f"{weights.path}: {error}") from error
    return rules, weights


def import_folder(folder: str, workdir: str) -> Path:
    """Make `workdir` a run that starts from a diffusers folder: config.json, and config.py to train it with.

    The denoiser is what is trained; the folder's text encoders and autoencoder stay frozen, and are read from it.
    Returns the path of config.py. Raises ValueError, one line, for a folder that cannot be read or a run that is there.
    """
    run, source = files.place(workdir, "--workdir"), files.place(folder, "--from")
    source = str(source if files.is_remote(source) else source.resolve())
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ConfigError(f"--workdir={workdir} is there already; give the name of a new folder")
    values = config_of(source, run.name)
    config = schema.from_dict(values)
    pipeline, _ = load_pipeline(source, only=())
    for place, model in pipeline.models.items():  # what is damaged shows now, not when it trains
        _open_checked(files.local(source) / place, pipeline.classes[place], model)
    write_json(run / "config.json", schema.to_dict(config))
    path = run / "config.py"
    write_atomically(path, _page(values, folder, workdir).encode())
    return path


def config_of(folder: str, name: str) -> dict[str, Any]:
    """A run's config, as plain values, that goes on from a diffusers folder at the size that it was trained at."""
    pipeline, _ = load_pipeline(folder, only=())
    autoencoder = pipeline.models["vae"].config
    model = pipeline.denoiser.config
    if pipeline.inpaints:
        raise ConfigError(f"--from={folder} holds a U-Net that inpaints (in_channels={model.channels + model.beside}), "
                          "and no data set here has masks to train one with; `lgm sample` and `lgm export` take it")
    if pipeline.schedule.process["name"] == "edm":
        raise ConfigError(f"--from={folder} holds a network that is told log(sigma) / 4, as its scheduler says; "
                          "a run tells it 1000 t; `lgm sample` and `lgm export` take it")
    flow = pipeline.schedule.process["name"] == "rectified_flow"
    density = {"name": "logit_normal", "shift": pipeline.schedule.shift} if flow else {
        "name": "discrete", "steps": pipeline.schedule.process["steps"]}  # fmt: skip
    defaults = defaults_of(pipeline)
    distilled = pipeline.name == "FluxPipeline"  # guidance is an input of the network, or it knows none
    data, text, variance = {}, {}, {}
    if pipeline.name == "DiTPipeline":  # the shipped images have classes of their own
        field = "subcategory"
        data["caption"] = field
        text["classes"] = sorted({row[field] for row in open_images("emoji64").rows})[: model.classes]
        variance = {"variance": 1.0} if model.learned_sigma else {}
    return {
        "name": name,
        "batch_size": 8,
        "total_images": 8_000,
        "init_from": folder,
        "autoencoder": folder,
        "data": {
            "source": "emoji64",
            "where": {"split": "train"},
            "heldout_where": {"split": "heldout"},
            "resolution": pipeline.sample_size * autoencoder.factor,
            **data,
        },
        "text": {"folder": folder, "caption_dropout": 0.0 if distilled else 0.1, **text},
        "model": {"family": family_of(model).name, **as_dict(model)},
        "process": dict(pipeline.schedule.process),
        "loss": {"target": pipeline.schedule.target, "density": density, **variance},
        "optimizer": {"lr": 1e-5, "warmup_images": 800, "schedule": "constant", "weight_decay": 0.01},
        "ema": {"half_life_images": 2_000},
        "sampling": {
            "solver": pipeline.schedule.solver,
            "steps": defaults.steps,
            "guidance": defaults.guidance,
            "schedule": write_schedule(pipeline.schedule),
            "count": 4,
        },
        "evaluation": {"batch_size": 8, "max_images": 64},
    }


def _page(values: Mapping[str, Any], folder: str, workdir: str) -> str:
    """A config file that says `values`."""
    body = pprint.pformat(dict(values), width=110, sort_dicts=False).replace("\n", "\n    ")
    return f'''"""Fine-tuning of {folder}.

    lgm train --config={workdir}/config.py --workdir={workdir}

or only low-rank changes to it, which `lgm export` writes as a LoRA:

    lgm train --config={workdir}/config.py --workdir={workdir} --config.lora.rank=16 --config.optimizer.lr=1e-4
"""

from ml_collections import ConfigDict


def get_config():
    values = {body}
    return ConfigDict(values)
'''
