"""Averages of another length than the one that was kept, made after training from a run's checkpoints.

After Karras et al. 2024 (2312.02696, section 3.2), for the exponential average that training keeps: an average is a
weighting of the weights at all steps, and so is what checkpoints hold, "ema" and "raw" of each; those are summed so
that the weighting comes nearest to the one that is wanted. Nearest: weights move by steps that are about independent,
so the error of a sum is measured by that of the cumulative weightings.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from lgm.config import EMA


def reach(ema: EMA, batch_size: int, steps: int) -> np.ndarray:
    """[steps + 1] log of the part of an average that what came at or before each step has kept, relative to step 0:
    the sum of the logs of the decays (`state.ema_decay`) up to there."""
    images = np.arange(1, steps + 1, dtype=np.float64) * batch_size
    half_life = np.minimum(float(ema.half_life_images), ema.ramp * images) if ema.ramp else ema.half_life_images
    return np.concatenate([[0.0], np.cumsum(-np.log(2.0) * batch_size / (half_life * np.ones(steps)))])


def mixture(ema: EMA, half_life_images: int, batch_size: int, steps: Sequence[int]) -> tuple[np.ndarray, float]:
    """(shares [2, K] of the "ema" and "raw" weights of checkpoints at K `steps`, their error).

    They sum to 1 and make the average of that half-life at the last of the steps, with the run's ramp. The error is
    relative to how far that average is from the last raw weights: 0 where it is kept as it is, 1 is no use.
    """
    steps, last = np.asarray(steps), max(steps)
    kept, wanted = reach(ema, batch_size, last), reach(dataclasses.replace(ema, half_life_images=half_life_images),
                                                       batch_size, last)
    place = np.arange(last)  # cumulative weightings are all 1 at the last step itself
    of_average = lambda logs, step: np.where(place < step, np.exp(np.minimum(logs[step] - logs[:last], 0.0)), 1.0)
    basis = [of_average(kept, step) for step in steps] + [(place >= step).astype(float) for step in steps]
    target, newest = of_average(wanted, last), basis[len(steps) + int(np.argmax(steps))]
    # shares that sum to 1: differences from the newest raw weights, whose cumulative weighting is 0 before the end
    matrix = np.stack([one - newest for one in basis], 1)
    shares = np.linalg.lstsq(matrix, target - newest, rcond=1e-10)[0]
    shares[len(steps) + int(np.argmax(steps))] = 0.0
    error = np.linalg.norm(matrix @ shares - (target - newest)) / max(np.linalg.norm(target - newest), 1e-300)
    shares[len(steps) + int(np.argmax(steps))] = 1.0 - shares.sum()
    return shares.reshape(2, -1), float(error)


def summed(parts, shares: Sequence[float]):
    """The sum of weights trees, each times its share, in float32; `parts` are read one after the other."""
    total = None
    for part, share in zip(parts, shares, strict=True):
        scaled = jax.tree.map(lambda leaf: np.float32(share) * leaf, part)
        total = scaled if total is None else jax.tree.map(lambda a, b: a + b, total, scaled)
    return total
