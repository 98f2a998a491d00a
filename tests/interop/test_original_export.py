"""Single files that are written here, in the layouts of the originals: read by diffusers' `from_single_file` and by lgm
bit for bit."""

import diffusers
import jax
import numpy as np
import pytest
import safetensors.torch
import tiny_systems
import torch
from test_single_file import original_layout

from lgm.cli import main
from lgm.interop.components import read_config
from lgm.interop.single_file import layouts_at
from lgm.interop.tensor_files import read_metadata
from lgm.systems.folders import load_pipeline


def xl():
    """Whose second encoder has a width of its own and a square projection, by which diffusers' converter knows it."""
    parts, second = tiny_systems.stable_diffusion_xl().components, tiny_systems.clip(40, "gelu", 40)
    unet = diffusers.UNet2DConditionModel.from_config(
        {**parts["unet"].config, "cross_attention_dim": 72, "projection_class_embeddings_input_dim": 88})  # fmt: skip
    parts |= {"unet": tiny_systems.randomized(unet, 0.1), "text_encoder_2": second}
    return diffusers.StableDiffusionXLPipeline(**parts)


def sd3():
    """Whose first encoder projects by an identity, as the released one does."""
    theirs = tiny_systems.stable_diffusion_3(qk_norm="rms_norm", dual_attention_layers=(0,), num_layers=3)
    parts = theirs.components | {"text_encoder": tiny_systems.clip(32), "text_encoder_2": tiny_systems.clip(16, "gelu")}
    with torch.no_grad():
        parts["text_encoder"].text_projection.weight.copy_(torch.eye(32))
    return diffusers.StableDiffusion3Pipeline(**parts)


def sd2():
    """Velocities, OpenCLIP's encoder."""
    scheduler = diffusers.DDIMScheduler(**tiny_systems.SD_BETAS, prediction_type="v_prediction", clip_sample=False,
                                        steps_offset=1)  # fmt: skip
    parts = tiny_systems.stable_diffusion(scheduler).components
    return diffusers.StableDiffusionPipeline(**parts | {"text_encoder": tiny_systems.clip(None, "gelu")},
                                             requires_safety_checker=False)  # fmt: skip


MAKERS = {"sd": tiny_systems.stable_diffusion, "sd2": sd2, "xl": xl, "sd3": sd3, "flux": tiny_systems.flux,
          "flux2_klein": tiny_systems.flux2_klein, "z_image": tiny_systems.z_image,
          "qwen_image": tiny_systems.qwen_image}  # fmt: skip
WHOLE = {"sd": "cond_stage_model.transformer.text_model.", "sd2": "cond_stage_model.model.transformer.resblocks.",
         "xl": "conditioner.embedders.1.model.transformer.resblocks.",
         "sd3": "text_encoders.t5xxl.transformer.encoder.", "flux": "text_encoders.clip_l.transformer.text_model."}
# which diffusers has no such loader for, or one for the released widths alone
NOT_READ = ("AutoencoderKLFlux2", "AutoencoderKLQwenImage", "FluxTransformer2DModel")


@pytest.mark.parametrize("system", MAKERS)
def test_a_single_file_is_read_by_diffusers_and_by_lgm_bit_for_bit(tmp_path, system):
    theirs, folder, out = MAKERS[system](), tmp_path / "folder", tmp_path / "out"
    theirs.save_pretrained(folder)
    assert main(["export", f"--from={folder}", "--form=original", f"--out={out}"]) == 0
    files = sorted(out.glob("*.safetensors"))
    assert [file.stem for file in files] == (["model"] if system in WHOLE else ["text_encoder", "transformer", "vae"])
    tensors = {name: tensor for file in files for name, tensor in safetensors.torch.load_file(file).items()}
    assert system not in WHOLE or any(name.startswith(WHOLE[system]) for name in tensors)
    pipeline, before = load_pipeline(folder)
    again, after = load_pipeline(folder, single_file=[str(file) for file in files])
    assert again.schedule == pipeline.schedule
    jax.tree.map(np.testing.assert_array_equal, before, after)
    for place, network in theirs.components.items():
        name = type(network).__name__
        if not hasattr(network, "from_single_file") or name in NOT_READ:
            continue
        file = files[0] if system in WHOLE else out / f"{place}.safetensors"
        read = type(network).from_single_file(str(file), config=str(folder), subfolder=place, local_files_only=True)
        state = read.state_dict()
        assert state.keys() == network.state_dict().keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items()), place
    if system in ("sd", "xl"):  # text encoders too; of others diffusers reads those of the released widths
        whole = type(theirs).from_single_file(str(files[0]), config=str(folder), local_files_only=True)
        for place in theirs.components:
            if place.startswith("text_encoder"):
                expected, state = getattr(theirs, place).state_dict(), getattr(whole, place).state_dict()
                assert all(torch.equal(tensor, state[key]) for key, tensor in expected.items()), place
    if system == "flux":  # its names, which diffusers' conversion of full widths holds elsewhere
        config = read_config(folder / "transformer", "FluxTransformer2DModel")
        layout = dict(layouts_at("transformer", "FluxTransformer2DModel"))["model.diffusion_model."]
        for name, tensor in original_layout(theirs.transformer.state_dict(), layout(config),
                                            "model.diffusion_model.").items():  # fmt: skip
            assert torch.equal(tensors[name], tensor), name
    if system == "sd2":
        assert read_metadata(files[0])["modelspec.prediction_type"] == "v" and "v_pred" in tensors


def test_what_an_original_layout_cannot_say_is_one_line_and_nothing_written(tmp_path, capsys):
    theirs = tiny_systems.stable_diffusion_3()  # whose first encoder's projection is any matrix
    theirs.save_pretrained(tmp_path / "sd3")
    sample = tiny_systems.stable_diffusion(diffusers.DDIMScheduler(**tiny_systems.SD_BETAS, prediction_type="sample",
                                                                   clip_sample=False, steps_offset=1))  # fmt: skip
    sample.save_pretrained(tmp_path / "sd")
    capsys.readouterr()
    for system, line in (("sd3", "text_encoder: 'text_projection.weight' is no identity"),
                         ("sd", "single files have no mark for a network of process 'ddpm' that predicts 'x'")):
        assert main(["export", f"--from={tmp_path / system}", "--form=original", f"--out={tmp_path / 'out'}"]) == 2
        printed = capsys.readouterr().err
        assert line in printed and len(printed.strip().splitlines()) == 1, printed
        assert sorted(path.name for path in tmp_path.iterdir()) == ["sd", "sd3"]
