"""The error on a grid of log SNR is one number for one denoiser, whatever process and target it is stated in."""

import dataclasses

import numpy as np
import pytest
import scipy.integrate

from lgm import gaussian
from lgm.config import Evaluation
from lgm.evaluate.heldout import heldout_loss
from lgm.evaluate.snr_grid import check_range, snr_errors
from lgm.gaussian import wide
from lgm.parsing import ConfigError

ENDS = (-5.0, 6.0)
CASES = [("rectified_flow", "flow"), ("ddpm", "eps"), ("ddpm", "v"), ("edm", "edm"), ("trigonometric", "x")]


@dataclasses.dataclass(frozen=True)
class Loss:
    target: str


@dataclasses.dataclass(frozen=True)
class Settings:
    evaluation: Evaluation
    loss: Loss


class Shrinking:
    """A system whose denoiser answers x_hat = gain a x_t / (a^2 + b^2): with gain 1 the best for unit normal data."""

    layout = None  # one device

    def __init__(self, name, target, gain=1.0, levels=11, size=100, ends=ENDS):
        self.process, self.gain, self.target = gaussian.build(name), gain, target
        self.config = Settings(Evaluation(levels=levels, log_snr=ends, batch_size=size), Loss(target))

    def condition(self, params, tokens, mask, micro=None):
        return None

    def denoise(self, params, x_t, t_B, cond):
        a, b = (wide(c, x_t) for c in (self.process.a(t_B), self.process.b(t_B)))
        x = self.gain * a * x_t / (a**2 + b**2)
        return gaussian.target(self.process, self.target, x, (x_t - a * x) / b, t_B)


LATENTS = np.random.default_rng(0).standard_normal((300, 4, 4, 3)).astype(np.float32)
NONE = np.zeros((300, 1), np.int32), np.ones((300, 1), bool)


@pytest.mark.parametrize(("name", "target"), CASES)
def test_the_best_denoiser_of_normal_data_errs_by_one_in_v_everywhere(name, target):
    """v of a variance-preserving process is independent of x_t for unit normal data, so its best guess is 0."""
    found = snr_errors(Shrinking(name, target), None, LATENTS, *NONE)
    strata = [value for key, value in found.items() if key.startswith("v_loss_snr")]
    # a mean over 14,400 squared normals has a standard deviation of 1.2%
    assert len(strata) == 11 and strata == pytest.approx(np.ones(11), abs=0.05)
    assert found["v_loss"] == pytest.approx(np.mean(strata), rel=1e-6)
    # 1/2 the integral of a^2 = sigmoid(log SNR), in bits
    exact = 0.5 * (np.logaddexp(0, ENDS[1]) - np.logaddexp(0, ENDS[0])) / np.log(2)
    assert found["vlb_bits"] == pytest.approx(exact, rel=0.01)


def test_one_denoiser_has_one_figure_in_all_processes():
    found = [snr_errors(Shrinking(*case, gain=0.7), None, LATENTS, *NONE) for case in CASES]
    for other in found[1:]:
        # the time of a log SNR is found to 1e-6 or so, and a DDPM's table is in float32
        assert other == pytest.approx(found[0], rel=2e-3)


def test_the_bound_of_a_worse_denoiser_is_its_integral():
    gain, ratio = 0.5, np.linspace(*ENDS, 4001)
    found = snr_errors(Shrinking("rectified_flow", "flow", gain=gain), None, LATENTS, *NONE)["vlb_bits"]
    # 1/2 the integral of SNR E (x - x_hat)^2, of which the share a^2 / (a^2 + b^2) is all that x_hat knows
    share = 1 / (1 + np.exp(-ratio))
    error = np.square(LATENTS).mean() * (1 - gain * share) ** 2 + gain**2 * share * (1 - share)
    exact = 0.5 * scipy.integrate.trapezoid(np.exp(ratio) * error, ratio) / np.log(2)
    assert found == pytest.approx(exact, rel=0.01)  # images lie at random in their strata


def test_images_are_measured_alike_in_any_company():
    few = [part[:40] for part in (LATENTS, *NONE)]
    one = snr_errors(Shrinking("ddpm", "eps", gain=0.8), None, *few)
    assert snr_errors(Shrinking("ddpm", "eps", gain=0.8, size=7), None, *few) == pytest.approx(one, rel=1e-5)
    assert snr_errors(Shrinking("ddpm", "eps"), None, *(part[:0] for part in few)) == {}


def test_the_heldout_loss_is_one_number_from_code_compiled_quickly_and_well():
    few = [part[:14] for part in (LATENTS, *NONE)]
    quick, well = (heldout_loss(Shrinking("ddpm", "eps", gain=0.8, size=size), None, *few) for size in (14, 7))
    assert quick == pytest.approx(well, rel=1e-6)  # one batch is not worth optimized code, two are


def test_a_grid_that_the_process_does_not_reach_is_one_line():
    with pytest.raises(ConfigError, match=r"config.evaluation.log_snr=\(-5, 9\).*'ddpm' reaches"):
        check_range(Shrinking("ddpm", "eps", ends=(-5.0, 9.0)))
