"""Every scheduler class that is read, at seeded choices of the keys it has, against what diffusers' class draws."""

import random

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
from toy_sampling import our_sample, relative_error, their_sample

from lgm.gaussian import ddpm
from lgm.interop.scheduler_keys import DEFAULTS
from lgm.interop.schedulers import read_schedule
from lgm.sampling.halfway import split
from lgm.sampling.steps import level_of

STEPS = (1, 2, 3, 4, 5, 7, 10, 14, 15, 16, 20, 50, 100)
RAMPS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
VALUES = {
    "beta_schedule": ("scaled_linear", "linear"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "steps_offset": (0, 1),
    "rescale_betas_zero_snr": (False, False, True),
    "set_alpha_to_one": (True, False),
    "clip_sample": (False, False, True),
    "clip_sample_range": (1.0, 0.7),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2, 3),
    "lower_order_final": (True, False),
    "euler_at_final": (True, False),
    "solver_type": ("midpoint", "heun", "bh1", "bh2", "logrho"),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "skip_prk_steps": (True, False),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),
    "lambda_min_clipped": (-float("inf"), -5.1),
    "timestep_scaling": (10.0, 3.0),
    "original_inference_steps": (50, 40, 100),
    "predict_x0": (True, False),
    "disable_corrector": ([], [0], [1, 3]),
    "shift": (1.0, 3.0, 0.7),
    "stochastic_sampling": (False, True),
    "sigma_schedule": ("karras", "exponential"),
    "sigma_data": (0.5, 1.0),
    "rho": (7.0, 5.0),
}
# of one class alone
ONLY = {"algorithm_type": ("DPM", "EDM"), "variance_type": ("DDPM",), "solver_type": ("DPMSolverM", "EDM", "UniPC")}


def drawn(name: str, draw: random.Random) -> dict:
    """Options of a scheduler: of each key that its class has, one of VALUES, and one ramp or none."""
    wanted = lambda key: key in DEFAULTS[name] and name.startswith(ONLY.get(key, ""))
    options = {key: draw.choice(values) for key, values in VALUES.items() if wanted(key)}
    if name.startswith("EDM"):
        return options
    ramps = [ramp for ramp in RAMPS if ramp in DEFAULTS[name]]
    if ramps and draw.random() < 0.5:
        options[draw.choice(ramps)] = True
        if "beta_schedule" in options and draw.random() < 0.4:  # whether the class has these keys or not
            options |= {"sigma_min": draw.choice([0.2, None]), "sigma_max": draw.choice([6.0, None])}
    return options


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFAULTS)
def test_what_any_keys_of_a_class_draw_equals_diffusers(name, monkeypatch):
    """From the same noise at the same numbers of steps; where diffusers' class itself fails there is nothing to equal,
    and what lgm refuses it refuses by name."""
    draw, compared = random.Random(name), 0
    for _ in range(60):
        options, steps = drawn(name, draw), draw.choice(STEPS)
        if name.startswith("EDM") and steps == 1:
            continue  # diffusers begins an exponential walk of one step at sigma_min, and ends any at sigma_max
        try:
            schedule = read_schedule({**options, "_class_name": name})
            schedule.timesteps(steps)
        except ValueError as error:
            assert any(f"{key}=" in str(error) for key in ("steps", *options)), error
            continue
        try:
            theirs = getattr(diffusers, name).from_config({**options, "_class_name": name})
            expected = their_sample(theirs, steps, monkeypatch)
        except (NotImplementedError, ValueError, IndexError):
            # raised by diffusers, never by lgm: combinations that its class refuses (it says NotImplementedError for
            # some) or walks off the end of its own table with; that enough are left to compare is held below
            continue
        if not np.isfinite(expected).all():
            continue
        try:
            ours = our_sample(schedule, steps)
        except ValueError as error:
            assert "says nothing of the data" in str(error)  # eps of what is noise alone
            continue
        # float32 tables of noise levels on either side; theirs may tell 998 where ours tell 999 (test_schedulers)
        most = 2e-3 if schedule.whole else 2e-4
        assert relative_error(ours, expected) < most, (options, steps)
        compared += 1
        if compared == 6:
            return
    assert compared > 3


def test_euler_of_data_under_zero_terminal_snr_at_100_steps(monkeypatch):
    options = dict(beta_schedule="linear", rescale_betas_zero_snr=True, prediction_type="sample",
                   timestep_spacing="linspace")  # fmt: skip
    expected = their_sample(diffusers.EulerDiscreteScheduler(**options), 100, monkeypatch)
    schedule = read_schedule({**options, "_class_name": "EulerDiscreteScheduler"})
    assert relative_error(our_sample(schedule, 100), expected) < 1e-4


@pytest.mark.parametrize("last", [5, 6])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_steps_go_in_the_same_pairs_where_a_picture_is_started_from(algorithm, last, monkeypatch):
    """diffusers counts pairs from the first of all steps: of an odd rest of 10 the first step is alone."""
    options = dict(algorithm_type=algorithm, lower_order_final=True, prediction_type="v_prediction")
    expected = their_sample(diffusers.DPMSolverSinglestepScheduler(**options), 10, monkeypatch, last)
    schedule = read_schedule({**options, "_class_name": "DPMSolverSinglestepScheduler"})
    assert relative_error(our_sample(schedule, 10, last=last), expected) < 2e-4


@pytest.mark.parametrize("ramp", ["use_exponential_sigmas", "use_beta_sigmas"])
def test_a_second_evaluation_lies_where_it_should_beyond_sigma_10_000(ramp, monkeypatch):
    """The table of cosines reaches sigma = 20,291, and these ramps make several steps before 10,000."""
    options = dict(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing") | {ramp: True}
    expected = their_sample(diffusers.KDPM2DiscreteScheduler(**options), 30, monkeypatch)
    schedule = read_schedule({**options, "_class_name": "KDPM2DiscreteScheduler"})
    assert relative_error(our_sample(schedule, 30), expected) < 2e-4


def test_an_ancestral_step_from_far_goes_down_to_the_square_of_where_it_ends():
    """sigma_down = sigma_to^2 / sigma_from at eta = 1, which float32 loses as a difference: sigma_to^2 - sigma_up^2 is
    2e-7 of either from 20,000 to 10."""
    at, to = (level_of(1 / jnp.hypot(1.0, s), s / jnp.hypot(1.0, s)) for s in (20_000.0, 10.0))
    down, _, fresh = split(ddpm(), at, to, 1.0)
    np.testing.assert_allclose(down.b / down.a, 10.0**2 / 20_000.0, rtol=1e-5)
    np.testing.assert_allclose(fresh / to.b, 1.0, rtol=1e-6)
