"""Adapters of Flux and SD3 in the form of kohya's scripts, as diffusers' own converters understand them."""

import diffusers
import numpy as np
import tiny_systems
import torch
from diffusers.loaders import single_file_utils
from test_lora_export import CONFIG, adapter_of, write
from test_single_file import original_layout

from lgm.interop.components import read_config
from lgm.interop.lora_export import STEM
from lgm.interop.single_file import original_of
from lgm.interop.tensor_files import open_weights
from lgm.models import build


def exported(tmp_path, network, targets=CONFIG.targets):
    """{form: tensors} of one adapter of a network's, written in both forms."""
    name = type(network).__name__
    network.save_config(tmp_path / "config")
    config = read_config(tmp_path / "config", name)
    model, lora = build(config), CONFIG.__class__(rank=2, alpha=3.0, targets=targets)
    changes, original = adapter_of(model, lora), original_of("transformer", name, config)
    files = {}
    for form in ("diffusers", "kohya"):
        write(tmp_path / form, "transformer", name, model, changes, lora, form, original if form == "kohya" else None)
        weights = open_weights(tmp_path / form / f"{STEM}.safetensors")
        files[form] = {key: np.array(weights.get(key)) for key in weights.names}
    return files


def deltas(tensors):
    """{module: what it adds to its weight} of a file in diffusers' form."""
    modules = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    return {m.removeprefix("transformer."): tensors[f"{m}.lora_B.weight"] @ tensors[f"{m}.lora_A.weight"]
            for m in modules}  # fmt: skip


def test_flux_at_its_released_widths_is_read_by_diffusers_loader(tmp_path):
    """Whose converter knows linear1's parts by Flux' own widths. Changes are compared on a vector."""
    with torch.device("meta"):
        network = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    files = exported(tmp_path, network, (r"(double|single)/.*(qkv|out|fc1|fc2|modulation)/kernel$",))
    theirs = diffusers.FluxPipeline.lora_state_dict(tmp_path / "kohya", weight_name=f"{STEM}.safetensors")
    rng, compared = np.random.default_rng(0), 0
    for key, down in files["diffusers"].items():
        if key.endswith(".lora_A.weight"):
            x = rng.standard_normal(down.shape[1]).astype(np.float32)
            up = key.replace("lora_A", "lora_B")
            ours = files["diffusers"][up] @ (down @ x)
            np.testing.assert_allclose(theirs[up].numpy() @ (theirs[key].numpy() @ x), ours, atol=1e-3, err_msg=key)
            assert np.abs(ours).max() > 1
            compared += 1
    assert compared == len(theirs) / 2 >= 18


def test_sd3s_changes_added_to_an_original_checkpoint_are_those_of_diffusers_names(tmp_path):
    """No loader of diffusers reads SD3's: each module's change is put where kohya's name says into a checkpoint of
    zeros, which diffusers converts."""
    network = tiny_systems.stable_diffusion_3(qk_norm="rms_norm", dual_attention_layers=(0,)).transformer
    files = exported(tmp_path, network, (*CONFIG.targets, r"/modulation/kernel$"))
    original = original_of("transformer", type(network).__name__, read_config(tmp_path / "config",
                                                                              type(network).__name__))  # fmt: skip
    checkpoint = {k: 0 * v for k, v in original_layout(network.state_dict(), original, "").items()}
    modules = {f"lora_unet_{k.removesuffix('.weight').replace('.', '_')}": k for k in checkpoint}
    kohya = files["kohya"]
    for key in [key for key in kohya if key.endswith(".alpha")]:
        module = key.removesuffix(".alpha")
        down, up = kohya[f"{module}.lora_down.weight"], kohya[f"{module}.lora_up.weight"]
        change = up @ down * (kohya[key] / len(down))
        checkpoint[modules[module]] = torch.from_numpy(change).reshape(checkpoint[modules[module]].shape)
    converted = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    expected = {f"{module}.weight": change for module, change in deltas(files["diffusers"]).items()}
    assert len(expected) > 15
    for name, tensor in converted.items():  # and nothing else is changed
        np.testing.assert_allclose(tensor.numpy(), expected.pop(name, 0.0), atol=1e-5, err_msg=name)
    assert not expected
