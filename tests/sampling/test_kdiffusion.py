"""Solvers under k-diffusion's names against its formulas, and EDM's algorithm 2, written out in float64 for one scalar
field; on flows against ComfyUI's forms of them. The noise is the same: ours, a function of the step's number.

Tolerance: 1e-7, to which the time of a noise level between two steps is found; both sides are float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm import gaussian, sampling

EDM, FLOW = gaussian.edm(), gaussian.rectified_flow()
LOW, HIGH = np.log(0.002), np.log(80.0)
SIGMAS = np.array([60.0, 14.0, 3.0, 0.9, 0.2, 0.03, 0.0])
TIMES = np.array([1.0, 0.85, 0.6, 0.35, 0.1, 0.0])  # of a flow
SHAPE = (2, 3)


def data(numbers, x, sigma):
    """What the network says of the data: no solver integrates it exactly."""
    return numbers.tanh(x / (1.0 + sigma)) + 0.3 * numbers.cos(sigma / (1.0 + sigma) + 0.2 * x / (1.0 + sigma))


def noise(number, second=False):
    key = jax.random.fold_in(jax.random.key(0), number)
    return np.asarray(jax.random.normal(jax.random.fold_in(key, 1) if second else key, SHAPE, float))


def ours(name, options, process=EDM, x=None, calls=None):
    """x_0 over SIGMAS (TIMES of a flow), told the same field."""
    times = TIMES if process is FLOW else np.append((np.log(SIGMAS[:-1]) - LOW) / (HIGH - LOW), 0.0)

    def predict(x_t, t_B):
        if calls is not None:
            jax.debug.callback(lambda: calls.append(1))
        sigma = t_B[:, None] if process is FLOW else jnp.exp(LOW + (HIGH - LOW) * t_B[:, None])
        return data(jnp, x_t, sigma)

    made = sampling.sample(sampling.solver(name, **options), process, "x", predict, x, times, jax.random.key(0))
    jax.effects_barrier()
    return np.asarray(made)


def ancestral(s, n, eta):
    """sigma_down and sigma_up."""
    up = min(n, eta * np.sqrt(n**2 * (s**2 - n**2) / s**2))
    return np.sqrt(n**2 - up**2), up


def theirs(name, x, eta=1.0, s_noise=1.0, s_churn=0.0, s_tmin=0.0, s_tmax=np.inf, solver_type="midpoint", r=0.5):
    """The formulas, with D the network's data and d = (x - D) / sigma."""
    past, D = [], lambda x, s: data(np, x, s)
    for i, (s, n) in enumerate(zip(SIGMAS, SIGMAS[1:], strict=False)):
        if s_churn:
            up = s * (1 + (min(s_churn / (len(SIGMAS) - 1), np.sqrt(2) - 1) if s_tmin <= s <= s_tmax else 0.0))
            x, s = x + s_noise * np.sqrt(up**2 - s**2) * noise(i), up
        hat = D(x, s)
        d = (x - hat) / s
        down, up = ancestral(s, n, eta)
        h = np.log(s / n) if n else np.inf
        if name == "euler" or n == 0.0 and name in ("heun", "dpm_2"):
            x = x + d * (n - s)
        elif name == "heun":
            ahead = x + d * (n - s)
            x = x + 0.5 * (d + (ahead - D(ahead, n)) / n) * (n - s)
        elif name == "dpm_2":
            mid = np.sqrt(s * n)
            half = x + d * (mid - s)
            x = x + (half - D(half, mid)) / mid * (n - s)
        elif name == "euler_ancestral" or n == 0.0 and name in ("dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"):
            x = x + d * (down - s) + s_noise * up * noise(i)
        elif name == "dpm_2_ancestral":
            mid = np.sqrt(s * down)
            half = x + d * (mid - s)
            x = x + (half - D(half, mid)) / mid * (down - s) + s_noise * up * noise(i)
        elif name == "dpmpp_2s_ancestral":
            mid = np.sqrt(s * down)
            half = mid / s * x + (1 - mid / s) * hat
            x = down / s * x + (1 - down / s) * D(half, mid) + s_noise * up * noise(i)
        elif name == "dpmpp_sde":
            mid = s * np.exp(-r * h)
            low, first = ancestral(s, mid, eta)
            path = np.sqrt(s - mid) * noise(i)  # of a Brownian motion in sigma
            half = low / s * x + (1 - low / s) * hat + s_noise * first * path / np.sqrt(s - mid)
            mean = (1 - 0.5 / r) * hat + 0.5 / r * D(half, mid)
            path = path + np.sqrt(mid - n) * noise(i, second=True)
            x = down / s * x + (1 - down / s) * mean + s_noise * up * path / np.sqrt(s - n)
        elif n == 0.0:
            x = hat
        else:
            w = h * (1 + eta)
            gain, new = 1 - np.exp(-w), np.exp(-w) * x
            new = new + gain * hat
            phi_2 = 1 - gain / w
            if past:
                slope = (hat - past[-1][0]) / (past[-1][1] / h)
                if name == "dpmpp_2m_sde":
                    new = new + (0.5 * gain if solver_type == "midpoint" else phi_2) * slope
                elif len(past) == 1:
                    new = new + phi_2 * slope
                else:
                    r0, r1 = past[-1][1] / h, past[-2][1] / h
                    bend = (slope - (past[-1][0] - past[-2][0]) / r1) / (r0 + r1)
                    new = new + phi_2 * (slope + r0 * bend) - (phi_2 / w - 0.5) * bend
            x = new + n * np.sqrt(1 - np.exp(-2 * h * eta)) * s_noise * noise(i)
        past.append((hat, h))
    return x


CHURN = dict(s_churn=2.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.003)
CASES = [("euler", CHURN), ("heun", CHURN), ("dpm_2", {}), ("dpm_2", CHURN), ("heun", dict(s_churn=90.0)),
         ("euler_ancestral", dict(eta=0.6, s_noise=0.9)), ("dpm_2_ancestral", {}),
         ("dpm_2_ancestral", dict(eta=0.4, s_noise=0.9)), ("dpmpp_2s_ancestral", dict(s_noise=1.1)),
         ("dpmpp_2s_ancestral", dict(eta=0.5)), ("dpmpp_sde", {}), ("dpmpp_sde", dict(eta=0.5, s_noise=0.9, r=0.4)),
         ("dpmpp_2m_sde", dict(eta=0.7, s_noise=1.1)), ("dpmpp_2m_sde", dict(solver_type="heun")),
         ("dpmpp_3m_sde", {}), ("dpmpp_3m_sde", dict(eta=0.5, s_noise=0.9))]  # fmt: skip


@pytest.mark.parametrize("name, options", CASES, ids=str)
def test_a_name_means_what_it_means_in_k_diffusion(name, options):
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=SHAPE) * SIGMAS[0]
        np.testing.assert_allclose(ours(name, options, x=x), theirs(name, x, **options), atol=1e-7)


def on_a_flow(name, x, eta, s_noise):
    """ComfyUI's forms of ancestral steps on x = (1 - t) data + t noise."""
    D = lambda x, t: data(np, x, t)
    for i, (t, n) in enumerate(zip(TIMES, TIMES[1:], strict=False)):
        hat = D(x, t)
        down = n * (1 + (n / t - 1) * eta)
        scale = (1 - n) / (1 - down)
        fresh = np.sqrt(max(n**2 - (down * scale) ** 2, 0.0))
        if name == "euler_ancestral" or n == 0.0:
            slope = hat
        elif name == "dpm_2_ancestral":
            mid = np.sqrt(t * down)
            half = mid / t * x + (1 - mid / t) * hat
            slope = x - (half - D(half, mid)) / mid * t  # so that x moves by d at the middle
        else:
            log_ratio = lambda t: np.log((1 - t) / t)
            mid = 0.9999 if t == 1.0 else 1 / (1 + np.exp(0.5 * (log_ratio(t) + log_ratio(down))))
            slope = D(mid / t * x + (1 - mid / t) * hat, mid)
        x = scale * (down / t * x + (1 - down / t) * slope) + s_noise * fresh * noise(i)
    return x


@pytest.mark.parametrize("name", ["euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral"])
@pytest.mark.parametrize("eta, s_noise", [(1.0, 1.0), (0.5, 0.9)])
def test_ancestral_steps_of_a_flow_are_comfyui_s(name, eta, s_noise):
    with jax.enable_x64(True):
        x = np.random.default_rng(1).normal(size=SHAPE)
        made = ours(name, dict(eta=eta, s_noise=s_noise), FLOW, x)
        np.testing.assert_allclose(made, on_a_flow(name, x, eta, s_noise), atol=1e-7)


@pytest.mark.parametrize("name", ["dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"])
def test_two_evaluations_a_step_and_one_in_the_last(name):
    calls = []
    ours(name, {}, x=np.ones(SHAPE), calls=calls)
    assert len(calls) == 2 * (len(SIGMAS) - 1) - 1


@pytest.mark.parametrize("options, told", [
    (dict(s_churn=-1.0), "s_churn=-1.0"), (dict(s_tmin=3.0, s_tmax=1.0), "s_tmin"), (dict(s_noise=-0.1), "s_noise")])
def test_churn_that_cannot_be_is_one_line(options, told):
    with pytest.raises(ValueError, match=told):
        sampling.solver("heun", **options)
