"""Time grids against diffusers' schedulers, starts from images, and jumps."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgm import gaussian, sampling
from lgm.evaluate.mixture import ring
from lgm.train.steady import compilations

FLOW, SD = gaussian.rectified_flow(), gaussian.ddpm()
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
PROCESSES = {"flow": FLOW, "sd": SD, "vp": gaussian.continuous_vp(), "edm": gaussian.edm(),
             "trigonometric": gaussian.trigonometric()}  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(PROCESSES)), st.sampled_from(sorted(sampling.SPACINGS)), st.integers(2, 60),
       st.floats(0.3, 6.0))  # fmt: skip
def test_every_grid_falls_from_noise_to_the_data(process, spacing, steps, shift):
    if spacing in ("trailing", "leading", "linspace") and PROCESSES[process].steps is None:
        with pytest.raises(ValueError, match="counts a table's entries"):
            sampling.times(PROCESSES[process], steps, spacing)
        return
    times = sampling.times(PROCESSES[process], steps, spacing, shift)
    assert times.dtype == np.float32 and len(times) == steps + 1
    assert times[-1] == 0.0 and 0.1 < times[0] <= 1.0
    # a table's first entry is t = 0, where "leading" and "linspace" end; all else falls strictly
    assert (np.diff(times[:-1] if spacing in ("leading", "linspace") else times) < 0).all(), times


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
def test_noise_levels_are_diffusers(spacing, steps):
    theirs = diffusers.EulerDiscreteScheduler(**BETAS, **{f"use_{spacing}_sigmas": True})
    theirs.set_timesteps(steps)
    times = sampling.times(SD, steps, spacing)
    levels = np.asarray(SD.sigma(jnp.asarray(times[:-1])))
    np.testing.assert_allclose(levels, theirs.sigmas.numpy()[:-1], rtol=2e-5)  # of 1 - alpha_bar in float32


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
def test_noise_levels_of_a_flow_are_diffusers(spacing):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**{f"use_{spacing}_sigmas": True})
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1e-3, 12))
    np.testing.assert_allclose(sampling.times(FLOW, 12, spacing), theirs.sigmas.numpy(), atol=2e-6)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [4, 7, 50])
def test_a_tables_entries_are_diffusers(spacing, steps):
    theirs = diffusers.DDIMScheduler(**BETAS, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    np.testing.assert_array_equal(np.round(sampling.times(SD, steps, spacing)[:-1] * 1000), theirs.timesteps.numpy())


def test_a_shift_is_sd3s():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 0.0, 11)[:-1])
    np.testing.assert_allclose(sampling.times(FLOW, 10, shift=3.0), theirs.sigmas.numpy(), atol=1e-6)


@pytest.mark.parametrize("strength", [0.05, 0.3, 0.75, 1.0])
def test_an_image_starts_where_diffusers_starts_it(strength):
    steps, theirs = 20, diffusers.DDIMScheduler(**BETAS, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    kept = min(int(steps * strength), steps)  # diffusers' get_timesteps of image-to-image pipelines
    x, noise = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 3))
    x_t, times = sampling.from_image(SD, x, noise, sampling.times(SD, steps, "trailing"), strength)
    np.testing.assert_array_equal(np.round(times[:-1] * 1000), theirs.timesteps.numpy()[steps - kept :])
    import torch

    noised = theirs.add_noise(*(torch.tensor(np.asarray(v)) for v in (x, noise)), theirs.timesteps[steps - kept])
    np.testing.assert_allclose(x_t, noised.numpy(), atol=2e-6)


def test_inpainting_keeps_the_known_part_and_draws_the_rest_to_fit():
    data = ring(count=4, radius=2.0, std=0.15)  # components at (2, 0), (0, 2), (-2, 0), (0, -2)
    count = 512
    noise = jax.random.normal(jax.random.key(0), (count, 2))
    known = jnp.tile(jnp.array([[-2.0, 0.0]]), (count, 1))
    mask = jnp.array([[0.0, 1.0]])  # the first coordinate is given: only the component at (-2, 0) has it
    method = sampling.inpainting(sampling.solver("euler"), known, mask, noise)
    times = sampling.times(FLOW, 50)
    got = sampling.sample(method, FLOW, "flow", data.predictor(FLOW, "flow"), noise, times)
    np.testing.assert_array_equal(got[:, 0], -2.0)
    fits = lambda x: float((jnp.abs(x[:, 1]) < 0.6).mean())  # 4 deviations
    free = sampling.inpainting(sampling.solver("euler"), known, jnp.ones((1, 2)), noise)
    plain = lambda method: sampling.sample(method, FLOW, "flow", data.predictor(FLOW, "flow"), noise, times)
    np.testing.assert_array_equal(plain(free), plain(sampling.solver("euler")))
    assert fits(plain(free)) < 0.6 and fits(got) > 0.75


def test_a_step_held_to_a_picture_is_compiled_once_for_all_pictures():
    data, times = ring(count=4, radius=2.0, std=0.15), sampling.times(FLOW, 3)
    predict = data.predictor(FLOW, "flow")
    told = lambda x, t, _: predict(x, t)

    def drawn(number, solver):
        known = jnp.full((5, 2), float(number))
        noise = jax.random.normal(jax.random.key(number), (5, 2))
        method = sampling.inpainting(sampling.solver(solver), known, jnp.array([[0.0, float(number % 2)]]), noise)
        return sampling.loop(method, FLOW, "flow", told, noise, times, ())

    for solver in ("euler", "dpmpp_2m"):  # without and with a memory of its own
        drawn(0, solver)
        before = compilations()
        others = [drawn(number, solver) for number in (1, 2, 3)]
        assert compilations() == before
        for number, x in zip((1, 2, 3), others, strict=True):
            np.testing.assert_array_equal(x[:, 0], number)


def test_jumps_of_the_exact_mean_velocity_land_on_the_path_in_any_number_of_steps():
    # Gaussian data of deviation d about 0: x_t / sqrt((1 - t)^2 d^2 + t^2) is constant on a path
    spread = lambda t: jnp.sqrt(jnp.square((1.0 - t) * 0.5) + jnp.square(t))
    mean_velocity = lambda x, t, s: x * ((1.0 - spread(s) / spread(t)) / (t - s))[:, None]
    x = jax.random.normal(jax.random.key(0), (5, 3))
    for times in ((1.0, 0.0), (1.0, 0.4, 0.0), np.linspace(1, 0, 9)):
        drawn = sampling.sample(sampling.solver("jump"), FLOW, "flow", mean_velocity, x, np.float32(times))
        np.testing.assert_allclose(drawn, 0.5 * x, rtol=2e-6, atol=1e-6)
        # guided, too: of two networks that agree guidance is idle
        jump, wrap = sampling.guided(sampling.solver("jump"), sampling.rule("plain", 3.0))
        predict = lambda x, t, s: wrap(lambda x, t, c: mean_velocity(x, t, jnp.tile(s, len(t) // len(s))), (), ())(x, t)
        drawn = sampling.sample(jump, FLOW, "flow", predict, x, np.float32(times))
        np.testing.assert_allclose(drawn, 0.5 * x, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("call, message", [
    (lambda: sampling.times(FLOW, 0), "steps=0 must be at least 1"),
    (lambda: sampling.times(FLOW, 4, shift=-1.0), "shift=-1.0 must be above 0"),
    (lambda: sampling.times(FLOW, 4, "karas"), "unknown spacing 'karas'; did you mean 'karras'"),
    (lambda: sampling.times(FLOW, 4, "karras", rho=0.0), "rho=0.0 of spacing 'karras' must be above 0"),
    (lambda: sampling.times(FLOW, 4, "beta", alpha=0.0), "alpha=0.0 and beta=0.6 of spacing 'beta' must be above 0"),
    (lambda: sampling.times(SD, 2000, "trailing"), "steps=2000 must lie between 1 and the table's 1000 entries"),
    (lambda: sampling.times(FLOW, 2.5), "steps=2.5 must be at least 1, and whole"),
    (lambda: sampling.times(FLOW, 4, "karras", roh=7.0), "spacing 'karras' has no option 'roh'; did you mean 'rho'"),
    (lambda: sampling.sample(sampling.solver("euler"), FLOW, "flow", None, np.ones((1, 2)), (0.5,)),
     "times must be two or more that fall within"),
    (lambda: sampling.sample(sampling.solver("euler"), FLOW, "eps", None, np.ones((1, 2)), (1.0, 0.0)),
     "target 'eps' says nothing of the data at t=1, which is pure noise under process 'rectified_flow'"),
    (lambda: sampling.loop(sampling.solver("euler"), FLOW, "velocity", None, np.ones((1, 2)), (1.0, 0.0), ()),
     "unknown prediction target 'velocity'"),
    (lambda: sampling.from_image(FLOW, None, None, np.ones(5), 0.0), r"strength=0.0 must lie in \(0, 1\]"),
    (lambda: sampling.solver("unipc", ordr=2), "solver 'unipc' has no option 'ordr'; did you mean 'order'"),
    (lambda: sampling.solver("heun", eta=1.0), "solver 'heun' has no option 'eta'; there are s_churn, s_noise, s_tmax"),
        (lambda: sampling.solver("dpmpp_2s", eta=1.0), "solver 'dpmpp_2s' has no option 'eta'; it takes none"),
    (lambda: sampling.solver("ddim", eta="high"), "solver 'ddim': eta='high' must be a number"),
    (lambda: sampling.rule("rescale", 2.0), "unknown guidance rule 'rescale'; did you mean 'rescaled'"),
    (lambda: sampling.rule("projected", 2.0, momentum=1.0), "momentum=1.0 lie between -1 and 1"),
    (lambda: sampling.guided(sampling.solver("euler"), sampling.plain(2.0), (0.5, 0.5)), "must rise within"),
    (lambda: sampling.bounded(sampling.solver("euler"), 0.0), "clip=0.0 must be above 0"),
    (lambda: sampling.last_part(np.ones(5), 1.5), r"strength=1.5 must lie in \(0, 1\]"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spacing, steps", [("leading", 7), ("linspace", 7), ("trailing", 1000)])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_steps_over_entry_0_are_those_of_ddim(spacing, steps, eta, monkeypatch):
    """2010.02502, eq. 12 and 16, over the entries and then the data, where alpha is 1: entry 0 keeps its noise. The
    network, of one output throughout, shows what each step takes away."""
    process = gaussian.ddpm()
    times = sampling.times(process, steps, spacing)
    monkeypatch.setattr(sampling.steps, "draw", lambda key, x: jnp.full(x.shape, 0.7))
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = np.cumprod(1.0 - betas)
    entries = {"leading": np.arange(steps)[::-1] * (1000 // steps), "linspace": np.linspace(999, 0, steps).round(),
               "trailing": np.arange(999, -1, -1)}[spacing].astype(int)  # fmt: skip
    x, said = 1.3, 0.4
    for number, entry in enumerate(entries):
        a, after = alpha[entry], alpha[entries[number + 1]] if number + 1 < steps else 1.0
        sigma = eta * np.sqrt((1 - after) / (1 - a) * (1 - a / after))
        data = (x - np.sqrt(1 - a) * said) / np.sqrt(a)
        x = np.sqrt(after) * data + np.sqrt(max(1 - after - sigma**2, 0.0)) * said + sigma * 0.7
    told = []

    def predict(x_t, t_B):
        jax.debug.callback(lambda t: told.append(float(t)), t_B[0])
        return jnp.full(x_t.shape, said)

    got = sampling.sample(sampling.solver("ddim", eta=eta), process, "eps", predict, jnp.full((1, 1), 1.3), times)
    np.testing.assert_allclose(np.asarray(got)[0, 0], x, rtol=2e-5)  # 1000 steps of float32
    jax.effects_barrier()
    np.testing.assert_allclose(1000 * np.array(sorted(told, reverse=True)), entries, atol=1e-2)
