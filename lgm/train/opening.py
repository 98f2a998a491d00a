"""Runs that are there already: their systems and weights, to draw with, measure, export or teach."""

import jax

from lgm import config as schema
from lgm.files import cache, place
from lgm.models import Params, family_of
from lgm.parallel import Layout, make_layout, shardings
from lgm.parsing import ConfigError
from lgm.system import System
from lgm.train.averaging import mixture, summed
from lgm.train.restoring import restore_weights
from lgm.train.saved import complete_steps
from lgm.train.start import Start, open_system

KEPT = 0.1  # seconds of compiling from which a program is kept between runs; less is as soon compiled as read
WORST = 0.2  # error of an average that is made of checkpoints


def load_run(workdir: str, weights: str, layout: Layout | None = None):
    """(system, weights, frozen parameters, images seen) of a run's newest checkpoint; of one that was only imported,
    the weights that it will start from. They lie in `layout`, by default over all devices of all processes."""
    config, system, frozen, trained, step = open_run(workdir, weights, layout)
    return system, system.whole(trained, frozen), frozen, step * config.batch_size


def open_run(workdir: str, weights: str, layout: Layout | None = None):
    """(config, system, frozen parameters, trained parameters, step) of a denoiser's run."""
    system, frozen, start = open_parts(workdir, layout)
    trained, images, _ = stored_weights(workdir, system, start, weights)
    return system.config, system, frozen, trained, images // system.config.batch_size


def open_parts(workdir: str, layout: Layout | None = None) -> tuple[System, Params, Start | None]:
    """(system, frozen parameters, the weights that it started from if not fresh ones) of a denoiser's run, without what
    it has learned."""
    config = schema.read(workdir)
    if family_of(config.model).role == "autoencoder":
        raise ConfigError(f"--workdir={workdir} holds an autoencoder's run; give the folder of a denoiser's")
    use_compilation_cache()
    return open_system(config, layout or over_all_devices())


def stored_weights(workdir: str, system: System, start: Start | None, weights: str = "ema", images: int | None = None,
                   half_life_images: int | None = None) -> tuple[Params, int, float]:
    """("ema" or "raw" weights of a run's newest checkpoint or of that after so many `images`, images seen, 0.0); of a
    run that has none, the weights that it will `start` from.

    With `half_life_images` those averaged with another half-life than the run's, as far as its checkpoints tell them,
    and the error of that (`averaging.mixture`). Raises ConfigError, one line, for a checkpoint that is not there and an
    average that the checkpoints do not tell.
    """
    config = system.config
    if images is not None and images % config.batch_size:
        raise ConfigError(f"protocol.weights.images={images} is no multiple of config.batch_size={config.batch_size}")
    step = None if images is None else images // config.batch_size
    abstract = jax.eval_shape(system.init, jax.random.key(0))
    places = shardings(system.layout, abstract, system.logical_axes())
    if start is not None and not (place(workdir) / "checkpoints").exists() and images is half_life_images is None:
        return start(places), 0, 0.0
    restore = lambda kind, step: restore_weights(workdir, abstract, kind, places, step)
    if half_life_images is None:
        found, step = restore(weights, step)
        return found, step * config.batch_size, 0.0
    steps = complete_steps(place(workdir) / "checkpoints")
    last = step if step is not None else max(steps, default=0)
    steps = [step for step in steps if step <= last]
    if last not in steps:
        raise ConfigError(f"{place(workdir) / 'checkpoints'} holds no checkpoint of step {last}, which an average "
                          "would end with")
    shares, error = mixture(config.ema, half_life_images, config.batch_size, steps)
    if error > WORST:
        raise ConfigError(f"protocol.weights.half_life_images={half_life_images}: the {len(steps)} checkpoints that "
                          f"are kept tell that average with an error of {error:.0%} only; train with more (config.log."
                          "checkpoint_every_images, config.log.keep), or take another")
    parts = (restore(kind, step)[0] for kind in ("ema", "raw") for step in steps)
    return summed(parts, shares.ravel().tolist()), last * config.batch_size, error


def over_all_devices() -> Layout:
    """The layout of what only draws, measures or writes: weights are split over all devices, and so are images."""
    return make_layout({"data": 1, "fsdp": -1})


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the user has already said where (JAX_COMPILATION_CACHE_DIR) and which
    (JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS; JAX's own second would leave out all that is compiled quickly)."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache("xla")))
    if jax.config.jax_persistent_cache_min_compile_time_secs == 1.0:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", KEPT)
