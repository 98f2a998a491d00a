"""A text-to-image system: autoencoder, text encoder, denoiser, process and tokenizer, put together from a config.

Training, sampling, evaluation and export all speak to this one object. What is trained is the denoiser with its text
encoder, the denoiser alone beside a folder's frozen text encoders, or a low-rank change to a frozen denoiser.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgm import gaussian, sampling
from lgm.config import Config, Sampling
from lgm.config.combinations import check_parts
from lgm.interop.schedulers import read_schedule
from lgm.interop.schedules import Schedule
from lgm.models import Conditioning, ConditioningSpec, Model, Params, build, family_of, lora
from lgm.models.autoencoder import standardize, standardize_log_variance, unstandardize
from lgm.objective import build_loss, named
from lgm.parallel import Layout, constrain, put, shardings, using
from lgm.parsing import ConfigError
from lgm.sampler import Sampler, resolve
from lgm.systems import released
from lgm.systems.cached_text import CachedText, has_encoders, open_cached_text
from lgm.systems.release import TEXT
from lgm.systems.text import FolderText, load_text
from lgm.weights import autoencoder_of, load_autoencoder


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: a static argument of compiled functions
class System:
    """The parts of a run.

    `frozen` are {"autoencoder": ...} and, by the same names, all else that is not trained. `whole(trained, frozen)`
    are the {"denoiser": ..., "text": ...} that `condition` and `denoise` take. `folder` is the text side of a
    diffusers folder, which then is the `tokenizer` too; where it is read from a cache, what it knows of captions stands
    wherever tokens do. All is computed under `layout`, where there is one.
    """

    config: Config
    denoiser: Model
    text: Model | None
    autoencoder: Model
    process: gaussian.Process
    tokenizer: Any
    folder: FolderText | CachedText | None = None
    layout: Layout | None = None

    @property
    def target(self) -> str:
        """What the denoiser predicts."""
        return self.config.loss.target

    @property
    def conditioning(self) -> ConditioningSpec:
        """What the denoiser is told."""
        return family_of(self.config.model).conditioning(self.config.model)

    @functools.cached_property
    def objective(self):
        """The loss of its config (`build_loss`)."""
        return build_loss(self.config, self.process, self.shift)

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters of all that is trained."""
        if self.config.lora:
            return {"lora": lora.init(build(self.config.model), self.config.lora, key)}
        denoiser, text = jax.random.split(key)
        params = {"denoiser": self.denoiser.init(denoiser)}
        return params | ({"text": self.text.init(text)} if self.text else {})

    def logical_axes(self) -> Params:
        """Logical axes of every trained parameter."""
        if self.config.lora:
            return {"lora": lora.logical_axes(build(self.config.model), self.config.lora)}
        axes = {"denoiser": self.denoiser.logical_axes()}
        return axes | ({"text": self.text.logical_axes()} if self.text else {})

    def whole(self, trained: Params, frozen: Params) -> Params:
        """All parameters that `condition` and `denoise` need; nothing is computed."""
        parts = {name: part for name, part in {**frozen, **trained}.items() if name in ("denoiser", "text")}
        return parts | ({"denoiser": lora.combined(parts["denoiser"], trained["lora"])} if self.config.lora else {})

    def condition(self, params: Params, tokens_BL: jax.Array, mask_BL: jax.Array,
                  micro_B6: jax.Array | None = None) -> Conditioning:
        """What the denoiser is told of captions and, where it is SDXL, of sizes and crops (`data.buckets`)."""
        with using(self.layout):
            if self.folder is not None:
                cond = self.folder.condition(params.get("text"), tokens_BL, mask_BL)
                known = micro_B6 is not None and cond.micro is not None and cond.micro.shape[1] == 6
                return dataclasses.replace(cond, micro=micro_B6) if known else cond
            if self.config.text and self.config.text.classes:
                return Conditioning(label=tokens_BL[:, 0])
            if self.text is None:
                return Conditioning()
            hidden_BLD, pooled_BP = self.text.apply(params["text"], tokens_BL, mask_BL)
            cond = Conditioning(text=hidden_BLD, text_mask=mask_BL, pooled=pooled_BP)
            if not self.conditioning.guidance:
                return cond
            return dataclasses.replace(cond, guidance=jnp.full(len(tokens_BL), float(self.config.sampling.guidance)))

    def tokenize(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids [B, L] int32, mask [B, L] bool), L being the text encoder's length, or what a cache has in their place
        (`CachedText.encode`). Raises ValueError, one line, for a caption that does not fit or is not there."""
        if self.tokenizer is None:
            return np.zeros((len(captions), 1), np.int32), np.ones((len(captions), 1), bool)
        return self.tokenizer.encode(captions)

    def unconditional(self, count: int) -> tuple[jax.Array, jax.Array]:
        """Tokens and mask that stand for no caption, [count, L]."""
        ids, mask = self.tokenizer.unconditional if self.tokenizer else (np.zeros((1,), np.int32), np.ones((1,), bool))
        return jnp.tile(jnp.asarray(ids), (count, 1)), jnp.tile(jnp.asarray(mask), (count, 1))

    def denoise(self, params: Params, x_BHWC: jax.Array, t_B: jax.Array, cond: Conditioning,
                method: str = "__call__") -> jax.Array:
        """The network's raw output, of the config's target kind; of its `method` "with_variance" also, beside it, where
        a network with learned sigma puts its log variance."""
        x_BHWC = constrain(gaussian.network_input(self.process, x_BHWC, t_B), "batch", None, None, None)
        with using(self.layout):
            return self.denoiser.apply(params["denoiser"], x_BHWC, t_B, cond, method=method)

    def encode(self, frozen: Params, images_BHWC: jax.Array) -> jax.Array:
        """Latents of uint8 images: the posterior's mean, standardised."""
        return self.posterior(frozen, images_BHWC)[0]

    def posterior(self, frozen: Params, images_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mean, log variance) of the latents of uint8 images, standardised."""
        x, config = images_BHWC.astype(jnp.float32) / 127.5 - 1.0, self.autoencoder.config
        with using(self.layout):
            mean, logvar = self.autoencoder.apply(frozen["autoencoder"], x, method="encode")
        return standardize(config, mean), standardize_log_variance(config, logvar)

    def decode(self, frozen: Params, latents_BHWC: jax.Array) -> jax.Array:
        """uint8 images of standardised latents."""
        z = unstandardize(self.autoencoder.config, latents_BHWC)
        with using(self.layout):
            x = self.autoencoder.apply(frozen["autoencoder"], z, method="decode")
        return jnp.clip(jnp.round((x + 1.0) * 127.5), 0, 255).astype(jnp.uint8)

    def sampler(self, options: Sampling) -> Sampler:
        """How `options` draw. Raises ConfigError, one line, for what cannot be drawn."""
        alone = self.config.loss.steps
        if alone not in (None, options.steps):
            raise ConfigError(f"config.sampling.steps={options.steps}: config.loss.name={self.config.loss.name!r} "
                              f"trains a network to be drawn in {alone} alone; set it to {alone}")
        timesteps, solver, scale, schedule = self._resolved(options)
        if solver.variance and not self.config.loss.variance:
            raise ConfigError("config.sampling: the solver 'ddpm:variance=learned' takes the variances that a model of "
                              "config.loss.variance above 0 learns; take 'ddpm', whose variance is the posterior's")
        try:
            if options.clip is not None:
                solver = sampling.bounded(solver, float(options.clip))
            solver, wrap = sampling.guided(solver, self._rule(options), tuple(options.interval))
        except ValueError as error:
            raise ConfigError(f"config.sampling: {error}") from None
        return Sampler(timesteps, solver, wrap, scale, schedule)

    def _resolved(self, options: Sampling) -> tuple[sampling.Timesteps, sampling.Solver, float, Schedule | None]:
        """(times, solver, factor of the noise, scheduler) on lgm's grid or, as `options.schedule` has a "_class_name"
        and so is a scheduler_config.json, as diffusers has them."""
        if named(sampling.solver, options.solver, "config.sampling.solver").jumps and not self.conditioning.jump:
            raise ConfigError("config.sampling.solver='jump' is for models of mean velocities, config.model.jump=True")
        rows, columns, _ = self.latent_shape()
        sampler = functools.partial(resolve, self.process, self.target, options.steps, solver=options.solver,
                                   tokens=rows * columns // 4)
        if "_class_name" not in options.schedule:
            try:
                shift = self.shift(options.schedule.get("shift", 1.0))
                return *sampler({**options.schedule, "shift": shift}), None
            except (ValueError, TypeError) as error:
                raise ConfigError(f"config.sampling.schedule: {error}") from None
        schedule = read_schedule(options.schedule)
        name = options.schedule["_class_name"]
        if schedule.process["name"] != self.process.name or self.process.name == "edm":
            raise ConfigError(f"config.sampling.schedule: {name} is of the process {schedule.process['name']!r}; a run "
                              f"of {self.process.name!r} is not drawn by it; give one of lgm's own spacings")
        if (key := schedule.unlike(self.config.process)) is not None:
            mine = self.config.process.get(key, "its default")
            raise ConfigError(f"config.process.{key}={mine} is not {schedule.process.get(key, 'its default')}, as "
                              f"config.sampling.schedule, a {name}, has it; make them one: runs are exported with it")
        system = released(self.config.model)
        found = sampler(schedule) if system is None else sampler(schedule, even=system.even,
                                                                  log_shift=system.log_shift)
        return *found, schedule if options.solver == schedule.solver else None

    def _rule(self, options: Sampling) -> sampling.Rule | sampling.Projected | None:
        """How guidance acts; None where the conditional prediction stands alone."""
        scale = float(options.guidance)
        make_rule = lambda name, **words: sampling.rule(name, scale, **words)
        rule = named(make_rule, options.rule, "config.sampling.rule")
        plain = not options.negative and options.rule == "plain" and options.interval == (0.0, 1.0)
        if self.conditioning.guidance and not plain:
            raise ConfigError("config.sampling: negative, rule and interval are for guidance by an unconditional "
                              "prediction; this model is told its scale, and config.sampling.guidance is all it takes")
        if options.negative and self.tokenizer is None:
            raise ConfigError(f"config.sampling.negative={options.negative!r} needs config.text; this model reads none")
        return None if self.conditioning.guidance or scale == 1.0 else rule

    def shift(self, value: float | str | Mapping[str, float]) -> float:
        """A shift of times as a config may say it: a number, "tokens" for Flux's by the number of image tokens, or
        dict(base_resolution=256) for SD3's by how many more pixels there are than at that side."""
        if value == "tokens":
            rows, columns, _ = self.latent_shape()
            return gaussian.token_shift(family_of(self.config.model).tokens(self.config.model, rows, columns))
        if isinstance(value, Mapping):
            base = value.get("base_resolution")
            if len(value) != 1 or not isinstance(base, (int, float)):
                raise ValueError(f"shift={dict(value)!r} should be a number, 'tokens' or dict(base_resolution=256)")
            return gaussian.resolution_shift(math.prod(self.config.data.size), base**2)
        return value

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(H, W, C) of the latent of an image of `size` = (H, W), by default the config's resolution."""
        c = self.autoencoder.config
        height, width = size or self.config.data.size
        return height // c.factor, width // c.factor, c.latent_channels

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise ValueError, one line, where the denoiser cannot take images of `size` = (H, W)."""
        network, (height, width) = family_of(self.config.model), size
        unit, table = self.autoencoder.config.factor * network.unit(self.config.model), network.reach(self.config.model)
        if min(size) < 1 or height % unit or width % unit:
            raise ValueError(f"an image of {height} x {width} cannot be drawn; use multiples of {unit} pixels")
        if table is not None and max(size) // unit > table:
            raise ValueError(f"an image of {height} x {width} cannot be drawn; use at most {table * unit} pixels a "
                             f"side, as far as config.model.position_size={table} goes")


def build_system(config: Config, layout: Layout | None = None, cached: bool = False) -> tuple[System, Params]:
    """(system, frozen parameters) of a config: the autoencoder's and, where its text comes from a folder, the text
    encoders'. They are read into the places of `layout`; numpy arrays without one.

    `cached`, for training from `config.data.cache`: neither is read, and captions are told by the states that the cache
    has of them.
    """
    from lgm.data import Tokenizer, class_names

    shard = sharder(layout)
    frozen = {} if cached else read_autoencoder(config, layout)
    autoencoder = autoencoder_of(config.autoencoder)
    check_parts(config, autoencoder.config)
    text: Model | None = None
    tokenizer: Any = None
    folder: FolderText | CachedText | None = None
    if config.text and config.text.folder:
        folder, params = load_text(config.text.folder, config.data.size, config.model.dtype, shard,
                                   config.text.classes, only=() if cached else TEXT)
        if cached and has_encoders(folder):
            folder = open_cached_text(config.data.cache, config.text.folder, folder)
        frozen |= {} if cached else {"text": params}
        tokenizer = folder
    elif config.text and config.text.classes:
        tokenizer = class_names(config.model.classes, config.text.classes)
    elif config.text:
        text = build(config.text.encoder)
        tokenizer = Tokenizer(config.text.tokenizer, config.text.encoder.max_length,
                              truncate=config.text.long_captions == "cut")
        if text.config.vocab_size < tokenizer.vocab_size:
            raise ConfigError(f"config.text.encoder.vocab_size={text.config.vocab_size} is too small for the "
                              f"{tokenizer.vocab_size} entries of config.text.tokenizer={config.text.tokenizer!r}")
    process = named(gaussian.build, config.process, "config.process")
    denoiser = build(config.model)
    if config.lora:
        denoiser = lora.adapted(denoiser, config.lora)
        denoiser.abstract()  # targets that match nothing are refused here
    system = System(config, denoiser, text, autoencoder, process, tokenizer, folder, layout)
    system.sampler(config.sampling)  # what cannot be drawn or trained is refused before anything is
    _ = system.objective
    return system, frozen


def read_autoencoder(config: Config, layout: Layout | None = None) -> Params:
    """{"autoencoder": the weights of a config's autoencoder}, in the places of `layout`."""
    autoencoder, weights = load_autoencoder(config.autoencoder)
    return {"autoencoder": weights if layout is None else put(weights, sharder(layout)(autoencoder))}


def sharder(layout: Layout | None) -> Callable[[Model], Any] | None:
    """`shard(model)`: the shardings of a model's parameters in a layout."""
    return None if layout is None else lambda model: shardings(layout, model.abstract(), model.logical_axes())
