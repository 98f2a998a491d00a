"""How far images drawn from held-out captions are from the real ones, by features of the run's own autoencoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lgm.data import ImageSet
from lgm.drawing import draw
from lgm.evaluate import distance
from lgm.parallel import even, in_batches, spread, using
from lgm.parsing import ConfigError
from lgm.system import System

CHUNK = 64  # images through the encoder at a time


def image_distances(system: System, params, frozen, heldout: ImageSet) -> dict[str, float]:
    """Distances of `config.evaluation.distance` drawn images from all held-out ones; {} for none.

    Their captions are spread evenly over the held-out set; the noise of image i is a function of i alone. Returns
    `kernel_distance`, its standard error `kernel_distance_error`, and `frechet_distance`, which falls as the number of
    images grows: all compare at one number and with one autoencoder only, and with no published FID. The encoder's
    features rank blur, grey images, loss of variety and strong noise; grain of a few grey levels they do not see.
    """
    count = min(system.config.evaluation.distance, len(heldout))
    if not count:
        return {}
    rows = np.linspace(0, len(heldout) - 1, count).round().astype(int)
    captions = heldout.captions
    images = draw(system, params, frozen, [captions[row] for row in rows])
    drawn, real = features(system, frozen, images), features(system, frozen, heldout.images())
    value, error = distance.kernel(drawn, real)
    return {"kernel_distance": value, "kernel_distance_error": error, "frechet_distance": distance.frechet(drawn, real)}


def check_enough(system: System, heldout: ImageSet) -> None:
    """Raise ConfigError, one line, where a distance is wanted from fewer held-out images than have one."""
    wanted = system.config.evaluation.distance
    if wanted and len(heldout) < distance.LEAST:
        raise ConfigError(f"config.evaluation.distance={wanted} needs {distance.LEAST} held-out images or more, and "
                          f"config.data.heldout_where and config.evaluation.max_images leave {len(heldout)}")


def features(system: System, frozen, images_NHWC: np.ndarray) -> np.ndarray:
    """Features [N, D] of uint8 images: means and standard deviations of the autoencoder's last hidden channels."""
    of_rows = lambda rows: _features(system, frozen, *spread(system.layout, images_NHWC[rows]))
    return in_batches(of_rows, len(images_NHWC), even(system.layout, CHUNK))


@functools.partial(jax.jit, static_argnums=0)
def _features(system: System, frozen, images_BHWC):
    x = images_BHWC.astype(jnp.float32) / 127.5 - 1.0
    with using(system.layout):
        return system.autoencoder.apply(frozen["autoencoder"], x, method="features")
