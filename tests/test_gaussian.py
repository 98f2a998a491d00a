"""Processes and conversions: properties that hold for all of them, and diffusers' noising, targets and tables."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lgm import gaussian

PROCESSES = {
    "ddpm": gaussian.ddpm(),
    "linear": gaussian.ddpm("linear", 1e-4, 0.02),
    "cosine": gaussian.ddpm("squared_cosine"),
    "zero terminal": gaussian.ddpm(zero_terminal_snr=True),
    "vp": gaussian.continuous_vp(),
    "edm": gaussian.edm(),
    "trigonometric": gaussian.trigonometric(),
    "flow": gaussian.rectified_flow(),
    "shifted flow": gaussian.rectified_flow(3.0),
}
names = st.sampled_from(sorted(PROCESSES))
kinds = st.sampled_from(gaussian.TARGETS)
few = settings(max_examples=60, deadline=None)


@few
@given(names, kinds, kinds, st.floats(0.05, 0.9), st.integers(0, 2**31 - 1))
def test_any_prediction_becomes_any_other(name, kind, to, t, seed):
    process = PROCESSES[name]
    x, eps = jax.random.normal(jax.random.key(seed), (2, 2, 3, 3, 1))
    t_B = jnp.array([t, t / 2 + 0.03], jnp.float32)
    x_t = gaussian.add_noise(process, x, eps, t_B)
    prediction = gaussian.target(process, kind, x, eps, t_B)
    ours = gaussian.convert(process, kind, to, prediction, x_t, t_B)
    expected = gaussian.target(process, to, x, eps, t_B)
    # float32: an error of 1e-7 in x_t is up to 80 / 0.01 times larger in the noise or in the data
    a, b = np.asarray(process.a(t_B)), np.asarray(process.b(t_B))
    noise_to_signal = max((b / a).max(), (a / b).max())
    assert ours.shape == x.shape and ours.dtype == jnp.float32
    scale = float(jnp.abs(expected).max() + jnp.abs(x_t).max())
    np.testing.assert_allclose(ours / scale, expected / scale, atol=2e-6 * max(noise_to_signal, 10))
    score = gaussian.convert(process, kind, "score", prediction, x_t, t_B)
    np.testing.assert_allclose(-score * b.reshape(2, 1, 1, 1), eps, atol=1e-5 * max(noise_to_signal, 10))


@few
@given(names, st.lists(st.integers(1, 999), min_size=6, max_size=6, unique=True), st.floats(-4e-4, 4e-4))
def test_noise_only_grows(name, thousandths, beside):
    process = PROCESSES[name]
    t = (np.sort(thousandths) / 1000 + beside).astype(np.float32)
    log_snr = np.asarray(process.log_snr(t))
    assert np.isfinite(log_snr).all() and (np.diff(log_snr) < 0).all()
    assert (np.diff(process.sigma(t)) > 0).all()
    back = np.asarray(process.time_at_log_snr(log_snr))
    # the inverse in the log SNR itself: near the ends float32's t cannot tell its steps apart
    np.testing.assert_allclose(process.log_snr(back), log_snr, atol=2e-3)
    assert back.dtype == np.float32 and back.shape == t.shape


@settings(max_examples=40, deadline=None)
@given(names, kinds, st.sampled_from([(3,), (2, 1), (1, 3, 2), (3, 2, 2, 1)]), st.sampled_from(["float32", "bfloat16"]))
def test_shapes_stay_and_all_is_float32_to_both_ends(name, kind, shape, dtype):
    process, t_B = PROCESSES[name], jnp.asarray(np.resize([0.0, 1e-3, 1.0, 0.5], shape[0]), dtype)
    x, eps = jax.random.normal(jax.random.key(0), (2, *shape), dtype)
    for value in (*gaussian.coefficients(process, kind, t_B), process.a(t_B), process.b(t_B)):
        assert value.shape == t_B.shape and value.dtype == jnp.float32 and bool(jnp.isfinite(value).all())
    for value in (gaussian.add_noise(process, x, eps, t_B), gaussian.target(process, kind, x, eps, t_B)):
        assert value.shape == x.shape and value.dtype == jnp.float32 and bool(jnp.isfinite(value).all())
    x_t = gaussian.add_noise(process, x, eps, t_B)
    for value in gaussian.endpoints(process, kind, x.astype(dtype), x_t.astype(dtype), t_B):
        assert value.shape == x.shape and value.dtype == jnp.float32


@few
@given(names, st.integers(0, 2**31 - 1))
def test_a_path_begins_at_the_data_and_ends_in_noise(name, seed):
    process = PROCESSES[name]
    x, eps = jax.random.normal(jax.random.key(seed), (2, 2, 3))
    begin, end = (gaussian.add_noise(process, x, eps, jnp.full(2, t)) for t in (0.0, 1.0))
    scale = float(process.b(1.0))  # 80 of EDM
    np.testing.assert_allclose(begin, x, atol=0.03 * float(jnp.abs(eps).max()) + 1e-3 * float(jnp.abs(x).max()))
    np.testing.assert_allclose(end / scale, eps, atol=0.07 * float(jnp.abs(x).max()) + 1e-2)


@pytest.mark.parametrize("name", PROCESSES)
def test_end_points(name):
    process = PROCESSES[name]
    a, b = (np.asarray(c(jnp.array([0.0, 1.0])), np.float64) for c in (process.a, process.b))
    if name == "edm":
        np.testing.assert_allclose(np.stack([a, b]), [[1, 1], [0.002, 80]], rtol=1e-5)
        return
    assert a[0] > 0.999 and b[0] < 0.03 and b[1] > 0.997
    if "flow" in name or name in ("trigonometric", "zero terminal"):
        assert a[1] < 1e-6
    if "flow" not in name:
        np.testing.assert_allclose(a**2 + b**2, 1.0, atol=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_derivatives_are_those_of_central_differences(name):
    process, t, h = PROCESSES[name], np.float32([0.2003, 0.5004, 0.8003]), 2e-4  # between the entries of tables
    for c, dc in ((process.a, process.da), (process.b, process.db)):
        numerical = (np.asarray(c(t + h), np.float64) - np.asarray(c(t - h), np.float64)) / (2 * h)
        # 1e-7 of rounding over 4e-4, and the curvature of a table whose entries lie 1e-3 apart
        np.testing.assert_allclose(dc(t), numerical, rtol=5e-3, atol=3e-3)


DIFFUSERS = {
    "ddpm": dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    "linear": dict(beta_schedule="linear"),
    "cosine": dict(beta_schedule="squaredcos_cap_v2"),
    "zero terminal": dict(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    ),
}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_noising_and_targets_of_tables_equal_diffusers(name):
    scheduler = diffusers.DDPMScheduler(**DIFFUSERS[name])
    process = PROCESSES[name]
    k = np.array([0, 1, 17, 500, 998, 999])
    x, eps = np.random.default_rng(0).normal(size=(2, len(k), 4, 4, 3)).astype(np.float32)
    given = torch.from_numpy(x), torch.from_numpy(eps), torch.from_numpy(k)
    t_B = (k / 1000).astype(np.float32)
    # diffusers multiplies 1,000 factors in float32, each off by two roundings of at most 2^-24: a walk of 1.5e-6, here
    # allowed four times over, of values that reach 4
    close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs.numpy(), atol=4 * 6e-6)
    close(gaussian.add_noise(process, x, eps, t_B), scheduler.add_noise(*given))
    close(gaussian.target(process, "v", x, eps, t_B), scheduler.get_velocity(*given))
    alpha_bar = scheduler.alphas_cumprod.numpy()
    np.testing.assert_allclose(np.float64(process.a(np.arange(1000) / 1000)) ** 2, alpha_bar, atol=6e-6)


def published_alpha_bar(name, steps=1000):
    """The tables of Ho et al. 2020, Rombach et al. 2022, Nichol & Dhariwal 2021 and Lin et al. 2023, in float64."""
    if name == "cosine":
        f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.cumprod(np.maximum(f[1:] / f[:-1], 1 - 0.999))
    betas = np.linspace(1e-4, 0.02, steps) if name == "linear" else np.linspace(0.00085**0.5, 0.012**0.5, steps) ** 2
    alpha_bar = np.cumprod(1.0 - betas)
    if name == "zero terminal":
        root = np.sqrt(alpha_bar)
        alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return alpha_bar


@pytest.mark.parametrize("name", DIFFUSERS)
def test_the_points_of_a_table_are_its_values_however_t_is_computed(name):
    process, alpha_bar, k = PROCESSES[name], published_alpha_bar(name), np.arange(1000)
    for t in (k / 1000, np.float32(k) / np.float32(1000), jnp.arange(1000) / 1000, jnp.arange(1000) * (1 / 1000)):
        for fn in (lambda f: f, jax.jit):
            a, b = (np.float64(fn(c)(jnp.asarray(t))) for c in (process.a, process.b))
            # read from the table, not computed: one rounding to float32 on any machine, and float64's beneath it
            np.testing.assert_allclose(a, np.sqrt(alpha_bar), rtol=2**-24 + 1e-9, atol=2e-8)  # 1e-8 stands for zero
            np.testing.assert_allclose(b, np.sqrt(1 - alpha_bar), rtol=2**-24 + 1e-9)


@pytest.mark.parametrize("name", DIFFUSERS)
def test_between_the_points_of_a_table_the_log_snr_is_linear(name):
    process, alpha_bar = PROCESSES[name], published_alpha_bar(name)
    alpha_bar = np.maximum(alpha_bar, 1e-16)
    log_snr = np.log(alpha_bar) - np.log1p(-alpha_bar)
    k, share = np.array([0, 7, 250, 499, 801, 997, 998]), np.array([0.25, 0.5, 0.75, 0.5, 0.25, 0.75, 0.5])
    t = np.float32((k + share) / 1000)
    share = np.float64(t) * 1000 - k  # what float32 made of it
    expected = (1 - share) * log_snr[k] + share * log_snr[k + 1]
    # t N is rounded to 2^-24 N, over which the log SNR moves by that times its slope; then a few roundings of a and b
    slack = 2e-6 + 2**-23 * 1000 * np.abs(np.diff(log_snr)[k])
    assert (np.abs(np.asarray(process.log_snr(t)) - expected) <= slack).all()
    inside = k < 997
    slope = np.diff(log_snr)[k] * 1000
    derivative = jax.vmap(jax.grad(lambda t: process.log_snr(t)))(jnp.asarray(t))
    np.testing.assert_allclose(np.asarray(derivative)[inside], slope[inside], rtol=1e-4)
    # at a point the derivative is that of the piece after it
    at = jax.vmap(jax.grad(lambda t: process.log_snr(t)))(jnp.asarray([0.25, 0.5]))
    np.testing.assert_allclose(at, np.diff(log_snr)[[250, 500]] * 1000, rtol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_noising_and_targets_of_flows_equal_diffusers(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    x, eps = np.random.default_rng(0).normal(size=(2, 4, 4, 4, 3)).astype(np.float32)
    timesteps = scheduler.timesteps[[0, 300, 700, 999]]
    theirs = scheduler.scale_noise(torch.from_numpy(x), timesteps, torch.from_numpy(eps)).numpy()
    t_B = timesteps.numpy() / 1000
    flow = PROCESSES["flow"]
    np.testing.assert_allclose(gaussian.add_noise(flow, x, eps, t_B), theirs, atol=1e-6)  # float32 rounding
    np.testing.assert_allclose(gaussian.target(flow, "flow", x, eps, t_B), eps - x, atol=1e-6)
    moved = gaussian.shift_time((1000 - np.array([0, 300, 700, 999])) / 1000, shift)
    np.testing.assert_allclose(moved, t_B, atol=1e-6)


def test_edm_preconditioning_equals_diffusers():
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.5)
    process = PROCESSES["edm"]
    t_B = np.float32([0.1, 0.5, 0.9])
    output, x = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 1)).astype(np.float32)
    for i, sigma in enumerate(np.asarray(process.b(t_B))):
        sigma, row = torch.tensor(sigma), slice(i, i + 1)
        x_t = x[row] * float(sigma)
        theirs = scheduler.precondition_outputs(torch.from_numpy(x_t), torch.from_numpy(output[row]), sigma)
        ours = gaussian.convert(process, "edm", "x", output[row], x_t, t_B[row])
        # float32 rounding times the largest noise level
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6 * max(1.0, float(sigma)))
        given = gaussian.input_scale(process, t_B[row]).reshape(-1, 1, 1, 1) * x_t
        np.testing.assert_allclose(given, scheduler.precondition_inputs(torch.from_numpy(x_t), sigma), rtol=1e-5)


def test_edm_preconditioning_of_unit_data_on_a_vp_process_is_minus_v():
    process, t = PROCESSES["trigonometric"], jnp.linspace(0.05, 0.95, 7)
    ours, v = gaussian.coefficients(process, "edm", t), gaussian.coefficients(process, "v", t)
    np.testing.assert_allclose(ours, -np.asarray(v), atol=1e-6)


def test_shifts_of_released_models():
    # SD3's shift of 3 "at 1024 px" goes with about 1/9 as many pixels; Flux's mu is 0.5 at 256 tokens, 1.15 at 4096
    assert gaussian.resolution_shift(9 * 256**2, 256**2) == pytest.approx(3.0)
    assert gaussian.token_shift(256) == pytest.approx(np.exp(0.5))
    assert gaussian.token_shift(4096) == pytest.approx(np.exp(1.15))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    t = np.linspace(0.01, 1, 9)
    np.testing.assert_allclose(
        gaussian.shift_time(t, gaussian.token_shift(1024)), scheduler.time_shift(0.5 + 0.65 * 768 / 3840, 1.0, t)
    )
    # a shift adds its logarithm to the log noise-to-signal ratio: once 2 and once 3 is once 6
    np.testing.assert_allclose(gaussian.shift_time(gaussian.shift_time(t, 2.0), 3.0), gaussian.shift_time(t, 6.0))


def test_one_object_for_one_choice_of_options():
    assert gaussian.build("ddpm", schedule="linear") is gaussian.build("ddpm", schedule="linear")
    assert hash(gaussian.build("rectified_flow", shift=2.0)) == hash(gaussian.rectified_flow(shift=2.0))
    with_trace = jax.jit(lambda t: gaussian.ddpm(steps=17).a(t))(0.5)  # first built inside a trace: nothing leaks
    np.testing.assert_allclose(with_trace, gaussian.ddpm(steps=17).a(0.5))


def test_bad_arguments_are_one_line():
    with pytest.raises(ValueError, match="unknown process 'rectified'; did you mean 'rectified_flow'"):
        gaussian.build("rectified")
    with pytest.raises(ValueError, match="process 'ddpm' has no option 'shedule'; did you mean 'schedule'"):
        gaussian.build("ddpm", shedule="linear")
    with pytest.raises(ValueError, match="unknown schedule of betas 'cosine'"):
        gaussian.build("ddpm", schedule="cosine")
    with pytest.raises(ValueError, match="shift=0 must be above 0"):
        gaussian.build("rectified_flow", shift=0)
    with pytest.raises(ValueError, match="sigma_min=3 must lie above 0 and below sigma_max=2"):
        gaussian.build("edm", sigma_min=3, sigma_max=2)
    with pytest.raises(ValueError, match="pixels=0 and base_pixels=9 must be above 0"):
        gaussian.resolution_shift(0, 9)
    with pytest.raises(ValueError, match="tokens=0 must be above 0"):
        gaussian.token_shift(0)
    with pytest.raises(ValueError, match="steps=1 must be at least 2"):
        gaussian.build("ddpm", steps=1)
    with pytest.raises(ValueError, match="beta_start=0.5 must lie above 0 and at most beta_end=0.012"):
        gaussian.build("ddpm", beta_start=0.5)
    with pytest.raises(ValueError, match="sigma_data=0 must be above 0"):
        gaussian.build("edm", sigma_data=0)
    with pytest.raises(ValueError, match="beta_min=0 must lie above 0"):
        gaussian.build("continuous_vp", beta_min=0)
    with pytest.raises(ValueError, match="unknown prediction target 'noise'; there are|did you mean"):
        gaussian.coefficients(gaussian.ddpm(), "noise", 0.5)
