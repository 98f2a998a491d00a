"""Runs that are there already: their systems and weights, to draw with, measure, export or teach."""

import jax

from lgm import config as schema
from lgm.files import cache, place
from lgm.models import family_of
from lgm.parallel import Layout, make_layout, shardings
from lgm.parsing import ConfigError
from lgm.train.restoring import restore_weights
from lgm.train.start import open_system


def load_run(workdir: str, weights: str, layout: Layout | None = None):
    """(system, weights, frozen parameters, images seen) of a run's newest checkpoint; of one that was only imported,
    the weights that it will start from. They lie in `layout`, by default over all devices of all processes."""
    config, system, frozen, trained, step = open_run(workdir, weights, layout)
    return system, system.whole(trained, frozen), frozen, step * config.batch_size


def open_run(workdir: str, weights: str, layout: Layout | None = None):
    """(config, system, frozen parameters, trained parameters, step) of a denoiser's run."""
    config = schema.read(workdir)
    if family_of(config.model).role == "autoencoder":
        raise ConfigError(f"--workdir={workdir} holds an autoencoder's run; give the folder of a denoiser's")
    use_compilation_cache()
    layout = layout or over_all_devices()
    system, frozen, start = open_system(config, layout)
    abstract = jax.eval_shape(system.init, jax.random.key(0))
    places = shardings(layout, abstract, system.logical_axes())
    if start is not None and not (place(workdir) / "checkpoints").exists():
        return config, system, frozen, start(places), 0
    return config, system, frozen, *restore_weights(workdir, abstract, weights, places)


def over_all_devices() -> Layout:
    """The layout of what only draws, measures or writes: weights are split over all devices, and so are images."""
    return make_layout({"data": 1, "fsdp": -1})


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the user has already said where (JAX_COMPILATION_CACHE_DIR)."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache("xla")))
