"""What is Flux.2's alone: times by its own rule, klein distilled or not, widths that fit, tiles of whole patches. Its
pictures stand beside diffusers' in test_whole_systems."""

import json
import re

import diffusers
import numpy as np
import pytest
import tiny_systems
import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

from lgm.drawing import text_to_image
from lgm.importing import config_of
from lgm.interop.schedulers import read_schedule
from lgm.systems.flux2 import log_shift
from lgm.systems.folders import load_pipeline

DYNAMIC = dict(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0)


@pytest.mark.parametrize(("tokens", "steps"), [(16, 4), (1024, 4), (4096, 50), (4301, 50), (16_384, 28)])
def test_times_are_those_of_the_pipeline_with_its_own_shift(tokens, steps):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**DYNAMIC)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=compute_empirical_mu(tokens, steps))
    schedule = read_schedule({"_class_name": type(theirs).__name__, **DYNAMIC})
    times = schedule.timesteps(steps, tokens, even=True, log_shift=log_shift).times
    np.testing.assert_allclose(times, theirs.sigmas.numpy(), rtol=1e-6)
    plain = read_schedule({"_class_name": type(theirs).__name__, "shift": 3.0})  # which no rule shifts
    np.testing.assert_array_equal(plain.timesteps(steps, tokens, True, log_shift).times,
                                  plain.timesteps(steps, tokens, True).times)  # fmt: skip


@pytest.fixture(scope="module")
def klein(tmp_path_factory):
    """(diffusers' pipeline, its folder)."""
    folder = tmp_path_factory.mktemp("klein") / "theirs"
    theirs = tiny_systems.flux2_klein(distilled=True)
    theirs.save_pretrained(folder)
    return theirs, folder


def changed(folder, place, **values):
    """A folder whose JSON at `place` says something else, for as long as it is asked."""
    path = folder / place
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | values))
    return lambda: path.write_text(before)


def test_klein_is_guided_where_it_is_not_distilled(klein):
    _, folder = klein
    pipeline, _ = load_pipeline(folder, only=())
    assert not pipeline.extrapolates and (pipeline.defaults.steps, pipeline.defaults.guidance) == (4, 1.0)
    values = config_of(str(folder), "x")
    assert values["sampling"]["guidance"] == 1.0 and values["text"]["caption_dropout"] == 0.0
    back = changed(folder, "model_index.json", is_distilled=False)
    base, _ = load_pipeline(folder, only=())
    assert base.extrapolates and (base.defaults.steps, base.defaults.guidance) == (50, 4.0)
    assert config_of(str(folder), "x")["text"]["caption_dropout"] == 0.1
    back()


@pytest.mark.slow
def test_distilled_klein_ignores_a_scale_as_diffusers_does(klein):
    theirs, folder = klein
    theirs.set_progress_bar_config(disable=True)
    noise = tiny_systems.noise_for(theirs)[:1]
    latents = theirs._patchify_latents(torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()))
    words = dict(num_inference_steps=2, output_type="np", height=16, width=16, latents=latents)
    expected = theirs(prompt=tiny_systems.PROMPTS[:1], guidance_scale=4.0, **words).images
    pipeline, params = load_pipeline(folder)
    draw = lambda guidance: text_to_image(pipeline, params, tiny_systems.PROMPTS[:1], steps=2, guidance=guidance,
                                          size=(16, 16), noise=noise)  # fmt: skip
    with pytest.warns(UserWarning, match="guidance=4.0 changes nothing: this model was distilled to draw without it"):
        scaled = draw(4.0)
    assert tiny_systems.psnr(scaled, expected) > 80
    np.testing.assert_array_equal(scaled, draw(1.0))
    for tile, least in ((8, 16), (24, 16)):
        with pytest.raises(ValueError, match=f"tile={tile} must be a multiple of {least} pixels, at least {least}"):
            text_to_image(pipeline, params, ["x"], steps=1, size=(16, 16), noise=noise, tile=tile)


def test_a_network_of_another_text_is_one_line(klein):
    _, folder = klein
    back = changed(folder, "transformer/config.json", joint_attention_dim=64)
    line = "joint_attention_dim=64, but 3 states of the text encoder are 48 wide"
    with pytest.raises(ValueError, match=re.escape(line)):
        load_pipeline(folder, only=())
    back()
