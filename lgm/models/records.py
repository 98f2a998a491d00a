"""What a family of networks is, said once beside its module, in a record that all ask who need to know of it.

A family from outside the package is named in a config by the name that it was given (`lgm.register`), or by where its
record stands, `model.family="package.module:RECORD"`, which is the module that defines its configuration class. That is
a frozen dataclass with `channels`, those of the latents; the network is built as `module(config, rngs=...)` and called
as `Model.apply` says.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lgm import registry
from lgm.models.base import Conditioning

# name -> where the record stands, or a record that was registered
FAMILIES: dict[str, str | Family] = {
    "autoencoder": "lgm.models.autoencoder:AUTOENCODER",
    "frame_autoencoder": "lgm.models.frame_autoencoder:FRAME_AUTOENCODER",
    "clip_text": "lgm.models.clip_text:CLIP_TEXT",
    "t5": "lgm.models.t5:T5",
    "causal_text": "lgm.models.causal_text:CAUSAL_TEXT",
    "bert": "lgm.models.bert:BERT_FAMILY",
    "unet": "lgm.models.unet:UNET",
    "mmdit": "lgm.models.mmdit:MMDIT",
    "dit": "lgm.models.dit:DIT",
    "flux": "lgm.models.flux:FLUX",
    "flux2": "lgm.models.flux2:FLUX2",
    "z_image": "lgm.models.z_image:Z_IMAGE",
    "qwen_image": "lgm.models.qwen_image:QWEN_IMAGE",
}


@dataclasses.dataclass(frozen=True)
class ConditioningSpec:
    """What a denoiser of one configuration is told beside x and t, and may tell beside its prediction.

    text, pooled, micro, beside: widths of those parts of `Conditioning`, 0 for none. classes: how many a label tells
    apart, 0 for no label. guidance, jump: whether it is told those. variance: whether its method "with_variance" also
    gives the place of its log variances.
    """

    text: int = 0
    pooled: int = 0
    micro: int = 0
    beside: int = 0
    classes: int = 0
    guidance: bool = False
    jump: bool = False
    variance: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of networks. What is a function is one of its configuration.

    Attributes:
      name: the word for it in a config; of one from outside the package, where this record stands.
      config, module: the configuration's frozen dataclass and the NNX class that is built of it.
      presets: published shapes by name, as arguments of `config`.
      role: what it is in a system.
      told: what a denoiser is told. requires: which of those its configuration cannot do without.
      patch: side of a token in latent pixels; None for a family that does not cut latents into tokens.
      reach: how far its table of positions goes, in tokens (a side, of images); None where there is no such end.
      native_side: latent pixels a side that its positions are stated for; None where they are stated for none.
      heads: numbers of attention heads, which a mesh's tensor axis must divide.
      convolves: whether its time goes to convolutions. skips: whether it can be asked without some of its blocks.
      blocks: how many repeated blocks it has. bulk: (width, blocks) in round numbers, to put plans in order.
      small: fields of the smallest member of the same form.
      ladder: `ladder(size, **options)`, its configuration of size 1, 2, ... for sweeps, ValueError for what cannot be.
      embeddings: inputs, outputs and conditioning on their way in, first names of the parameters that non-embedding
        counts leave out.
      vector: width of the vector that a text encoder gives beside its features; None where it gives none. masked:
        whether released systems tell it which tokens are padding; the others let padding count.
    """

    name: str
    config: type
    module: type[nnx.Module]
    presets: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    role: Literal["denoiser", "autoencoder", "text encoder"] = "denoiser"
    conditioning: Callable[[Any], ConditioningSpec] = lambda config: ConditioningSpec()
    requires: Collection[str] = ()
    patch: Callable[[Any], int] | None = None
    reach: Callable[[Any], int | None] = lambda config: None
    native_side: Callable[[Any], int | None] = lambda config: None
    heads: Callable[[Any], Collection[int]] = lambda config: ()
    convolves: bool = False
    skips: bool = False
    blocks: Callable[[Any], int] = lambda config: config.depth
    bulk: Callable[[Any], tuple[int, int]] = lambda config: (1280, 24)
    small: Callable[[Any], dict[str, Any]] = lambda config: {}
    ladder: Callable[..., Any] | None = None
    embeddings: Collection[str] = ()
    vector: Callable[[Any], int] | None = None
    masked: bool = False

    def unit(self, config: Any) -> int:
        """Latent pixels that the sides of what it takes are multiples of, by its patches."""
        return self.patch(config) if self.patch else 1

    def tokens(self, config: Any, rows: int, columns: int) -> float:
        """Tokens of a latent; without patches, those of flow models, whose patches are 2 x 2."""
        return rows * columns / (self.patch(config) if self.patch else 2) ** 2

    def remat(self, config: Any) -> str:
        """What backward finds of its blocks (`blocks.Remat`); "" for a configuration that does not say."""
        return config.remat if any(field.name == "remat" for field in dataclasses.fields(config)) else ""

    def inputs(self, config: Any, batch: int, latent: int | tuple[int, int], text_tokens: int) -> tuple:
        """Abstract (x, t, cond) of a denoiser at `latent`, a side or (rows, columns)."""
        like = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct((batch, *shape), dtype)
        spec, side = self.conditioning(config), (latent, latent) if isinstance(latent, int) else latent
        parts = {
            "label": spec.classes and like(dtype=jnp.int32), "text": spec.text and like(text_tokens, spec.text),
            "pooled": spec.pooled and like(spec.pooled), "micro": spec.micro and like(spec.micro),
            "beside": spec.beside and like(*side, spec.beside), "guidance": spec.guidance and like(),
        }  # fmt: skip
        cond = Conditioning(**{name: part for name, part in parts.items() if part})
        return like(*side, config.channels), like(), cond


def family(name: str) -> Family:
    """The family of a name, or of "package.module:RECORD". Raises ValueError, one line, where there is none."""
    found = FAMILIES.get(name)
    return found if isinstance(found, Family) else _located(name)


@functools.cache
def _located(name: str) -> Family:
    record = registry.located("family", name, FAMILIES, Family)
    if record.config.__module__ != str(FAMILIES.get(name, name)).partition(":")[0]:
        raise ValueError(f"{record.config.__name__} is defined in {record.config.__module__}, where its record must "
                         "stand, too")
    return dataclasses.replace(record, name=name)


def family_of(config: Any) -> Family:
    """The family of a configuration. Raises TypeError for anything else."""
    cls: Any = type(config)
    registered = (found for found in FAMILIES.values() if isinstance(found, Family) and found.config is cls)
    return next(registered, None) or _family_of(cls)


@functools.cache
def _family_of(cls: type) -> Family:
    names = {place: name for name, place in FAMILIES.items() if isinstance(place, str)}
    for attribute, value in vars(sys.modules[cls.__module__]).items():
        if isinstance(value, Family) and value.config is cls:
            place = f"{cls.__module__}:{attribute}"
            return family(names.get(place, place))
    raise TypeError(f"{cls.__name__} is no model's configuration; there are {', '.join(FAMILIES)}")


def families(role: str) -> tuple[Family, ...]:
    """The package's families of a role."""
    return tuple(found for found in map(family, tuple(FAMILIES)) if found.role == role)
