"""SD3 folders: `lgm sample --from` draws diffusers' picture, and what is imported and exported is the same system."""

import diffusers
import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny_systems
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed_from_grid
from tiny_systems import GUIDANCE, PROMPTS, SIZE, STEPS, draw, noise_for

from lgm.cli import main
from lgm.drawing import draw as draw_run
from lgm.pictures import read_image
from lgm.systems.folders import load_pipeline, save_pipeline
from lgm.train.opening import load_run

LEAST_PSNR = 80.0  # float32 in another order of sums is at over 100 dB
LEAST_PSNR_8_BIT = 45.0  # two images in 8 bits that round alike but for a few values are at 60
T5_TOKENS = 256  # SD3's own number, which the command line draws with
TABLE = "pos_embed.pos_embed"


def their_images(theirs, noise, prompts=PROMPTS, tokens=T5_TOKENS):
    theirs.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    return theirs(prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np", height=SIZE[0],
                  width=SIZE[1], latents=latents, max_sequence_length=tokens).images  # fmt: skip


def assert_same_weights(one, other, equal_tables=True):
    """Every tensor of every part of two folders, bit for bit; transformers 5 leaves a prefix out that we write."""
    files = [file.relative_to(one) for file in one.rglob("*.safetensors")]
    assert {file.parent.name for file in files} >= {"transformer", "vae", "text_encoder", "text_encoder_2"}
    for file in files:
        before, after = (safetensors.numpy.load_file(folder / file) for folder in (one, other))
        place = lambda key, after=after: key if key in after else f"text_model.{key}"
        assert {place(key) for key in before} == set(after)
        for key, value in before.items():
            if key == TABLE and not equal_tables:
                np.testing.assert_allclose(after[key], value, atol=1e-3)
            else:
                assert value.tobytes() == after[place(key)].tobytes(), key


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    """(diffusers' pipeline with three text encoders, its folder)."""
    folder = tmp_path_factory.mktemp("sd3") / "sd3"
    theirs = tiny_systems.stable_diffusion_3()
    theirs.save_pretrained(folder)
    return theirs, folder


@pytest.fixture(scope="module")
def imported(sd3, tmp_path_factory):
    run = tmp_path_factory.mktemp("imported") / "run"
    assert main(["import", f"--from={sd3[1]}", f"--workdir={run}"]) == 0
    return run


def test_the_command_line_draws_diffusers_picture(sd3, tmp_path):
    theirs, folder = sd3
    noise = noise_for(theirs)[:1]
    np.save(tmp_path / "x.npy", noise)
    expected = their_images(theirs, noise, PROMPTS[:1])
    assert expected.std() > 0.1
    assert main(["sample", f"--from={folder}", f"--prompt={PROMPTS[0]}", f"--out={tmp_path / 'x.png'}", "--size=16",
                 f"--steps={STEPS}", f"--guidance={GUIDANCE}", f"--noise={tmp_path / 'x.npy'}"]) == 0  # fmt: skip
    assert tiny_systems.psnr(read_image(tmp_path / "x.png"), expected[0]) > LEAST_PSNR_8_BIT


def test_sd35_without_t5_and_with_positions_of_its_own_is_drawn_and_written(tmp_path):
    """The table of positions in a file may be other than the one that config.json leads to, and in 16 bits."""
    theirs = tiny_systems.stable_diffusion_3(with_t5=False, qk_norm="rms_norm", dual_attention_layers=(0,))
    size, width = 12, 32
    place = torch.arange(size, dtype=torch.float32) * 0.375 - 10.5
    grid = torch.stack(torch.meshgrid(place, place, indexing="xy")).reshape(2, 1, size, size)
    table = get_2d_sincos_pos_embed_from_grid(width, grid).half().float()
    theirs.transformer.pos_embed.pos_embed.copy_(table[None])
    theirs.save_pretrained(tmp_path / "theirs")
    noise = noise_for(theirs)
    expected = their_images(theirs, noise, tokens=tiny_systems.T5_TOKENS)

    pipeline, params = load_pipeline(tmp_path / "theirs")
    config = pipeline.denoiser.config
    assert (config.position_scale, config.position_offset, config.dual_attention) == (0.375, 10.5, 1)
    # half precision rounds their table by 2e-4; ours is exact
    assert tiny_systems.psnr(draw(pipeline, params, noise), expected) > 60

    save_pipeline(tmp_path / "ours", pipeline, params)
    assert_same_weights(tmp_path / "theirs", tmp_path / "ours", equal_tables=False)
    absent = dict(text_encoder_3=None, tokenizer_3=None)  # diffusers wants to hear it for its own folders too
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours", **absent)
    assert type(again) is type(theirs)
    images = their_images(again, noise, tokens=tiny_systems.T5_TOKENS)
    assert tiny_systems.psnr(draw(pipeline, params, noise), images) > LEAST_PSNR

    theirs.transformer.pos_embed.pos_embed.normal_()
    theirs.transformer.save_pretrained(tmp_path / "theirs" / "transformer")
    with pytest.raises(ValueError, match="'pos_embed.pos_embed' is no table of evenly spaced sine-cosine positions"):
        load_pipeline(tmp_path / "theirs")


def test_an_imported_run_is_exported_bit_for_bit_and_drawn_the_same(sd3, imported, tmp_path):
    folder = tmp_path / "out"
    assert main(["export", f"--workdir={imported}", f"--out={folder}"]) == 0
    assert_same_weights(sd3[1], folder)
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(theirs) is diffusers.StableDiffusion3Pipeline
    assert theirs.scheduler.config.shift == 3.0
    system, params, frozen, _ = load_run(str(imported), "ema")
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(5), i), 0) for i in range(2)]
    noise = np.stack([np.asarray(jax.random.normal(key, (8, 8, 16))) for key in keys])
    drawn = draw_run(system, params, frozen, PROMPTS, seed=5, steps=STEPS, guidance=GUIDANCE)
    assert tiny_systems.psnr(drawn / 255, their_images(theirs, noise)) > LEAST_PSNR_8_BIT


def test_image_to_image_is_diffusers_picture(sd3):
    """At a strength that gives no whole number of steps, which the flow pipelines round up."""
    theirs, folder = sd3
    other = diffusers.StableDiffusion3Img2ImgPipeline(**theirs.components)
    other.set_progress_bar_config(disable=True)
    image = np.random.default_rng(1).random((2, *SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        latents = theirs.vae.encode(torch.from_numpy(image.transpose(0, 3, 1, 2)) * 2 - 1).latent_dist.mode()
    latents = (latents - theirs.vae.config.shift_factor) * theirs.vae.config.scaling_factor
    expected = other(PROMPTS, image=latents, strength=0.6, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
                     negative_prompt=["rain"] * 2, generator=torch.Generator().manual_seed(3), output_type="np",
                     max_sequence_length=tiny_systems.T5_TOKENS, height=SIZE[0], width=SIZE[1]).images  # fmt: skip
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3)).numpy().transpose(0, 2, 3, 1)
    pipeline, params = load_pipeline(folder)
    ours = draw(pipeline, params, noise, image=image, strength=0.6, negative="rain")
    assert tiny_systems.psnr(ours, expected) > LEAST_PSNR
