"""What a run starts from: fresh weights, those of a diffusers folder, or those of another run."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from lgm import config as schema
from lgm import files
from lgm.config import Config
from lgm.files import place
from lgm.interop.components import open_checked
from lgm.interop.tensor_files import load
from lgm.models import Model, Params, build, family_of
from lgm.parallel import Layout
from lgm.parsing import ConfigError, as_dict
from lgm.system import System, build_system, sharder
from lgm.systems.folders import load_pipeline
from lgm.train.restoring import restore_weights

FREE = ("dtype", "remat", "group", "unroll")  # how a model computes, which another run may choose otherwise
Start = Callable[[Any], Params]  # shardings of what is trained, or None -> its weights


def open_system(config: Config, layout: Layout | None = None,
                cached: bool = False) -> tuple[System, Params, Start | None]:
    """(system, all that is frozen, the weights to start from if not fresh ones) of a config.

    With `config.lora` the weights that it starts from are frozen, held in the model's dtype. `cached`: without
    autoencoder and text encoders (`lgm.system.build_system`). Raises ConfigError, one line, where `config.init_from`
    does not fit.
    """
    system, frozen = build_system(config, layout, cached)
    if config.init_from is None:
        return system, frozen, None
    source = place(config.init_from, "config.init_from")
    folder = (source / "model_index.json").is_file()
    if not folder and not (source / "config.json").is_file():
        raise ConfigError(f"config.init_from={config.init_from!r} is neither a diffusers folder with a "
                          "model_index.json nor the folder of a run")
    if config.lora is None:
        return system, frozen, _from_folder(config, system) if folder else _from_run(config, system)
    if folder and system.text:
        raise ConfigError("config.lora freezes the text encoder, which config.init_from does not hold; give "
                          "config.text.folder instead of config.text.encoder")
    return system, frozen | _base(config, system, sharder(layout), folder), None


def _base(config: Config, system: System, shard, folder: bool) -> Params:
    """The frozen weights that a LoRA changes: the denoiser's and, of a run with a text encoder of its own, that's."""
    models = _models(config, system)
    places = None if shard is None else {name: shard(model) for name, model in models.items()}
    if not folder:
        return _from_run(config, system)(places)
    read = open_denoiser(config.init_from, models["denoiser"])
    return {"denoiser": read(dtype=config.model.dtype, shardings=places and places["denoiser"])}


def _from_folder(config: Config, system: System) -> Start:
    """The denoiser's weights of a folder, and fresh ones of a text encoder of the run's own."""
    read = open_denoiser(config.init_from, system.denoiser)

    def start(shardings: Any) -> Params:
        place = (lambda name: None) if shardings is None else shardings.__getitem__
        params = {"denoiser": read(shardings=place("denoiser"))}
        if system.text:
            key = jax.random.split(jax.random.key(config.seed))[1]
            params["text"] = jax.jit(system.text.init, out_shardings=place("text"))(key)
        return params

    return start


def _from_run(config: Config, system: System) -> Start:
    """The EMA weights of the run that `config.init_from` names, whose models must be those of `config`; a denoiser that
    is told jumps starts from one that is not, whose predictions it makes before it is trained."""
    name, theirs = config.init_from, schema.read(config.init_from)
    if theirs.lora:
        raise ConfigError(f"config.init_from={name!r} is a LoRA's run; give the weights that it starts from")
    encoder = lambda c: c.text.encoder if c.text else None
    for key, mine, other in (
        ("model", config.model, theirs.model),
        ("text.encoder", encoder(config), encoder(theirs)),
    ):
        if type(mine) is not type(other):
            raise ConfigError(f"config.{key} is not that of config.init_from={name!r}; start from a run of the same")
        new = ("jump",) if key == "model" and _gains_jumps(mine, other) else ()
        _check_same(mine, other, f"config.{key}", f"config.init_from={name!r}", new)
    abstract = {part: model.abstract() for part, model in _models(config, system).items()}
    if not _gains_jumps(config.model, theirs.model):
        return lambda shardings: restore_weights(name, abstract, "ema", shardings)[0]
    known = build(theirs.model).abstract()
    kept = lambda part: {key: leaf for key, leaf in part.items() if key in known}
    new = lambda part: {key: leaf for key, leaf in part.items() if key not in known}
    fresh = lambda: new(build(config.model).init(jax.random.key(config.seed)))

    def start(shardings: Any) -> Params:
        places = None if shardings is None else shardings | {"denoiser": kept(shardings["denoiser"])}
        params = restore_weights(name, abstract | {"denoiser": kept(abstract["denoiser"])}, "ema", places)[0]
        added = jax.jit(fresh, out_shardings=None if shardings is None else new(shardings["denoiser"]))()
        return params | {"denoiser": params["denoiser"] | added}

    return start


def _gains_jumps(mine: Any, theirs: Any) -> bool:
    """Whether a denoiser is told jumps and another not."""
    told = [family_of(one).conditioning(one).jump for one in (mine, theirs)]
    return told == [True, False]


def _models(config: Config, system: System) -> dict[str, Model]:
    """What another run's weights are of: the denoiser without a LoRA and a text encoder of the run's own."""
    return {"denoiser": build(config.model)} | ({"text": system.text} if system.text else {})


def _check_same(mine: Any, theirs: Any, key: str, source: str, free: tuple[str, ...] = ()) -> None:
    """Raise ConfigError, one line, for the first field in which two configurations of one class differ, but for how
    they compute and what is `free`."""
    for name, value in (as_dict(theirs) if theirs else {}).items():
        if name not in (*FREE, *free) and (own := as_dict(mine)[name]) != value:
            raise ConfigError(f"{key}.{name}={own!r}, but that of {source} is {value!r}")


def open_denoiser(folder: str, model: Model, key: str = "config.init_from") -> Callable[..., Params]:
    """`read(dtype=None, shardings=None)` of the weights of a folder's denoiser, once they are seen to be for `model`.

    The configuration must be the folder's but for how it computes. Raises ConfigError, one line, naming what differs.
    """
    pipeline, _ = load_pipeline(folder, only=())
    theirs = pipeline.denoiser.config
    if type(theirs) is not type(model.config):
        found, wanted = family_of(theirs).name, family_of(model.config).name
        raise ConfigError(f"{key}={folder!r} holds a {found}; config.model.family={wanted!r} cannot start from it")
    _check_same(model.config, theirs, "config.model", f"{key}={folder!r}")
    place = pipeline.system.denoiser
    rules, weights = open_checked(files.local(folder) / place, pipeline.classes[place], model)
    return functools.partial(load, rules, model.abstract(), weights)
