"""What a released system is, said once in its room, and one of it that was read from a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgm.data.text_tokenizers import TextTokenizer
from lgm.gaussian import Process, network_input
from lgm.interop.schedules import LogShift, Schedule
from lgm.interop.tensor_files import Weights
from lgm.models import Conditioning, ConditioningSpec, Model, Params, family_of
from lgm.models.autoencoder import standardize, unstandardize

TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3")  # places of text encoders
Ids = Mapping[str, np.ndarray]  # place of a text encoder -> token ids [B, L]; ~id is of padding that does not count
Run = Callable[[str], Any]  # what the text encoder at a place makes of its ids
COMFY_TEXT = {place: f"text_encoders.{name}.transformer." for place, name in zip(TEXT, ("clip_l", "clip_g", "t5xxl"),
                                                                                strict=True)}  # fmt: skip
SCORES = (6.0, 2.5)  # of a picture and of what it should not be, as SDXL's refiner is told by diffusers
REFINING = 0.3  # of a picture, by SDXL's refiner


@dataclasses.dataclass(frozen=True)
class Defaults:
    """A system's usual number of steps, guidance scale, part of a picture that is replaced and rule of guidance."""

    steps: int
    guidance: float
    strength: float = 0.8
    rule: str = "plain"


@dataclasses.dataclass(frozen=True)
class Released:
    """A released system.

    Attributes:
      name: its pipeline's class in diffusers. family: of its denoiser; `member` says of that family's configuration
        whether it may be this system's. denoiser, component: the denoiser's place in a folder and its class.
      encode: `(pipeline, run, ids, size, score) -> Conditioning`, how what the text encoders say is joined.
      defaults: of sampling, by a pipeline.
      tokenizer_of: places of tokenizers by those of text encoders. needed: text encoders that it cannot do without.
      encoder_options: fields of its text encoders' configurations by place. optional: parts that it can do without, as
        model_index.json says.
      tokenize: `(pipeline, prompts, T5's length) -> Ids`. nothing: `(pipeline, count, T5's length) -> Ids` of no
        prompt, by default those of empty texts. t5_tokens: the length that its own program pads texts to for T5 or a
        language model.
        words: tokens that its tokenizers must have.
      extrapolates: whether a pipeline of it is guided away from an unconditional prediction; if not, its network is
        told a scale or knows none.
      even: whether its program spaces a flow's times evenly, whatever the scheduler. log_shift: its own rule for times
        that the scheduler shifts by the number of image tokens. rounds_up: whether a step that is only begun by a
        picture's strength is made, whatever the scheduler. scored: whether there is a form of it that is told an
        aesthetic score. standardizes: by what else than one scale its latents are, "shift" or "means", or in "patches"
        by any.
      default_size: latent side that is meant where the denoiser's configuration says none. old_names: classes that
        released folders name otherwise. corrected: what its program sets in any scheduler's configuration, by variant.
      check: raises ValueError, one line, for configurations by place that do not fit each other.
      form: the denoiser (configuration and parameters, or None for them) as diffusers has it.
      kohya: whose names kohya's scripts have for the denoiser's modules, None where they have none. kohya_text: what
        they put before the modules of a text encoder, comfy_text what ComfyUI does, by place.
      whole: what stands before each network's names where one file in the original layout holds all, by place, for
        the networks' configurations; nothing where each network is released in a file of its own.
      autoencoder, encoders: the published ones, families and presets of them; the latter for a denoiser's
        configuration, by place.
    """

    name: str
    family: str
    denoiser: str
    component: str
    encode: Callable[[Pipeline, Run, Ids, tuple[int, int], float], Conditioning]
    defaults: Callable[[Pipeline], Defaults]
    autoencoder: tuple[str, str]
    member: Callable[[Any], bool] = lambda config: True
    tokenizer_of: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needed: Collection[str] = ()
    encoder_options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    optional: Sequence[str] = ()
    tokenize: Callable[[Pipeline, Sequence[str], int], Ids] = lambda pipeline, prompts, t5: texts(pipeline, prompts, t5)
    nothing: Callable[[Pipeline, int, int], Ids] = lambda pipeline, count, t5: pipeline.system.tokenize(
        pipeline, [""] * count, t5)  # fmt: skip
    t5_tokens: Callable[[ConditioningSpec], int] = lambda spec: 256
    words: Collection[str] = ()
    extrapolates: Callable[[Pipeline], bool] = lambda pipeline: True
    even: bool = False
    log_shift: LogShift | None = None
    rounds_up: bool = False
    scored: bool = False
    standardizes: str | None = None
    default_size: int | None = None
    old_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    corrected: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    check: Callable[[Mapping[str, Any], Path], None] = lambda configs, folder: None
    form: Callable[[Any, Params | None], tuple[Any, Params | None]] = lambda config, params: (config, params)
    kohya: str | None = "original"
    kohya_text: Mapping[str, str] = dataclasses.field(default_factory=lambda: {
        "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_"})
    comfy_text: Mapping[str, str] = dataclasses.field(default_factory=lambda: COMFY_TEXT)
    whole: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda configs: {}
    encoders: Callable[[Any], Mapping[str, tuple[str, str]]] = lambda config: {}


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: a static argument of compiled functions
class Pipeline:
    """A released system as a folder has it, without its parameters.

    models, classes: every network and its class by its place in the folder ("unet" or "transformer", "vae",
    "text_encoder", ...). sample_size: the side in latent pixels that the denoiser was trained at. options: the other
    entries of model_index.json. carried: what the config.json of each network says besides. variant: what stands before
    "Pipeline" in the folder's own class, one of `folders.VARIANTS` or nothing. beside: tensors of networks that nothing
    here computes with, to be written again. held: what type each tensor of a network's file is of, by its name there.
    """

    system: Released
    models: Mapping[str, Model]
    classes: Mapping[str, str]
    tokenizers: Mapping[str, TextTokenizer]
    schedule: Schedule
    process: Process
    sample_size: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    carried: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    variant: str = ""
    beside: Mapping[str, Weights] = dataclasses.field(default_factory=dict)
    held: Mapping[str, Mapping[str, np.dtype]] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The system's name."""
        return self.system.name

    @property
    def denoiser(self) -> Model:
        """The network that is sampled from."""
        return self.models[self.system.denoiser]

    @property
    def target(self) -> str:
        """What the denoiser predicts."""
        return self.schedule.target

    @property
    def conditioning(self) -> ConditioningSpec:
        """What the denoiser is told."""
        return family_of(self.denoiser.config).conditioning(self.denoiser.config)

    @property
    def scored(self) -> bool:
        """Whether the denoiser is told an aesthetic score, as SDXL's refiner is."""
        return self.system.scored and bool(self.options.get("requires_aesthetics_score"))

    @property
    def inpaints(self) -> bool:
        """Whether the denoiser sees a mask and the picture around it."""
        return self.conditioning.beside > 0

    @property
    def extrapolates(self) -> bool:
        """Whether it is guided away from an unconditional prediction."""
        return self.system.extrapolates(self)

    @property
    def defaults(self) -> Defaults:
        """The usual steps, guidance and strength."""
        usual = self.system.defaults(self)
        if self.inpaints or self.scored:
            return dataclasses.replace(usual, strength=1.0 if self.inpaints else REFINING)
        return usual

    def denoise(self, params: Mapping[str, Params], x_BHWC: jax.Array, t_B: jax.Array, cond: Conditioning,
                **words) -> jax.Array:
        """The network's raw output; under EDM's process diffusers tells log(sigma) / 4 instead of 1000 t."""
        if self.process.name == "edm":
            x_BHWC = network_input(self.process, x_BHWC, t_B)
            t_B = 2.5e-4 * jnp.log(self.process.sigma(t_B))
        return self.denoiser.apply(params[self.system.denoiser], x_BHWC, t_B, cond, **words)

    def encode(self, params: Mapping[str, Params], image_BHWC: jax.Array) -> jax.Array:
        """Latents as the denoiser sees them, of images in [0, 1]."""
        vae = self.models["vae"]
        mean, _ = vae.apply(params["vae"], 2.0 * image_BHWC - 1.0, method="encode")
        return standardize(vae.config, mean)

    def decode(self, params: Mapping[str, Params], z_BHWC: jax.Array) -> jax.Array:
        """Images of which black is 0 and white 1."""
        vae = self.models["vae"]
        image = vae.apply(params["vae"], unstandardize(vae.config, z_BHWC), method="decode")
        return 0.5 * image + 0.5


def texts(pipeline: Pipeline, prompts: Sequence[str], t5_tokens: int) -> dict[str, np.ndarray]:
    """The ids [B, L] of `prompts` for every text encoder by its place."""
    return {place: part.encode(prompts, _length(pipeline, place, t5_tokens))[0]
            for place, part in pipeline.tokenizers.items()}  # fmt: skip


def within(template: str, pipeline: Pipeline, prompts: Sequence[str], length: int) -> dict[str, np.ndarray]:
    """The ids [B, L] of `prompts` in the place of {} of a `template`, for a language model; padding does not count."""
    (place, part), = pipeline.tokenizers.items()
    before, after = template.split("{}")
    ids, mask = part.encode([f"{before}{prompt}{after}" for prompt in prompts], length, special=False)
    return {place: np.where(mask, ids, ~ids)}


def _length(pipeline: Pipeline, place: str, t5_tokens: int) -> int | None:
    """How long texts are made for an encoder: as long as it has positions, or as T5's."""
    encoder = pipeline.models[place].config
    return t5_tokens if family_of(encoder).reach(encoder) is None else None


def latent_size(pipeline: Pipeline, size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) in latent pixels of an image of `size`. Raises ValueError where the network cannot take it."""
    factor, network = pipeline.models["vae"].config.factor, pipeline.denoiser.config
    unit = factor * family_of(network).unit(network)
    if min(size) < 1 or size[0] % unit or size[1] % unit:
        raise ValueError(f"an image of {size[0]} x {size[1]} cannot be drawn; use multiples of {unit} pixels")
    return size[0] // factor, size[1] // factor


def micro(size: tuple[int, int], last: Sequence[float], count: int) -> jax.Array:
    """[count, K]: original size, the crop's corner, then the target size or what stands in its place."""
    return jnp.tile(jnp.asarray([*size, 0, 0, *last], jnp.float32), (count, 1))
