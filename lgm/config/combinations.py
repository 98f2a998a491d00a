"""What of a config's sections does not go together, in one line that names the key, the value and what would do."""

from lgm import losses
from lgm.config.sections import Config, need
from lgm.data.buckets import bucket_sizes
from lgm.models import ConditioningSpec, families, family_of
from lgm.models.autoencoder import AutoencoderConfig
from lgm.parsing import ConfigError, as_dict, parse

WIDTHS = {"text": "text_dim", "pooled": "pooled_dim", "micro": "micro_ids"}  # what is told -> the key of its width


def check(config: Config) -> None:
    """Raise ConfigError, one line, for the first impossible combination in a config."""
    network, spec = family_of(config.model), family_of(config.model).conditioning(config.model)
    autoencoder = network.role == "autoencoder"
    need(config.batch_size % config.accumulate == 0,
         f"config.accumulate={config.accumulate} does not divide config.batch_size={config.batch_size}; give a divisor")
    need(config.total_images >= config.batch_size,
         f"config.total_images={config.total_images} is less than one batch of config.batch_size={config.batch_size}")
    need(config.optimizer.warmup_images <= config.total_images,
         f"config.optimizer.warmup_images={config.optimizer.warmup_images} must lie between 0 and "
         f"config.total_images={config.total_images}")
    crop, resolution = config.data.crop, config.data.resolution
    need(config.data.cache is None or not autoencoder,
         f"config.data.cache={config.data.cache!r} is for denoisers; an autoencoder learns from pixels")
    if (step := config.data.buckets) is not None:
        need(not autoencoder, f"config.data.buckets={step} is for denoisers; an autoencoder learns from "
                              "crops, config.data.crop")
        need(config.loss.teacher is None,
             f"config.data.buckets={step} does not go with config.loss.teacher; leave it out")
        distance = config.evaluation.distance
        need(distance == 0, f"config.evaluation.distance={distance} compares images of one size; set it to 0 with "
                            "config.data.buckets")
    _check_varying(config, autoencoder)
    if autoencoder:
        need(hasattr(network.module, "reconstruct"),
             f"config.model.family={config.family!r} cannot be trained here; choose autoencoder")
        need(all(side % config.model.factor == 0 for side in (crop or 0, *config.data.size)),
             f"config.data.resolution={resolution} and config.data.crop={crop} must be multiples of "
             f"{config.model.factor}, the pixels a latent of config.model")
        need(config.lora is None, "config.lora is for denoisers; an autoencoder is trained whole")
        need(config.init_from is None, f"config.init_from={config.init_from!r} is for denoisers")
        need(config.optimizer.mup_base is None, "config.optimizer.mup_base is for denoisers")
        need(config.accumulate == 1, f"config.accumulate={config.accumulate} is for denoisers: an autoencoder's loss "
                                     "looks at the whole batch; set it to 1")
        return
    if config.optimizer.mup_base is not None:
        need(config.lora is None, "config.optimizer.mup_base is for whole models; a LoRA has no width to transfer over")
        mup_base(config)
    need(config.lora is None or config.init_from is not None,
         "config.lora needs config.init_from, the diffusers folder or the run whose weights it changes")
    need(network.role == "denoiser",
         f"config.model.family={config.family!r} cannot be trained alone; choose "
         f"{', '.join(found.name for found in families('denoiser'))} or autoencoder")
    distilled = config.text is not None and config.text.folder is not None
    need(not spec.guidance or distilled or losses.loss(config.loss.name).guidance,
         "config.model.guidance=True is for config.loss.name='guidance_distillation', or a network so distilled with "
         "its config.text.folder; set it to False")
    _check_classes(config, spec)
    _check_loss(config, spec)
    if config.text is not None and config.text.encoder is not None:
        _check_encoder(config, spec)


def _check_varying(config: Config, autoencoder: bool) -> None:
    """What is drawn anew each time an image is served, where it can be."""
    data = config.data
    if autoencoder:
        need(not data.random_crop, "config.data.random_crop=True is for denoisers; an autoencoder learns from random "
                                   "crops of config.data.crop")
        need(data.tags is None, "config.data.tags is for denoisers; an autoencoder reads no captions")
        need(data.posterior == "mean", f"config.data.posterior={data.posterior!r} is for denoisers; leave it out")
        return
    need(not data.random_crop or data.latents == "step",
         "config.data.random_crop=True needs config.data.latents='step': others are of images cut in the middle")
    need(data.posterior == "mean" or data.latents == "step" or data.cache,
         f"config.data.posterior={data.posterior!r} needs config.data.latents='step' or a config.data.cache: latents "
         "in memory are means")
    need(not data.varying or losses.loss(config.loss.name).teacher != "pairs",
         f"config.data.{', '.join(data.varying)} does not go with config.loss.name={config.loss.name!r}, which learns "
         "from pairs that its teacher draws once; leave it out")
    need(data.tags is None or config.text is not None and not config.text.classes,
         "config.data.tags arranges captions that a denoiser reads; leave it out without config.text and with its "
         "classes")
    need(data.tags is None or data.cache is None or config.text.folder is None,
         f"config.data.tags does not go with config.data.cache={data.cache!r} and config.text.folder: a cache has what "
         "captions say as they are; leave it out")


def encoders() -> tuple[str, ...]:
    """Families of text encoders that can be trained with a denoiser: those of features and one vector."""
    return tuple(found.name for found in families("text encoder") if found.vector)


def _check_encoder(config: Config, spec: ConditioningSpec) -> None:
    """A denoiser takes the widths that its text encoder gives."""
    encoder, network = config.text.encoder, family_of(config.model)
    vector = family_of(encoder).vector
    need(vector is not None, f"config.text.encoder.family={family_of(encoder).name!r} cannot be trained with a "
                             f"denoiser; choose {' or '.join(encoders())}")
    pooled = vector(encoder)
    fits = lambda name, width, given: width == given or width == 0 and name not in network.requires
    need(fits("text", spec.text, encoder.width),
         f"config.model.text_dim={spec.text} must equal config.text.encoder.width={encoder.width}")
    need(fits("pooled", spec.pooled, pooled),
         f"config.model.pooled_dim={spec.pooled} must equal the {pooled} of config.text.encoder's vector "
         "(projection_dim, else width)")
    need(not spec.micro, f"config.model.micro_ids={spec.micro} is for the text of a config.text.folder; set it to 0")


def check_parts(config: Config, autoencoder: AutoencoderConfig) -> None:
    """What can be seen once a denoiser's autoencoder is there.

    Refuses a model of other channels than latents have, one that is told text where there is none, and a resolution
    that latents or patches do not divide.
    """
    factor, channels = autoencoder.factor, autoencoder.latent_channels
    network, spec = family_of(config.model), family_of(config.model).conditioning(config.model)
    need(not spec.beside, f"config.model.beside={spec.beside} is of a model that inpaints, and no data set here has "
         "masks to train one with; set it to 0, or draw with `lgm sample --from=FOLDER --image=X --mask=Y`")
    need(config.model.channels == channels, f"config.model.channels={config.model.channels} is not the {channels} of "
         f"the latents of config.autoencoder={config.autoencoder!r}; set it to {channels}")
    if config.text is None and any(getattr(spec, part) for part in WIDTHS):
        widths = ", ".join(f"{key}={width}" for part, key in WIDTHS.items() if (width := getattr(spec, part)))
        raise ConfigError(f"config.model of family {config.family!r} is told text ({widths}): give config.text, "
                          "dict(encoder=...) or dict(folder=...), or choose a dit or a unet of text_dim=0")
    size, patch = config.data.size, network.unit(config.model)
    step = config.data.buckets
    need(step is None or step % (factor * patch) == 0,
         f"config.data.buckets={step} must be a multiple of {factor * patch}, the pixels a latent of "
         f"config.autoencoder={config.autoencoder!r} x config.model.patch_size={patch}")
    if any(side % (factor * patch) for side in size):
        near = tuple(max(round(side / (factor * patch)), 1) * factor * patch for side in size)
        patches = f" x config.model.patch_size={patch}" if patch > 1 else ""
        raise ConfigError(f"config.data.resolution={config.data.resolution} is no multiple of {factor * patch}, the "
                          f"pixels a latent of config.autoencoder={config.autoencoder!r}{patches}; "
                          f"{near if isinstance(config.data.resolution, tuple) else near[0]} would do")
    table, side = network.reach(config.model), max(size)
    if table is not None and step is not None:
        side = max(max(size) for size in bucket_sizes(size, step))
    if table is not None and side // (factor * patch) > table:
        named = "config.data.resolution" if step is None else "the longest side of config.data.buckets"
        raise ConfigError(f"{named}={side} makes {side // (factor * patch)} patches a side, more than "
                          f"config.model.position_size={table}; raise that")


def mup_base(config: Config):
    """The model configuration whose learning rate `config.optimizer.lr` is. Raises ConfigError for unknown fields."""
    changes = dict(config.optimizer.mup_base)
    if "family" in changes:
        raise ConfigError("config.optimizer.mup_base.family: the family is config.model's; leave it out")
    return parse(type(config.model), as_dict(config.model) | changes, "config.optimizer.mup_base")


def _check_classes(config: Config, spec: ConditioningSpec) -> None:
    """A DiT is told classes, all others text."""
    classes = config.text.classes if config.text else ()
    need(not classes or spec.classes, f"config.text.classes are for a dit; a {config.family} is told text")
    need(not spec.classes or config.text is None or config.text.encoder is None,
         "config.text.encoder is for text, which a dit is not told; give the names of its classes, config.text.classes")
    need(len(classes) <= spec.classes,
         f"config.text.classes are {len(classes)}, more than config.model.classes={spec.classes}")
    variance = config.loss.variance
    need(not variance or spec.variance,
         f"config.loss.variance={variance} needs a dit with config.model.learned_sigma=True")


def _check_loss(config: Config, spec: ConditioningSpec) -> None:
    record = losses.loss(config.loss.name)
    need(config.data.cache is None or not config.loss.asks or config.text is None or config.text.folder is None,
         f"config.data.cache={config.data.cache!r}: the teacher of config.loss.name={config.loss.name!r} asks its own "
         "text encoders; leave it out")
    need(not record.jump or spec.jump,
         f"config.loss.name={record.name!r} needs config.model.jump=True, of an mmdit or a unet")
    jumping = " and ".join(name for name in losses.LOSSES if losses.loss(name).jump)
    need(record.jump or not spec.jump, f"config.model.jump=True is for the losses {jumping}, not {record.name}")
    need(not record.guidance or spec.guidance,
         f"config.loss.name={record.name!r} needs a network that is told a scale, as a flux of "
         "config.model.guidance=True")
    need(not record.forward or config.attention == "xla",
         f"config.loss.name={record.name!r} takes a forward derivative of the network; set config.attention='xla'")
    if config.loss.teacher is not None:
        need(not record.guidance or config.loss.teacher.guidance == 1.0,
             f"config.loss.teacher.guidance={config.loss.teacher.guidance}: config.loss.name={record.name!r} draws the "
             "scale from config.loss.scales; set it to 1.0")
        need(record.teacher == "pairs" or config.loss.teacher.cache is None,
             f"config.loss.teacher.cache={config.loss.teacher.cache!r} is of pairs, and config.loss.name="
             f"{record.name!r} asks its teacher in every step; leave it out")
        need(config.loss.teacher.pairs >= config.batch_size,
             f"config.loss.teacher.pairs={config.loss.teacher.pairs} is less than "
             f"config.batch_size={config.batch_size}")
