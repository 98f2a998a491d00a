"""Models that inpaint and SDXL's refiner, from their folders and files: the pictures are those of diffusers."""

import diffusers
import jax
import numpy as np
import pytest
import tiny_systems
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as sd_inpaint
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_img2img as xl_img2img
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_inpaint as xl_inpaint
from test_single_file import original_layout, written
from tiny_systems import GUIDANCE, PROMPTS, SIZE, STEPS, noise_for, psnr

from lgm.drawing import text_to_image
from lgm.importing import config_of
from lgm.interop import original_names
from lgm.interop.components import read_json
from lgm.parsing import ConfigError
from lgm.systems.folders import load_pipeline, save_pipeline

LEAST_PSNR = 80  # dB: float32 through two networks; in another order of sums it is at over 100
RNG = np.random.default_rng(1)
IMAGE, MASK = RNG.random((*SIZE, 3), np.float32), RNG.random(SIZE) < 0.4


def with_unet(pipeline, cls, **changes):
    """The same parts with a U-Net of another configuration, in a pipeline of that class."""
    config = {key: value for key, value in pipeline.unet.config.items() if key[0] != "_"}
    unet = diffusers.UNet2DConditionModel(**config | changes)  # from_config takes its default for what had been one
    parts = pipeline.components | {"unet": tiny_systems.randomized(unet, 0.1)}
    return parts, cls


def inpainting():
    parts, cls = with_unet(tiny_systems.stable_diffusion(), diffusers.StableDiffusionInpaintPipeline, in_channels=9)
    return cls(**parts, requires_safety_checker=False)


def inpainting_xl():
    base, cls = tiny_systems.stable_diffusion_xl(), diffusers.StableDiffusionXLInpaintPipeline
    parts, _ = with_unet(base, cls, in_channels=9)
    return cls(**parts)


def refiner():
    parts, cls = with_unet(tiny_systems.stable_diffusion_xl(), diffusers.StableDiffusionXLImg2ImgPipeline,
                           cross_attention_dim=32, projection_class_embeddings_input_dim=24 + 5 * 8)  # fmt: skip
    return cls(**parts | {"text_encoder": None, "tokenizer": None}, requires_aesthetics_score=True,
               force_zeros_for_empty_prompt=False)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: (diffusers' pipeline, its folder)}."""
    found = {}
    for make in (inpainting, inpainting_xl, refiner):
        theirs, folder = make(), tmp_path_factory.mktemp("folders") / make.__name__
        theirs.save_pretrained(folder)
        theirs.set_progress_bar_config(disable=True)
        found[make.__name__] = theirs, folder
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strength", "module"), [
    ("inpainting", 1.0, sd_inpaint), ("inpainting", 0.5, sd_inpaint), ("inpainting_xl", 1.0, xl_inpaint),
    ("refiner", 0.5, xl_img2img),
])  # fmt: skip
def test_the_picture_is_diffusers(folders, monkeypatch, name, strength, module):
    theirs, folder = folders[name]
    noise = noise_for(theirs)
    latents = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *_: self.mean)  # theirs draws latents
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: latents)
    words = dict(num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np", strength=strength,
                 image=np.stack([IMAGE] * 2))  # fmt: skip
    if name != "refiner":
        words |= dict(mask_image=np.stack([MASK[..., None].astype(np.float32)] * 2), height=SIZE[0], width=SIZE[1])
    expected = theirs(PROMPTS, **words).images
    pipeline, params = load_pipeline(folder)
    ours = text_to_image(pipeline, params, PROMPTS, steps=STEPS, guidance=GUIDANCE, size=SIZE, noise=noise,
                         image=np.stack([IMAGE] * 2), strength=strength, mask=None if name == "refiner" else MASK)
    assert psnr(ours, expected) > LEAST_PSNR
    other = text_to_image(pipeline, params, PROMPTS, steps=STEPS, guidance=GUIDANCE, size=SIZE, noise=noise,
                          image=np.stack([1 - IMAGE] * 2), strength=strength,
                          mask=None if name == "refiner" else MASK)  # fmt: skip
    # what is around the mask, or below the noise, shows, if only by some 0.3% of the range: the weights are random
    assert psnr(other, expected) < LEAST_PSNR - 20


@pytest.mark.parametrize("name", ["inpainting", "inpainting_xl", "refiner"])
def test_a_folder_is_written_as_it_was_read(folders, tmp_path, name):
    theirs, folder = folders[name]
    pipeline, params = load_pipeline(folder)
    save_pipeline(tmp_path / "again", pipeline, params)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "again")
    assert type(again) is type(theirs)
    assert again.unet.config.in_channels == theirs.unet.config.in_channels
    assert read_json(tmp_path / "again" / "model_index.json").get("requires_aesthetics_score") == \
        (True if name == "refiner" else None if name == "inpainting" else False)
    for key, tensor in theirs.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[key], tensor), key
    if name == "refiner":
        assert (pipeline.denoiser.config.micro_ids, pipeline.denoiser.config.pooled_dim) == (5, 24)
        assert again.text_encoder is None


def test_what_cannot_be_is_one_line(folders, tmp_path):
    _, folder = folders["inpainting"]
    pipeline, params = load_pipeline(folder)
    with pytest.raises(ValueError, match="draws what a mask covers of a picture; give an image and a mask"):
        text_to_image(pipeline, params, PROMPTS, size=SIZE, image=np.stack([IMAGE] * 2))
    with pytest.raises(ConfigError, match=r"a U-Net that inpaints \(in_channels=9\), and no data set here has masks"):
        config_of(str(folder), "x")
    _, folder = folders["refiner"]
    index = folder / "model_index.json"
    text = index.read_text()
    try:
        index.write_text(text.replace('"requires_aesthetics_score": true', '"requires_aesthetics_score": false'))
        with pytest.raises(ValueError, match="leaves 16 for the text's vector, which has 24; does requires_aesthetics"):
            load_pipeline(folder, only=())
    finally:
        index.write_text(text)
    assert config_of(str(folder), "x")["model"]["micro_ids"] == 5


def test_the_refiners_single_file(folders, tmp_path):
    theirs, folder = folders["refiner"]
    pipeline, before = load_pipeline(folder)
    text = {f"text_model.{k.removeprefix('text_model.')}" if "projection" not in k else k: -v
            for k, v in theirs.text_encoder_2.state_dict().items()}  # fmt: skip
    unet = {name: -tensor for name, tensor in theirs.unet.state_dict().items()}
    written(tmp_path, original_layout(unet, original_names.unet(pipeline.denoiser.config), "model.diffusion_model.") |
            original_layout(text, original_names.open_clip_text(None), "conditioner.embedders.0.model."))
    _, params = load_pipeline(folder, single_file=tmp_path / "single.safetensors")
    for place in ("unet", "text_encoder_2"):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, -b), params[place], before[place])
