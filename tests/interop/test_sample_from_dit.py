"""A DiT folder sampled by class: the picture is that of diffusers' pipeline with the released network; a prompt that
names no class is one line."""

import copy
import json
import shutil

import diffusers
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import tiny_systems
import torch
from released_dit import as_released, original_layout, with_shared_embedders

from lgm import config as schema
from lgm.cli import main
from lgm.drawing import text_to_image
from lgm.models import Conditioning
from lgm.systems.folders import load_pipeline, save_pipeline

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
    as_released(theirs.transformer)
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
    as_released(again.transformer)
    again.set_progress_bar_config(disable=True)
    assert tiny_systems.psnr(images(again), expected) > LEAST_PSNR
    assert again.get_label_ids(["golden retriever"]) == [207]


def test_original_files_of_dit_are_read_in_place_of_the_folders_network(dit, tmp_path):
    """The file has one pair of embedders, q, k and v in one matrix, and the positions that the network computes."""
    theirs, folder = dit
    other = with_shared_embedders(tiny_systems.randomized(copy.deepcopy(theirs.transformer), 0.2))
    tensors = original_layout(other.state_dict()) | {"pos_embed": other.pos_embed.pos_embed}
    assert {"blocks.1.attn.qkv.weight", "y_embedder.embedding_table.weight", "final_layer.linear.bias"} < set(tensors)
    path = tmp_path / "DiT-XL-2-256x256.safetensors"
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    pipeline, params = load_pipeline(folder, single_file=path)
    assert_same_network(pipeline, params, other)
    out = tmp_path / "out"
    assert main(["export", f"--from={folder}", f"--single-file={path}", "--form=original", f"--out={out}"]) == 0
    written = safetensors.torch.load_file(out / "transformer.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():  # the table of positions is computed
        np.testing.assert_allclose(written[name], tensor, atol=1e-6 if name == "pos_embed" else 0, err_msg=name)
    assert main(["export", f"--from={folder}", "--form=original", f"--out={tmp_path / 'none'}"]) == 2
    assert not (tmp_path / "none").exists()  # diffusers' own has embedders that differ
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items() if "fc2" not in name},
                                path)  # fmt: skip
    with pytest.raises(ValueError, match="lacks 'transformer_blocks.0.ff.net.2.weight'"):
        load_pipeline(folder, single_file=path)
    table = tensors["pos_embed"]
    for other in (table.repeat(1, 4, 1), 0.5 * table):  # of a network for 16 x 16 latents, and of none that is known
        changed = {name: tensor.contiguous() for name, tensor in {**tensors, "pos_embed": other}.items()}
        safetensors.torch.save_file(changed, path)
        with pytest.raises(ValueError, match="'pos_embed' .* is not the table of 4 x 4 positions that sample_size=8"):
            load_pipeline(folder, single_file=path)


def test_original_files_of_sit_are_drawn_by_a_flow(dit, tmp_path, capsys):
    """A folder of SiT is that of a DiT with another class and a flow's scheduler; the pictures are those of Euler's
    method from tau = 0, noise, to 1, data, over dx / dtau."""
    theirs, source = dit
    folder, path = tmp_path / "sit", tmp_path / "SiT-XL-2-256.safetensors"
    shutil.copytree(source, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"transformer": ["lgm", "SiTTransformer2DModel"],
              "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    other = with_shared_embedders(tiny_systems.randomized(copy.deepcopy(theirs.transformer), 0.2))
    tensors = {name: tensor.contiguous() for name, tensor in original_layout(other.state_dict()).items()}
    safetensors.torch.save_file(tensors, path)
    pipeline, params = load_pipeline(folder, single_file=path)
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    noise = x.numpy().transpose(0, 2, 3, 1)
    even = {"spacing": "even"}
    ours = text_to_image(pipeline, params, ["class 207"], steps=4, guidance=1.0, noise=noise, schedule=even)
    with torch.no_grad():
        for tau in (0.0, 0.25, 0.5, 0.75):
            x = x + 0.25 * other(x, torch.tensor([tau]), torch.tensor([207])).sample[:, :4]
        expected = theirs.vae.decode(x / theirs.vae.config.scaling_factor).sample / 2 + 0.5
    expected = expected.permute(0, 2, 3, 1).clamp(0, 1).numpy()
    assert expected.std() > 0.05
    assert tiny_systems.psnr(ours, expected) > LEAST_PSNR

    assert main(["export", f"--from={folder}", f"--single-file={path}", f"--out={tmp_path / 'out'}"]) == 0
    again, again_params = load_pipeline(tmp_path / "out")
    assert again.denoiser.config == pipeline.denoiser.config and again.denoiser.config.time == "reversed"
    assert_same_network(again, again_params, other, sign=-1.0, told=lambda t: 1.0 - t)
    assert main(["inspect", f"--from={tmp_path / 'out'}", "--levels=1"]) == 0
    assert main(["import", f"--from={tmp_path / 'out'}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert schema.read(tmp_path / "run").model.time == "reversed"
    capsys.readouterr()


def assert_same_network(pipeline, params, theirs, sign=1.0, told=lambda t: 1000.0 * t):
    x, t, label = torch.randn((1, 4, 8, 8)), np.float32([0.3]), np.int64([3])
    with torch.no_grad():
        expected = sign * theirs(x, torch.tensor(told(t)), torch.tensor(label)).sample[:, :4].numpy()
    ours = pipeline.denoiser.apply(params["transformer"], x.numpy().transpose(0, 2, 3, 1), t,
                                   Conditioning(label=label.astype(np.int32)))  # fmt: skip
    np.testing.assert_allclose(np.asarray(ours).transpose(0, 3, 1, 2), expected, atol=1e-4 * np.abs(expected).max())


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
