"""The loop of a diffusers scheduler and ours, around one made-up network, on the same noise."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch

from lgm import sampling
from lgm.gaussian import network_input

SHAPE = (1, 2, 2, 3)
NOISE, PICTURE = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)


def network(x, t):
    """A curved field that no solver integrates exactly, of torch tensors or ours; its slope is bounded, so that what
    float32 rounds off is not multiplied."""
    numbers = torch if isinstance(x, torch.Tensor) else jnp
    return numbers.tanh(0.7 * x * (1.3 - t)) + 0.3 * numbers.cos(3 * t + numbers.tanh(x))


@functools.cache
def predictor(process):
    """The network as a folder's is asked (`pipelines._predictor`): under EDM's process at log(sigma) / 4."""

    def predict(x, t_B, arguments):
        if process.name == "edm":
            x, t_B = network_input(process, x, t_B), 0.25 * jnp.log(process.sigma(t_B))
        return network(x, t_B.reshape(-1, 1, 1, 1))

    return predict


def our_sample(schedule, steps, key=0, last=None):
    """What `schedule` makes of NOISE; with `last` in so many steps, from PICTURE with NOISE."""
    process, walk = schedule.build(), schedule.timesteps(steps)
    method, start = schedule.method(walk.times), NOISE * schedule.noise_scale(process, walk.times)
    if last is not None:
        walk = schedule.part(walk, last)
        start, _ = sampling.from_image(process, PICTURE, NOISE, walk.times, 1.0)
    return sampling.loop(method, process, schedule.target, predictor(process), start, walk, (), jax.random.key(key))


@functools.cache
def _draw(number):
    draw = jax.random.normal(jax.random.fold_in(jax.random.key(0), number), SHAPE)
    return torch.from_numpy(np.asarray(draw).transpose(0, 3, 1, 2).copy())


def their_sample(theirs, steps, monkeypatch, last=None):
    """diffusers' loop; its step noise is ours, a function of the step's number. With `last` it is image to image's."""
    numbers = iter(range(1000))
    module = sys.modules[type(theirs).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: _draw(next(numbers)), raising=False)
    theirs.set_timesteps(steps)
    x = torch.from_numpy(NOISE.transpose(0, 3, 1, 2).copy()) * getattr(theirs, "init_noise_sigma", 1.0)
    entries = 1 if "EDM" in type(theirs).__name__ else 1000
    first = 0 if last is None else (steps - last) * theirs.order
    if last is not None:
        theirs.set_begin_index(first)
        noise, picture = (torch.from_numpy(a.transpose(0, 3, 1, 2).copy()) for a in (NOISE, PICTURE))
        x = theirs.add_noise(picture, noise, theirs.timesteps[first : first + 1])
    for t in theirs.timesteps[first:]:
        told = torch.as_tensor(t).float() / entries
        given = theirs.scale_model_input(x, t) if hasattr(theirs, "scale_model_input") else x
        x = theirs.step(network(given, told), t, x).prev_sample
    return x.numpy().transpose(0, 2, 3, 1)


def relative_error(ours, expected):
    return float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))
