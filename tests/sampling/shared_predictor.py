"""One predictor and one stream of noise for diffusers' schedulers and for our solvers, and both sides' states."""

import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lgm import gaussian

SHAPE = (2, 4, 4, 3)
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
DDPM = gaussian.ddpm()
FLOW = gaussian.rectified_flow()
MIX = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32) * 0.6
KEY = 3


def predictor(numpy_like):
    """A fixed nonlinear function of (x_t, t in [0, 1]) in numpy's terms, for torch and for JAX."""
    return lambda x, t, mix: 0.9 * numpy_like.tanh(x @ mix) + 0.3 * x + 0.1 * t


def ours(x, t_B):
    """It as our solvers take it."""
    return predictor(jnp)(x, t_B.reshape(-1, 1, 1, 1), MIX)


def start(seed):
    """Normal x_T."""
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def theirs_trace(scheduler, x, scaled=False, inputs=None, keywords=None):
    """The state before each step and at the end; `scaled` has x scaled for the network. `told` are the times [0, 1]
    that the network is told where they are not the scheduler's own, in thousandths."""
    predict, mix = predictor(torch), torch.from_numpy(MIX)
    x, states, draws = torch.from_numpy(x), [], iter(_noises())
    inputs = [float(t) / 1000 for t in scheduler.timesteps] if inputs is None else inputs
    for t, time in zip(scheduler.timesteps[: len(inputs)], inputs, strict=True):
        states.append(x.numpy().copy())
        given = scheduler.scale_model_input(x, t) if scaled else x
        with _noise_of(draws):
            x = scheduler.step(predict(given, float(time), mix), t, x, **(keywords or {})).prev_sample
    return np.stack([*states, x.numpy()])


class _noise_of:
    """Every draw of the schedulers' noise is the next of ours."""

    MODULES = ("ddpm", "ddim", "euler_ancestral_discrete", "dpmsolver_multistep", "dpmsolver_singlestep", "scm",
               "edm_dpmsolver_multistep")  # fmt: skip

    def __init__(self, draws):
        self.draws, self.patch = draws, pytest.MonkeyPatch()

    def __enter__(self):
        for name in self.MODULES:
            module = getattr(diffusers.schedulers, f"scheduling_{name}")
            self.patch.setattr(module, "randn_tensor", lambda *a, **k: torch.from_numpy(next(self.draws)))

    def __exit__(self, *_):
        self.patch.undo()


def _noises():
    """What our solvers draw in steps 0, 1, ..."""
    for n in range(1000):
        yield np.array(jax.random.normal(jax.random.fold_in(jax.random.key(KEY), n), SHAPE, jnp.float32))


def ours_trace(method, process, target, x, times, inputs=None, ends=None, predict=ours):
    """The state before each step and at the end. The network is told `told` instead of times[:-1]; steps end at `ends`
    instead of times[1:]. One compiled step serves all grids."""
    carry, states = (jnp.asarray(x), method.start(jnp.asarray(x))), [x]
    inputs, ends = times[:-1] if inputs is None else inputs, times[1:] if ends is None else ends
    for number, (t, s, said) in enumerate(zip(times[:-1], ends, inputs, strict=True)):
        key = jax.random.fold_in(jax.random.key(KEY), number)
        # an inner evaluation of a step, at its end, is told the end's own time
        carry = _step(method, process, target, predict, carry, *(jnp.asarray(u, float) for u in (t, s, said)), key)
        states.append(np.asarray(carry[0]))
    return np.stack(states)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _step(method, process, target, predict, carry, t, s, said, key):
    def denoise(x, u):
        told_B = jnp.full(x.shape[:1], jnp.where(u == t, said, u))
        return gaussian.endpoints(process, target, predict(x, told_B), x, jnp.full(x.shape[:1], u))

    return method.step(process, denoise, *carry, t, s, key)


def times_of(process, sigmas):
    """Our times of noise levels, the last of which is 0: the data."""
    ratios = -2.0 * np.log(np.asarray(sigmas[:-1], np.float64))
    # above 0, which would be the data: a table's first entry
    times = [max(float(process.time_at_log_snr(jnp.asarray(ratio, float))), 1e-12) for ratio in ratios]
    return np.append(times, 0.0).astype(jnp.result_type(float))


def signal(times):
    """a(t) of DDPM's table in float64, 1 at the data."""
    a = np.append(np.asarray(DDPM.a(jnp.asarray(times[:-1])), np.float64), 1.0)
    return a.reshape(-1, 1, 1, 1, 1)


def assert_same(ours, theirs, atol=1e-5):
    """To `atol` of the largest value met, step by step."""
    assert len(ours) == len(theirs)
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=atol)
