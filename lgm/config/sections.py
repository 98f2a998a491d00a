"""What a config may say: its sections with their defaults, what each is for, and what cannot be within one.

Sizes of time are counted in images seen, never in steps.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from lgm import losses
from lgm.bounds import Bound, Count, Finite, NonNegative, Positive, Proper, Share, Whole
from lgm.models import family_of
from lgm.models.attention import Implementation
from lgm.models.lora import LoRAConfig
from lgm.parsing import ConfigError, parse

Axis = Annotated[int, Bound(-1)]  # devices along a mesh axis; -1 takes what is left


def need(ok: Any, line: str) -> None:
    """Raise ConfigError with that line unless it is `ok`."""
    if not ok:
        raise ConfigError(line)


@dataclasses.dataclass(frozen=True)
class Tags:
    """Captions are lists of tags, separated by commas. Each time an image is served, all but the first `keep` come in
    another order, and each of those is left out with probability `dropout`; one tag is left at the least. Captions of
    held-out images and of pictures are as they are."""

    keep: Whole = 0
    shuffle: bool = True
    dropout: Proper = 0.0


@dataclasses.dataclass(frozen=True)
class Mixed:
    """One of several sources. Of all images served, as many are of it as its `weight` is of the sum of all; each of its
    images comes once in each of its own epochs. `name` is what it is called, by default its source. What it does not
    say of `where`, `heldout_where` and `caption` config.data says."""

    source: str
    weight: Positive = 1.0
    name: str = ""
    where: dict[str, Any] | None = None
    heldout_where: dict[str, Any] | None = None
    caption: str | tuple[str, ...] | None = None

    @classmethod
    def listed(cls, given: Any) -> tuple["Mixed", ...]:
        """Those of a list, or of a mapping by name, of dicts or of sources alone."""
        named = given.items() if isinstance(given, Mapping) else enumerate(given)
        key = "config.data.source.{}" if isinstance(given, Mapping) else "config.data.source[{}]"
        parts = []
        for name, values in named:
            if not isinstance(values, cls):
                values = {"source": values} if isinstance(values, str) else values
                own = {"name": str(name)} if isinstance(given, Mapping) else {}
                values = parse(cls, {**own, **values} if isinstance(values, Mapping) else values, key.format(name))
            parts.append(values if values.name else dataclasses.replace(values, name=values.source))
        need(parts, "config.data.source is empty; give a source, or several as dict(NAME=dict(source=..., weight=1.0))")
        names = [part.name for part in parts]
        twice = next((name for name in names if names.count(name) > 1), None)
        need(twice is None, f"config.data.source has {twice!r} twice; give each a name of its own, name='...'")
        return tuple(parts)


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images. `source` is "emoji64", a folder or zip of images with a table, captions or classes, shards of
    Parquet, WebDataset or ArrayRecord, or KIND:PATH (`lgm.data.sources`); `where` filters by metadata fields and sizes
    (`lgm.data.open_images`); the field `caption` is what each image is called, "" for nothing. Records that cannot be
    read are left out and listed in the run's bad_records.jsonl, as long as they are at most `bad_share` of all.
    `source` may also be several, dict(NAME=dict(source=..., weight=..., where=..., heldout_where=..., caption=...)) or
    a list of such with a `name` in each: they are served by their weights, 1 by default, in every batch, and what one
    does not say this section says; held out are images of each.

    Held out are the images that match `heldout_where`; where that says nothing, `heldout_share` of those that match
    `where`, at most a thousand, which are not trained on. With a share of 0 the held-out loss is of training images.

    `resolution` is the side of a square in pixels, or (height, width). With `buckets` an image keeps its shape: it is
    scaled to cover the size of nearest shape, of sides that are multiples of so many pixels and about as large an area
    as the resolution's, and cut to that; each batch is of one size.
    Without, all are cut to that size. SDXL is told how large an image was and what was cut.

    `flip` mirrors half of the images, left to right, as they are served; `random_crop` cuts them at another place each
    time, which SDXL is told, instead of in the middle. Of a `caption` that lists several, or of several such fields,
    one is drawn each time; `tags` arranges it. All of this is drawn from the seed and the number of images served
    before; held-out images are as they are, and called by their first caption. `posterior` says what of the
    autoencoder's posterior a latent is each time: its mean, or a sample; held-out images' are means.

    `latents` says when images become latents: "memory" encodes the whole set at the start, flipped too with `flip`, and
    "step" encodes in every train step.
    `cache` is a folder that `lgm encode` made of this config: latents and what frozen text encoders say of captions are
    read from it, and neither images nor those networks are; flips and samples of the posterior where it was made with
    `flip` and `posterior`.
    `threads` decode images in each process, by default one for every core it may run on.
    """

    source: str | dict[str, Any] | tuple[Any, ...] = "emoji64"
    where: dict[str, Any] = dataclasses.field(default_factory=dict)
    heldout_where: dict[str, Any] = dataclasses.field(default_factory=dict)
    heldout_share: Proper = 0.05
    caption: str | tuple[str, ...] = "text"
    tags: Tags | None = None
    resolution: Count | tuple[Count, Count] = 64
    crop: Count | None = None
    buckets: Count | None = None
    flip: bool = False
    random_crop: bool = False
    posterior: Literal["mean", "sample"] = "mean"
    latents: Literal["memory", "step"] = "memory"
    cache: str | None = None
    threads: Count | None = None
    bad_share: Share = 0.01

    def __post_init__(self):
        if not isinstance(self.source, str):
            object.__setattr__(self, "source", Mixed.listed(self.source))
        height, width = self.size
        if height == width:  # one way of writing it: a run is known by its config
            object.__setattr__(self, "resolution", height)
        need(self.crop is None or self.crop <= min(self.size),
             f"config.data.crop={self.crop} must lie between 1 and config.data.resolution={self.resolution}")
        need(len({self.caption} if isinstance(self.caption, str) else set(self.caption)) ==
             len([self.caption] if isinstance(self.caption, str) else self.caption) > 0,
             f"config.data.caption={self.caption!r} should name a field, or several once each")
        need(not self.random_crop or self.cache is None, f"config.data.random_crop=True does not go with "
             f"config.data.cache={self.cache!r}, whose images are cut in the middle; set it to False")
        need(self.cache is None or self.latents == "memory", f"config.data.cache={self.cache!r} takes the place of "
                                                             "config.data.latents='step'; set that to 'memory'")
        need(self.buckets is None or height % self.buckets == width % self.buckets == 0,
             f"config.data.resolution={self.resolution} must be a multiple of config.data.buckets={self.buckets}")

    @property
    def varying(self) -> list[str]:
        """The keys by which what is served is not each image, with one caption, once an epoch."""
        several = [] if isinstance(self.caption, str) else ["caption"]
        if not isinstance(self.source, str):
            several += ["source"]
        drawn = ["posterior"] if self.posterior == "sample" else []
        return [name for name in ("flip", "random_crop", "tags") if getattr(self, name)] + drawn + several

    @property
    def weights(self) -> tuple[float, ...]:
        """Those of the sources of a mixture."""
        parts: Any = () if isinstance(self.source, str) else self.source
        return tuple(part.weight for part in parts)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = (self.resolution,) * 2 if isinstance(self.resolution, int) else self.resolution
        return height, width


@dataclasses.dataclass(frozen=True)
class Text:
    """What captions are read with: an `encoder` trained jointly with the denoiser from scratch, on `tokenizer`'s ids,
    or the frozen text encoders and tokenizers of a diffusers `folder`. With `classes` captions name one of those, and a
    class-conditional denoiser is told its number. Captions that are longer than a text encoder takes are cut, and
    counted when a run starts; `long_captions` = "refuse" refuses them."""

    encoder: Any = None
    folder: str | None = None
    classes: tuple[str, ...] = ()
    tokenizer: str = "emoji64"
    caption_dropout: Proper = 0.1
    long_captions: Literal["cut", "refuse"] = "cut"

    def __post_init__(self):
        need(self.encoder is None or self.folder is None,
             f"config.text has an encoder to train and folder={self.folder!r} of frozen ones; give one of them")
        need(len({name.strip().lower() for name in self.classes}) == len(self.classes),
             "config.text.classes has a name twice")


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A finished run whose averaged weights teach, with `guidance`. `pairs` of the noise and the data that its ODE
    joins, for as many captions of the training images in turn, are drawn by `solver` in `steps` before training starts
    or goes on, or read from `cache`, a folder that `lgm pairs` made of the same."""

    workdir: str
    pairs: Count = 4096
    solver: str | dict[str, Any] = "heun"
    steps: Count = 50
    guidance: Finite = 1.0
    cache: str | None = None


@dataclasses.dataclass(frozen=True)
class DenoisingLoss:
    """Which loss, what the network predicts, where in t it is trained and how errors are weighted.

    name: "denoising"; "contrastive" (weight); "reflow" and, in one step from the noise, "one_step" (distance), on a
    `teacher`'s pairs; of mean velocities, which need config.model.jump, "mean_flow" (same, power, offset, scale, kappa,
    interval) and "shortcut" (share, levels, scale, averaged); "consistency" (offset, warmup), with a `teacher` its
    distillation, as "discrete_consistency" (distance, start, end, growth, mean, std, even, rho, weighted, solver),
    between noise levels; "progressive" (steps), which does in one step what its `teacher` does in two;
    "guidance_distillation" (scales), with config.model.guidance, in one pass what its `teacher` does with guidance in
    two. What stands in brackets stands beside the name as options; `lgm.losses` says what each does. One of your own is
    named by its record, "package.module:RECORD" (`lgm.losses.Loss`).

    density: a name and options of `losses.density`, or dict(name="weighting"): t is drawn in proportion to the
    weighting instead, which leaves the expectation alone. weighting: a name and options of `losses.weighting`, or
    dict(name="importance", density=dict(...)): the expectation under that density, with t drawn from the other.
    `variance` weighs the variational bound from which a network with learned sigma learns its variances; 1 is DiT's.
    """

    name: str = "denoising"
    target: Literal["eps", "x", "v", "flow", "edm"] = "flow"
    density: dict[str, Any] = dataclasses.field(default_factory=lambda: {"name": "uniform"})
    weighting: dict[str, Any] = dataclasses.field(default_factory=lambda: {"name": "constant"})
    variance: NonNegative = 0.0
    teacher: Teacher | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        need(self.variance == 0 or self.name == "denoising",
             f"config.loss.variance={self.variance} needs name='denoising'")
        try:
            record = losses.loss(self.name)
        except ValueError as error:
            raise ConfigError(f"config.loss.name={self.name!r}: {error}") from None
        need(self.teacher is not None or record.teacher is None or record.optional,
             f"config.loss.name={self.name!r} needs config.loss.teacher, dict(workdir=...) of a finished run")
        taught = ", ".join(name for name in losses.LOSSES if losses.loss(name).teacher)
        need(self.teacher is None or record.teacher,
             f"config.loss.teacher is for the losses {taught}, not {self.name}; leave it out")

    @property
    def asks(self) -> bool:
        """Whether its teacher is asked in every step."""
        return self.teacher is not None and self.record.teacher == "predictions"

    @property
    def record(self) -> losses.Loss:
        """What the loss is."""
        return losses.loss(self.name)

    @property
    def steps(self) -> int | None:
        """In how many steps alone it trains the network to be drawn; None for any."""
        return self.record.steps(self.options)


@dataclasses.dataclass(frozen=True)
class AutoencoderLoss:
    """Weights of the autoencoder's terms; images lie in [-1, 1].

    `noise`: latents reach the decoder with noise of up to so many of their own standard deviations, as a denoiser's
    errors will: it learns to draw what is likely instead of seams between patches.
    """

    l1: NonNegative = 1.0
    l2: NonNegative = 0.0
    gradient: NonNegative = 0.5
    kl: NonNegative = 1e-6
    noise: NonNegative = 0.0


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW or Muon. The rate rises linearly over `warmup_images`, then follows `schedule` down to `final` x lr.

    Muon makes the update of every hidden matrix orthogonal (Jordan 2024; of AdamW's size, 2502.16982) and leaves the
    rest to AdamW with Nesterov momentum: more time a step, fewer steps. "wsd" (warm-up, stable, decay) holds the rate
    and lowers it linearly over the last `decay_images`. mup_base: fields of config.model in which a narrower model
    differs whose rate `lr` is: every matrix then learns at lr times its fan-in there over its fan-in here (muP: Yang et
    al. 2022, 2203.03466; of diffusion transformers, 2505.15270). offload: the moments stay in the host's memory between
    updates, where the devices offer that. stop_above: a run ends as diverged once its mean loss over `log.every_images`
    (at least a thousand) is more than so many times the lowest before; a loss that is not finite ends it always.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: Positive = 1e-3
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_images: Whole = 0
    decay_images: Whole = 0
    final: Share = 0.0
    b1: Proper = 0.9
    b2: Proper = 0.999
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    clip_norm: NonNegative = 1.0
    stop_above: Positive | None = None
    mup_base: dict[str, Any] | None = None
    offload: bool = False

    def __post_init__(self):
        need(self.stop_above is None or self.stop_above > 1,
             f"config.optimizer.stop_above={self.stop_above} must be more than 1; 2 ends a run whose loss is twice "
             "what it was")
        need(self.name != "muon" or self.mup_base is None,
             "config.optimizer.mup_base is for name='adamw'; Muon's updates do not depend on the width, leave it out")


@dataclasses.dataclass(frozen=True)
class EMA:
    """Moving average of the weights: half-life in images, at most `ramp` of the images seen so far."""

    half_life_images: Count = 10_000
    ramp: NonNegative = 0.1


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How pictures are drawn. `prompts` empty: captions of the held-out set, then of the training set.

    `solver` and `rule`, how the unconditional prediction guides (plain, rescaled, token_rescaled, projected), are a
    name or a section dict(name=..., **options). Guidance acts for t in `interval`, away from the `negative` prompt if
    there is one. `schedule` is what `sampling.times` takes, dict(spacing=..., shift=...), or a scheduler_config.json.
    `clip` bounds the data that a prediction implies, in standardised latents; eps predictions need it.
    By default the loss says the solver, "jump" and "consistency" of what they draw with and "euler" of all others, and
    the steps of one that trains for so many alone, of all others 30.
    """

    solver: str | dict[str, Any] | None = None
    steps: Count | None = None
    guidance: Finite = 2.0
    rule: str | dict[str, Any] = "plain"
    interval: tuple[Share, Share] = (0.0, 1.0)
    negative: str = ""
    clip: Positive | None = None
    schedule: dict[str, Any] = dataclasses.field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    count: Whole = 16
    every_images: Whole = 0

    def __post_init__(self):
        first, last = self.interval
        need(first < last, f"config.sampling.interval={self.interval} must rise, as (0.0, 1.0)")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Held-out loss of the EMA weights: `times` equidistant t, `noises` fixed draws of noise an image.

    With `levels` also the error on a grid of so many strata of the log signal-to-noise ratio between the two ends of
    `log_snr`, on which runs of all processes and targets compare. With `distance` also how far so many images drawn
    from held-out captions are from the real ones (`lgm.evaluate.drawn`).
    """

    every_images: Whole = 0
    times: Count = 8
    noises: Count = 1
    batch_size: Count = 64
    max_images: Whole = 2048
    levels: Whole = 0
    distance: Whole = 0
    log_snr: tuple[Finite, Finite] = (-5.0, 6.0)

    def __post_init__(self):
        need(self.distance == 0 or self.distance >= 3,
             f"config.evaluation.distance={self.distance} must be 0, for none, or at least 3 images")
        low, high = self.log_snr
        need(low < high, f"config.evaluation.log_snr={self.log_snr} must rise, as (-5.0, 6.0)")


@dataclasses.dataclass(frozen=True)
class Log:
    """Cadence in images of metric rows and checkpoints, and how many checkpoints are kept. `trackers` are told what
    TensorBoard is, where they are installed."""

    every_images: Count = 1_000
    checkpoint_every_images: Whole = 50_000
    keep: Count = 2
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each named axis; -1 takes what is left.

    dcn: the part of an axis that crosses slices or nodes, as {"data": 4}; by default of the first axis they divide.
    rules: logical axis -> a mesh axis, several in order of preference, or None, in place of `lgm.parallel.RULES`.
    replicate_below: parameters of fewer elements are whole on every device. microbatches: parts of a batch that follow
    each other through the pipeline's stages; by default as many as there are stages, more leave them less idle.
    """

    data: Axis = -1
    fsdp: Axis = 1
    context: Axis = 1
    tensor: Axis = 1
    stage: Axis = 1
    dcn: dict[str, int] = dataclasses.field(default_factory=dict)
    rules: dict[str, Any] = dataclasses.field(default_factory=dict)
    replicate_below: Whole = 0
    microbatches: Count | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """A run. State after N images is a function of (config, seed, N) alone.

    init_from: a diffusers folder, or the folder of a run, whose denoiser's weights training starts from. lora: train
    low-rank changes to them instead of the weights themselves; all else is then frozen. accumulate: pieces of a batch
    whose gradients are summed before an update, for a batch that does not fit. attention: what computes it
    (`lgm.models.attention`). imports: modules of your own, which register what the config names (`lgm.register`), by
    name or as .py files, from the config's folder.
    """

    name: str
    model: Any
    total_images: Count
    batch_size: Count = 32
    accumulate: Count = 1
    seed: Annotated[int, Bound(0, 2**32 - 1)] = 0
    data: Data = Data()
    autoencoder: str = "emoji64"
    init_from: str | None = None
    lora: LoRAConfig | None = None
    text: Text | None = None
    process: dict[str, Any] = dataclasses.field(default_factory=lambda: {"name": "rectified_flow"})
    loss: Any = None
    optimizer: Optimizer = Optimizer()
    ema: EMA = EMA()
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()
    log: Log = Log()
    mesh: Mesh = Mesh()
    attention: Implementation = "auto"
    imports: tuple[str, ...] = ()

    def __post_init__(self):
        own = {}  # a run's config.json says how it draws
        if self.sampling.solver is None:
            own["solver"] = self.loss.record.solver if self._denoises else "euler"
        if self.sampling.steps is None:
            own["steps"] = self.loss.steps or 30 if self._denoises else 30
        object.__setattr__(self, "sampling", dataclasses.replace(self.sampling, **own))

    @property
    def _denoises(self) -> bool:
        return isinstance(self.loss, DenoisingLoss)

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.total_images // self.batch_size

    @property
    def family(self) -> str:
        """The model's family name."""
        return family_of(self.model).name
