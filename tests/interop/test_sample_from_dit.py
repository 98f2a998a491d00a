"""A DiT folder sampled by class: the picture is diffusers', and a prompt that names no class is one line."""

import json

import diffusers
import pytest
import safetensors.numpy
import tiny_systems
import torch

from lgm.cli import main
from lgm.interop.diffusers_dir import load_pipeline, save_pipeline
from lgm.interop.pipelines import text_to_image

LEAST_PSNR = 80.0  # float32 in another order of sums is at over 100 dB
NAMES = {3: "goldfish, carassius auratus", 207: "golden retriever"}


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    """(diffusers' pipeline, its folder); the pipeline's label for no class is 1000, so there must be as many."""
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, in_channels=4, out_channels=8, sample_size=8,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False)
    theirs = diffusers.DiTPipeline(
        tiny_systems.randomized(transformer, 0.15), tiny_systems.vae(), scheduler, id2label=NAMES
    )
    theirs.set_progress_bar_config(disable=True)
    folder = tmp_path_factory.mktemp("dit") / "dit"
    theirs.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer"][1] = "Transformer2DModel"  # as the released folders still say
    (folder / "model_index.json").write_text(json.dumps(index | {"id2label": NAMES}))
    return theirs, folder


def test_the_image_of_a_class_is_diffusers_image_both_ways(dit, tmp_path):
    theirs, folder = dit
    images = lambda pipeline: pipeline([207, 3], guidance_scale=3.0, num_inference_steps=4, output_type="np",
                                       generator=torch.Generator().manual_seed(0)).images  # fmt: skip
    expected = images(theirs)
    noise = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0)).numpy().transpose(0, 2, 3, 1)
    pipeline, params = load_pipeline(folder)
    ours = text_to_image(pipeline, params, ["class 207", "Goldfish"], steps=4, guidance=3.0, noise=noise)
    assert expected.std() > 0.05
    assert tiny_systems.psnr(ours, expected) > LEAST_PSNR

    save_pipeline(tmp_path / "ours", pipeline, params)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    original, written = (safetensors.numpy.load_file(f / weights) for f in (folder, tmp_path / "ours"))
    assert {k: v.tobytes() for k, v in original.items()} == {k: v.tobytes() for k, v in written.items()}
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    again.set_progress_bar_config(disable=True)
    assert tiny_systems.psnr(images(again), expected) > LEAST_PSNR
    assert again.get_label_ids(["golden retriever"]) == [207]


@pytest.mark.parametrize(("prompt", "part"), [
    ("class 1000", "there are 1000 classes, from 0 to 999"),
    ("golden retreiver", "did you mean 'golden retriever'"),
    ("a red fox", "names no class"),
])  # fmt: skip
def test_a_prompt_that_names_no_class_is_one_line(dit, tmp_path, capsys, prompt, part):
    command = ["sample", f"--from={dit[1]}", f"--prompt={prompt}", f"--out={tmp_path / 'x.png'}", "--steps=1"]
    assert main(command) != 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and part in lines[0], lines
    assert not (tmp_path / "x.png").exists()


def test_the_command_line_draws_a_class(dit, tmp_path):
    command = ["sample", f"--from={dit[1]}", "--prompt=class 3", f"--out={tmp_path / 'x.png'}", "--steps=1"]
    assert main([*command, "--guidance=1"]) == 0 and (tmp_path / "x.png").exists()
