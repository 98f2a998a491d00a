"""A run's system without a weight, a tokenizer or a folder: what a plan needs of a config, in shapes alone.

Where a config names a diffusers folder that is here, its configurations are read (never its weights); where it is not
here, the published networks of the denoiser's family stand in, and the plan says so.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgm import files, gaussian
from lgm.config import Config
from lgm.config.combinations import check_parts
from lgm.models import Model, Params, build, family, family_of, lora
from lgm.parallel import Layout
from lgm.parsing import ConfigError
from lgm.system import System, named
from lgm.systems import SYSTEMS, released
from lgm.systems.cached_text import CachedText, form_of, has_encoders
from lgm.systems.folders import load_pipeline
from lgm.systems.release import Pipeline, Released
from lgm.systems.text import text_of
from lgm.weights import SHIPPED, autoencoder_of

CLIP_TOKENS = 77


@dataclasses.dataclass(frozen=True)
class Blank:
    """A tokenizer that knows only how long its rows are."""

    length: int = CLIP_TOKENS

    def encode(self, captions: Sequence[str], length: int | None = None, special: bool = True
               ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Zeros [B, L] and a mask of ones."""
        shape = len(captions), length or self.length
        return np.zeros(shape, np.int32), np.ones(shape, bool)

    @property
    def unconditional(self) -> tuple[np.ndarray, np.ndarray]:
        """One row, without the batch."""
        ids, mask = self.encode([""])
        return ids[0], mask[0]


def abstract_system(config: Config, layout: Layout | None = None) -> tuple[System, Params, tuple[str, ...]]:
    """(system, `jax.ShapeDtypeStruct`s of all that is frozen, what stands in for folders that are not here).

    With `config.data.cache`, which need not be here, neither autoencoder nor text encoders are in a step.
    """
    notes: list[str] = []
    autoencoder = _autoencoder(config, notes)
    check_parts(config, autoencoder.config)
    if from_cache := config.data.cache is not None:
        notes.append(f"config.data.cache={config.data.cache!r}: latents and what frozen text encoders say are read; no "
                     "autoencoder and no text encoder of a folder is in the step")
    frozen: dict[str, Any] = {} if from_cache else {"autoencoder": autoencoder.abstract()}
    text = tokenizer = folder = None
    if config.text and config.text.folder:
        pipeline = _pipeline(config, notes)
        folder = tokenizer = text_of(pipeline, config.data.size)
        if from_cache and has_encoders(folder):
            folder = tokenizer = CachedText(folder, form_of(folder), None, jnp.dtype(config.model.dtype))
        else:
            encoders = {place: model for place, model in pipeline.models.items() if place.startswith("text_encoder")}
            frozen["text"] = {place: held_in(model.abstract(), config.model.dtype)
                              for place, model in encoders.items()}  # fmt: skip
    elif config.text and config.text.classes:
        tokenizer = Blank(1)  # a label
    elif config.text:
        text = build(config.text.encoder)
        tokenizer = Blank(config.text.encoder.max_length)
    denoiser = build(config.model)
    if config.lora:
        frozen["denoiser"] = held_in(denoiser.abstract(), config.model.dtype)
        denoiser = lora.adapted(denoiser, config.lora)
        if text is not None:
            frozen["text"] = text.abstract()
    process = named(gaussian.build, config.process, "config.process")
    return System(config, denoiser, text, autoencoder, process, tokenizer, folder, layout), frozen, tuple(notes)


def held_in(tree: Params, dtype: Any) -> Params:
    """The same shapes in another dtype."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), tree)


def frozen_axes(system: System, frozen: Params) -> Params:
    """Logical axes of everything in `frozen`."""
    axes: dict[str, Any] = {"autoencoder": system.autoencoder.logical_axes()} if "autoencoder" in frozen else {}
    if "denoiser" in frozen:
        axes["denoiser"] = build(system.config.model).logical_axes()
    if system.folder is not None and "text" in frozen:
        axes["text"] = {place: system.folder.pipeline.models[place].logical_axes() for place in frozen["text"]}
    elif "text" in frozen:
        axes["text"] = system.text.logical_axes()
    return axes


def _published(config: Config, key: str) -> Released:
    """The released system that a denoiser's configuration belongs to, to stand in for what `config.key` names; for one
    that is trained in the latents and texts of another system, as a U-Net in SD3's, that one."""
    own, model = released(config.model), config.model
    alike = lambda other: (other.channels, *_widths(other)) == (model.channels, *_widths(model))
    system = own if own and any(map(alike, _members(own))) else next(
        (other for other in SYSTEMS.values() if any(map(alike, _members(other)))), own)
    if system is None:
        raise ConfigError(f"config.{key} names nothing that is here, and no published system has a {config.family} to "
                          "plan with instead; give one that is here")
    return system


def _members(system: Released) -> list[Any]:
    """The published shapes of a system's denoiser."""
    network = family(system.family)
    shapes = [network.config(**preset) for preset in network.presets.values()]
    return [shape for shape in shapes if system.member(shape)]


def _widths(model: Any) -> tuple[int, int]:
    """Of texts and vectors that a denoiser is told."""
    spec = family_of(model).conditioning(model)
    return spec.text, spec.pooled


def _autoencoder(config: Config, notes: list[str]) -> Model:
    source = config.autoencoder
    if source in SHIPPED or files.place(source, "config.autoencoder").exists():
        return autoencoder_of(source)
    name, preset = _published(config, "autoencoder").autoencoder
    notes.append(f"config.autoencoder={source!r} is not here: planned with the published {preset} autoencoder")
    return _preset(name, preset)


def _pipeline(config: Config, notes: list[str]) -> Pipeline:
    """The folder's pipeline or the published one, whose text encoders compute in the model's dtype."""
    source = config.text.folder
    if (files.place(source, "config.text.folder") / "model_index.json").is_file():
        pipeline, _ = load_pipeline(source, dtype=config.model.dtype, only=())
        return pipeline
    system = _published(config, "text.folder")
    encoders = system.encoders(config.model)
    shown = " and ".join(preset for _, preset in encoders.values()) or "classes"
    notes.append(f"config.text.folder={source!r} is not here: planned with the published {shown}")
    models = {place: _preset(*which, dtype=config.model.dtype, **system.encoder_options.get(place, {}))
              for place, which in encoders.items()}  # fmt: skip
    models[system.denoiser] = build(config.model)
    tokenizers = {place: Blank() for place in encoders}
    process = named(gaussian.build, config.process, "config.process")
    return Pipeline(system, models, {}, tokenizers, None, process, max(config.data.size) // 8)


def _preset(name: str, preset: str, **changes: Any) -> Model:
    network = family(name)
    return build(network.config(**{**network.presets[preset], **changes}))


def abstract_batch(config: Config, system: System) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of one training batch: latents, or images where each step encodes them, tokens and their mask."""
    count, size = config.batch_size, config.data.size
    ids, mask = system.unconditional(1)
    batch = {"tokens": jax.ShapeDtypeStruct((count, *ids.shape[1:]), ids.dtype),
             "mask": jax.ShapeDtypeStruct((count, *mask.shape[1:]), mask.dtype)}
    if config.data.latents == "memory":
        kept = ("latent", "log_variance") if config.data.posterior == "sample" else ("latent",)
        return batch | dict.fromkeys(kept, jax.ShapeDtypeStruct((count, *system.latent_shape()), jnp.float32))
    size = (config.data.crop,) * 2 if config.data.crop else size
    return batch | {"image": jax.ShapeDtypeStruct((count, *size, 3), jnp.uint8)}
