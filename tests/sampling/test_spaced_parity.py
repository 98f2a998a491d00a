"""Every solver against diffusers' on the grids that its schedulers know: leading, trailing and linspace entries, and
Karras', exponential and beta noise levels. Step by step, to 1e-5 of the largest value met (float32).

Each grid is diffusers' noise levels as our times (`shared_predictor.times_of`); the network is told diffusers'
timesteps, which some schedulers round and others interpolate. That `sampling.times` has the same levels is shown in
test_grids_and_starts.py.
"""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared_predictor import DDPM, FLOW, SD, assert_same, ours_trace, signal, start, theirs_trace, times_of

from lgm import sampling

STEPS = [10, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (20, 50))]
SPACINGS = ("leading", "trailing", "linspace")
RAMPS = ("karras", "exponential", "beta")
PLAIN = dict(SD, clip_sample=False)
MULTI = dict(SD, final_sigmas_type="zero", lower_order_final=False)
STOCHASTIC = dict(MULTI, algorithm_type="sde-dpmsolver++")
# our solver -> (diffusers' class, its options, whether it is stated on x / a, our options)
ON_SIGMAS = {
    "euler": ("EulerDiscreteScheduler", SD, True, {}),
    "heun": ("HeunDiscreteScheduler", SD, True, {}),
    "lms": ("LMSDiscreteScheduler", SD, True, {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", MULTI, False, {}),
    "dpmpp_3m": ("DPMSolverMultistepScheduler", dict(MULTI, solver_order=3), False, {"curvature": 0.5}),
    "ddpm": ("DPMSolverMultistepScheduler", dict(STOCHASTIC, solver_order=1), False, {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", STOCHASTIC, False, {}),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", dict(MULTI, lower_order_final=True), False, {}),
    "dpmpp_2s_sde": ("DPMSolverSinglestepScheduler", dict(STOCHASTIC, lower_order_final=True), False, {}),
    "unipc": ("UniPCMultistepScheduler", dict(SD, final_sigmas_type="zero"), False, {}),
}
ON_ENTRIES = ON_SIGMAS | {"euler_ancestral": ("EulerAncestralDiscreteScheduler", SD, True, {})}
for name in ("dpmpp_2s", "dpmpp_2s_sde"):  # whose class has one spacing alone
    del ON_ENTRIES[name]
CASES = [(name, "timestep_spacing", spacing) for name in ON_ENTRIES for spacing in SPACINGS]
CASES += [(name, f"use_{ramp}_sigmas", True) for name in ON_SIGMAS for ramp in RAMPS]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[2] if case[2] is not True else case[1]}")
def test_each_step_on_every_grid_equals_diffusers(case, steps):
    name, key, value = case
    cls, config, scaled, options = ON_ENTRIES[name] if name in ON_ENTRIES else ON_SIGMAS[name]
    scheduler = getattr(diffusers, cls)(**config, **{key: value})
    scheduler.set_timesteps(steps)
    if name == "heun":  # two evaluations a step, at one time each but for the first
        sigmas = scheduler.sigmas.numpy()[[0, *range(1, 2 * steps, 2)]]
        told = scheduler.timesteps.numpy()[[0, *range(1, 2 * steps - 1, 2)]]
    else:
        sigmas, told = scheduler.sigmas.numpy(), scheduler.timesteps.numpy()
    repeated = len(set(told.tolist())) < len(told)  # rounding: an index is looked up by its timestep
    if repeated:
        scheduler.set_begin_index(0)
    times = times_of(DDPM, sigmas)
    x, a = start(steps), signal(times)
    theirs = theirs_trace(scheduler, (x / a[0, 0] if scaled else x).astype(np.float32), scaled)
    if name == "heun":
        theirs = np.concatenate([theirs[:-1:2], theirs[-1:]])
    method = sampling.solver(name, **options)
    mine = ours_trace(method, DDPM, "eps", x, times, told / 1000)
    # noise of deviation sqrt(1 - exp(-2 h)): of the short steps h at the ends of beta levels, 0.003, the rounding of
    # our float32 times is 1e-4. In float64 it is 1e-5 here, too: below
    coarse = name in ("ddpm", "dpmpp_2m_sde") and key == "use_beta_sigmas"
    assert_same(mine, theirs * a if scaled else theirs, atol=1e-4 if coarse else 1e-5)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m_sde"])
def test_each_step_on_beta_levels_in_float64_equals_diffusers(name, steps, monkeypatch):
    cls, config, _, options = ON_SIGMAS[name]
    scheduler = getattr(diffusers, cls)(**config, use_beta_sigmas=True)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    told, x = scheduler.timesteps.numpy() / 1000, start(steps)
    sigmas = scheduler.sigmas.numpy()
    theirs = theirs_trace(scheduler, x)
    with jax.enable_x64(True):
        drawn = lambda key, x: jax.random.normal(key, x.shape, jnp.float32).astype(x.dtype)  # the same noise
        monkeypatch.setattr(sampling.steps, "draw", drawn)
        mine = ours_trace(sampling.solver(name, **options), DDPM, "eps", x.astype(float), times_of(DDPM, sigmas), told)
    assert mine.dtype == np.float64
    assert_same(mine, theirs)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("cls, name, options", [
    ("DDIMScheduler", "ddim", {}), ("DDIMScheduler", "ddim", {"eta": 1.0}), ("DDPMScheduler", "ddpm", {})])  # fmt: skip
def test_each_step_between_entries_equals_diffusers(cls, name, options, spacing, steps):
    """DDIM's steps end N / steps entries below where they begin, which with linspace is not where the next begins."""
    scheduler = getattr(diffusers, cls)(**PLAIN, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    told = scheduler.timesteps.numpy()
    ends = told - 1000 // steps if name == "ddim" else np.append(told[1:], -1)
    times = np.append(np.maximum(told / 1000, 1e-9), 0.0).astype(np.float32)
    ends = np.where(ends < 0, 0.0, np.maximum(ends / 1000, 1e-9)).astype(np.float32)
    x = start(steps)
    theirs = theirs_trace(scheduler, x, keywords=options)
    mine = ours_trace(sampling.solver(name, **options), DDPM, "eps", x, times, told / 1000, ends)
    assert_same(mine, theirs)
    ours = sampling.times(DDPM, steps, spacing)
    np.testing.assert_allclose(ours[:-1], told / 1000, atol=2e-7)  # entry 0 is 1e-7 above the data
    if spacing != "linspace":
        np.testing.assert_allclose(ours[1:], ends, atol=1e-7)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("ramp", RAMPS)
def test_each_step_of_a_flow_on_every_ramp_equals_diffusers(ramp, steps):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**{f"use_{ramp}_sigmas": True})
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1e-3, steps))
    x, times = start(steps), sampling.times(FLOW, steps, ramp)
    theirs = theirs_trace(scheduler, x)
    assert_same(ours_trace(sampling.solver("euler"), FLOW, "flow", x, times), theirs)
