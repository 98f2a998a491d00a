"""Sizes, texts, guidance and starts that users ask for, each system's picture against diffusers'."""

import functools
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import tiny_systems
import torch
from PIL import Image
from tiny_systems import PROMPTS, T5_TOKENS, psnr

from lgm.cli import main
from lgm.drawing import text_to_image
from lgm.pictures import read_image
from lgm.systems.folders import load_pipeline

LEAST_PSNR = 80.0  # float32 in another order of sums is at over 100 dB
LONG = "a picture of a very long list of things, " * 9  # more tokens than any of the tiny text encoders takes
pytestmark = pytest.mark.filterwarnings("ignore:the text")


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    """name -> (diffusers' pipeline, its folder, ours, our parameters), each made once."""

    @functools.cache
    def make(name, **options):
        theirs = getattr(tiny_systems, name)(**options)
        theirs.set_progress_bar_config(disable=True)
        theirs.check_inputs = lambda *_, **__: None  # it takes every autoencoder's factor to be 8
        folder = tmp_path_factory.mktemp(name) / "theirs"
        theirs.save_pretrained(folder)
        return theirs, folder, *load_pipeline(folder)

    return make


def both(system, size, prompts, steps=3, guidance=3.0, **options):
    """(diffusers' images, ours) of the same noise; options in diffusers' words."""
    theirs, _, pipeline, params = system
    channels = theirs.vae.config.latent_channels
    noise = np.random.default_rng(0).standard_normal((len(prompts), size[0] // 2, size[1] // 2, channels))
    noise = noise.astype(np.float32)
    latents = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    flux = isinstance(theirs, diffusers.FluxPipeline)
    if flux:
        latents = theirs._pack_latents(latents, len(noise), channels, *noise.shape[1:3])
    extra = {"max_sequence_length": T5_TOKENS} if flux or hasattr(theirs, "text_encoder_3") else {}
    negative = options.pop("negative_prompt", None)
    if negative is not None:
        extra["negative_prompt"] = [negative] * len(prompts)
    expected = theirs(list(prompts), num_inference_steps=steps, guidance_scale=guidance, latents=latents,
                      height=size[0], width=size[1], output_type="np", **extra, **options).images  # fmt: skip
    ours = text_to_image(pipeline, params, prompts, steps=steps, guidance=guidance, size=size, noise=noise,
                         t5_tokens=T5_TOKENS, negative=negative, true_guidance=options.get("true_cfg_scale", 1.0))
    assert expected.shape == ours.shape and expected.std() > 0.1
    return expected, ours


@pytest.mark.slow
@pytest.mark.parametrize(("size", "guidance", "negative"), [((18, 26), 1.0, None), ((14, 22), 4.0, "rain")])
def test_sd_at_sizes_that_halve_unevenly(systems, size, guidance, negative):
    system = systems("stable_diffusion")
    expected, ours = both(system, size, [PROMPTS[0], LONG, "x"], guidance=guidance, negative_prompt=negative)
    assert psnr(ours, expected) > LEAST_PSNR


@pytest.mark.slow
def test_sdxl_not_square_with_and_without_words_to_avoid(systems):
    system = systems("stable_diffusion_xl")
    assert psnr(*both(system, (14, 20), [LONG])) > LEAST_PSNR
    assert psnr(*both(system, (14, 20), [LONG], negative_prompt="rain")) > LEAST_PSNR


@pytest.mark.slow
def test_sdxl_of_edm_noise_with_latents_standardized_a_channel(systems, tmp_path):
    """Playground v2.5's and CosXL's: the network is given scaled noise and log(sigma) / 4."""
    theirs, _, _, params = systems("stable_diffusion_xl")
    parts = {k: v for k, v in theirs.components.items() if k not in ("image_encoder", "feature_extractor")}
    schedulers = (diffusers.EDMDPMSolverMultistepScheduler(), diffusers.EDMEulerScheduler(
        prediction_type="v_prediction", sigma_max=120.0, sigma_data=1.0, sigma_schedule="exponential"))  # fmt: skip
    vae = tiny_systems.vae(scale=0.5)
    vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.1, 0.9, 1.3, 1.0])
    for number, scheduler in enumerate(schedulers):
        other = diffusers.StableDiffusionXLPipeline(**parts | {"scheduler": scheduler, "vae": vae})
        other.set_progress_bar_config(disable=True)
        other.check_inputs = lambda *_, **__: None
        other.save_pretrained(tmp_path / str(number))
        system = (other, None, *load_pipeline(tmp_path / str(number)))
        assert psnr(*both(system, (14, 20), [PROMPTS[0]], steps=6)) > LEAST_PSNR


@pytest.mark.slow
def test_sd3_not_square_of_long_prompts(systems):
    system = systems("stable_diffusion_3")
    assert psnr(*both(system, (12, 20), [LONG, PROMPTS[0]], negative_prompt=LONG)) > LEAST_PSNR
    assert psnr(*both(system, (12, 20), [LONG, PROMPTS[0]], guidance=1.0)) > LEAST_PSNR


@pytest.mark.slow
def test_sd35_guided_away_from_skipped_layers(systems):
    """diffusers' skip_guidance_layers, the last block and one of dual attention among them; ten steps, of which those
    between start and stop are guided so."""
    system = systems("stable_diffusion_3", qk_norm="rms_norm", dual_attention_layers=(0,), num_layers=3)
    theirs, folder, pipeline, params = system
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 16)).astype(np.float32)
    latents = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    plain = None
    for layers, start, stop in ((None, 0.0, 1.0), ([0, 1], 0.01, 0.5), ([2], 0.3, 0.9)):
        words = {} if layers is None else dict(skip_guidance_layers=layers, skip_layer_guidance_scale=2.2,
                                               skip_layer_guidance_start=start, skip_layer_guidance_stop=stop)
        expected = theirs(PROMPTS, num_inference_steps=10, guidance_scale=3.0, latents=latents, height=16, width=16,
                          output_type="np", max_sequence_length=T5_TOKENS, **words).images  # fmt: skip
        asked = None if layers is None else dict(layers=layers, scale=2.2, start=start, stop=stop)
        ours = text_to_image(pipeline, params, PROMPTS, steps=10, guidance=3.0, size=(16, 16), noise=noise,
                             t5_tokens=T5_TOKENS, skip_layers=asked)  # fmt: skip
        assert psnr(ours, expected) > LEAST_PSNR, (layers, psnr(ours, expected))
        plain = ours if plain is None else plain
        assert layers is None or psnr(plain, ours) < 60
    with pytest.raises(ValueError, match="skip_layers: layer 3 is not among this network's 3, 0 to 2"):
        text_to_image(pipeline, params, PROMPTS, guidance=3.0, skip_layers="3")
    with pytest.raises(ValueError, match="skip_layers goes with guidance above 1"):
        text_to_image(pipeline, params, PROMPTS, guidance=1.0, skip_layers="1")


@pytest.mark.slow
def test_flux_not_square_and_kept_from_words(systems):
    """diffusers' true_cfg_scale; without it a negative prompt changes nothing, which is said."""
    system = systems("flux")
    expected, ours = both(system, (12, 20), [LONG], negative_prompt="rain", true_cfg_scale=2.5)
    assert psnr(ours, expected) > LEAST_PSNR
    with pytest.warns(UserWarning, match="changes nothing at true_guidance 1"):
        without, same = both(system, (12, 20), [LONG], negative_prompt="rain")
    assert psnr(same, without) > LEAST_PSNR > 40 > psnr(without, expected)


@pytest.mark.slow
def test_image_to_image_under_rounded_karras_levels(systems, tmp_path):
    theirs, _, _, params = systems("stable_diffusion_xl")
    parts = {k: v for k, v in theirs.components.items() if k not in ("image_encoder", "feature_extractor")}
    parts["scheduler"] = diffusers.DPMSolverMultistepScheduler(**tiny_systems.SD_BETAS, use_karras_sigmas=True)
    other = diffusers.StableDiffusionXLImg2ImgPipeline(**parts)
    other.set_progress_bar_config(disable=True)
    other.save_pretrained(tmp_path / "xl")  # whose class is the one for image to image
    image = np.random.default_rng(1).random((2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        latents = theirs.vae.encode(torch.from_numpy(image.transpose(0, 3, 1, 2)) * 2 - 1).latent_dist.mode()
    latents = latents * theirs.vae.config.scaling_factor
    expected = other(PROMPTS, image=latents, strength=0.7, num_inference_steps=5, guidance_scale=3.0, output_type="np",
                     original_size=(16, 16), target_size=(16, 16),
                     generator=torch.Generator().manual_seed(3)).images  # fmt: skip
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3)).numpy().transpose(0, 2, 3, 1)
    pipeline, params = load_pipeline(tmp_path / "xl")
    ours = text_to_image(pipeline, params, PROMPTS, steps=5, guidance=3.0, noise=noise, image=image, strength=0.7)
    assert psnr(ours, expected) > LEAST_PSNR


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PNDMScheduler", "KDPM2DiscreteScheduler"])
def test_image_to_image_begins_where_the_list_of_timesteps_is_cut(systems, tmp_path, name):
    """PNDM's has the second of them twice, KDPM2's all but the first."""
    theirs, _, _, _ = systems("stable_diffusion")
    words = dict(skip_prk_steps=True, steps_offset=1) if name == "PNDMScheduler" else dict(steps_offset=1)
    parts = {k: v for k, v in theirs.components.items() if k != "image_encoder"}
    parts["scheduler"] = getattr(diffusers, name)(**tiny_systems.SD_BETAS, **words)
    other = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    other.save_pretrained(tmp_path / "sd")
    pipeline, params = load_pipeline(tmp_path / "sd")
    image = np.random.default_rng(1).random((2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        latents = other.vae.encode(torch.from_numpy(image.transpose(0, 3, 1, 2)) * 2 - 1).latent_dist.mode()
    latents = latents * other.vae.config.scaling_factor
    for steps, strength in ((9, 0.7), (8, 0.25), (6, 1.0), (5, 0.2)):
        expected = other(PROMPTS, image=latents, strength=strength, num_inference_steps=steps, guidance_scale=3.0,
                         output_type="np", generator=torch.Generator().manual_seed(3)).images  # fmt: skip
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3)).numpy().transpose(0, 2, 3, 1)
        ours = text_to_image(pipeline, params, PROMPTS, steps=steps, guidance=3.0, noise=noise, image=image,
                             strength=strength)  # fmt: skip
        assert psnr(ours, expected) > LEAST_PSNR, (steps, strength, psnr(ours, expected))


@pytest.mark.slow
def test_one_seed_is_one_image_whatever_is_drawn_beside_it_and_tiles_are_those_of_diffusers(systems, tmp_path):
    theirs, folder, pipeline, params = systems("stable_diffusion")
    options = dict(steps=1, guidance=1.0, size=(16, 24), seed=4)
    two = text_to_image(pipeline, params, PROMPTS, **options)
    one = text_to_image(pipeline, params, PROMPTS[:1], **options)
    assert psnr(one[0], two[0]) > LEAST_PSNR
    words = ["sample", f"--from={folder}", f"--prompt={PROMPTS[0]}", "--steps=1", "--guidance=1", "--size=16x24",
             "--seed=4", f"--out={tmp_path / 'x.png'}"]  # fmt: skip
    assert main([*words, "--tile=8"]) == 0
    theirs.vae.tile_sample_min_size, theirs.vae.tile_latent_min_size = 8, 4
    theirs.vae.enable_tiling()
    from lgm import sampling

    noise = np.asarray(sampling.noise(4, [0], (8, 12, 4)))
    tiled = theirs(PROMPTS[:1], num_inference_steps=1, guidance_scale=1.0, height=16, width=24, output_type="np",
                   latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())).images  # fmt: skip
    theirs.vae.disable_tiling()
    assert psnr(read_image(tmp_path / "x.png"), tiled[0]) > 50 > psnr(one[0], tiled[0])
    assert main([*words[:-1], f"--out={tmp_path / 'y.png'}", "--tile=7"]) != 0 and not (tmp_path / "y.png").exists()


@pytest.mark.slow
def test_noise_drawn_on_the_way_follows_the_seed_and_the_image(systems):
    _, _, pipeline, params = systems("stable_diffusion")
    noise = np.random.default_rng(2).standard_normal((2, 8, 8, 4)).astype(np.float32)
    draw = lambda seed, count=2: text_to_image(pipeline, params, PROMPTS[:count], steps=2, guidance=1.0, size=(16, 16),
                                               seed=seed, noise=noise[:count], solver="ddim:eta=1.0")  # fmt: skip
    one = draw(1)
    np.testing.assert_array_equal(draw(1), one)
    assert psnr(draw(2)[0], one[0]) < 50 and psnr(draw(1, 1)[0], one[0]) > LEAST_PSNR


@pytest.mark.slow
def test_guidance_rules_schedules_and_masks_reach_a_released_system(systems, tmp_path):
    """Each word changes the picture, and one that says the default does not."""
    _, folder, pipeline, params = systems("stable_diffusion")
    noise = np.random.default_rng(2).standard_normal((1, 8, 8, 4)).astype(np.float32)
    draw = lambda **words: text_to_image(pipeline, params, PROMPTS[:1], size=(16, 16), noise=noise,
                                         **dict(steps=2, guidance=40.0) | words)  # fmt: skip
    plain = draw()
    assert psnr(draw(rule={"name": "rescaled", "share": 0.0}), plain) > LEAST_PSNR
    assert psnr(draw(rule="projected:parallel=1.0"), plain) > LEAST_PSNR
    for words in ({"rule": "rescaled:share=1.0"}, {"rule": "projected:limit=0.1"}, {"interval": (0.6, 1.0)},
                  {"schedule": {"spacing": "karras"}}):  # fmt: skip
        assert psnr(draw(**words), plain) < 75, words  # LEAST_PSNR is what rounding leaves
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "mask.png")
    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(tmp_path / "image.png")
    words = ["sample", f"--from={folder}", f"--prompt={PROMPTS[0]}", "--steps=2", f"--image={tmp_path / 'image.png'}",
             f"--mask={tmp_path / 'mask.png'}", "--strength=1.0"]  # fmt: skip
    for seed in (1, 2):  # all of it is kept, whatever is drawn
        assert main([*words, f"--seed={seed}", f"--out={tmp_path / f'{seed}.png'}"]) == 0
    pictures = [np.asarray(Image.open(tmp_path / f"{seed}.png")) for seed in (1, 2)]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.slow
def test_on_eight_devices_the_networks_are_split_and_the_picture_is_the_same(tmp_path):
    tiny_systems.flux().save_pretrained(tmp_path / "flux")
    words = ["sample", f"--from={tmp_path / 'flux'}", f"--prompt={PROMPTS[0]}", "--steps=2", "--size=16"]
    assert main([*words, f"--out={tmp_path / 'one.png'}"]) == 0
    code = f"""
import os
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
import jax
from lgm.cli import main
from lgm.verbs import sample
from lgm.systems.folders import load_pipeline
_, params = load_pipeline({str(tmp_path / "flux")!r}, shard=sample.split_over_devices())
split = lambda leaf: leaf.addressable_shards[0].data.size < leaf.size
shares = {{place: [split(p) for p in jax.tree.leaves(part) if p.size > 500] for place, part in params.items()}}
print(sum(shares["transformer"]) > len(shares["transformer"]) / 2 and all(map(any, shares.values())), shares)
assert jax.device_count() == 8
raise SystemExit(main({[*words, f"--out={tmp_path / 'eight.png'}"]!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("True"), done.stdout + done.stderr
    one, eight = (np.asarray(Image.open(tmp_path / name), np.float64) / 255 for name in ("one.png", "eight.png"))
    assert psnr(one, eight) > 50  # 8 bits that round alike but for a few values
