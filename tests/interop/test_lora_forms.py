"""One LoRA in each form that it is exported in: the same adapter comes back, and every name is one that the form's
readers know: diffusers' loader, kohya's scripts by their rule, ComfyUI by the names of its checkpoints."""

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny_systems
import torch
import yaml
from peft.utils import get_peft_model_state_dict
from test_original_export import sd3, xl

from lgm.cli import main
from lgm.interop.lora_export import STEM
from lgm.interop.lora_files import read_lora
from lgm.systems.folders import load_pipeline

MAKERS = {"sd": tiny_systems.stable_diffusion, "xl": xl, "sd3": sd3, "flux": tiny_systems.flux,
          "z_image": tiny_systems.z_image}  # fmt: skip
ENDS = ("attn1.to_q", "attn2.to_k", "attn.to_q", "attn.to_k", "attn.to_out.0", "ff.net.2", "q_proj", "out_proj",
        "SelfAttention.v", "attention.to_v", "feed_forward.w2")  # fmt: skip
TEXT = {"sd": {"text_encoder": "lora_te_"}, "xl": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
        "sd3": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_"},
        "flux": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te3_"}, "z_image": {}}  # fmt: skip
COMFY = {"sd": ["clip_l"], "xl": ["clip_l", "clip_g"], "sd3": ["clip_l", "clip_g", "t5xxl"],
         "flux": ["clip_l", "t5xxl"], "z_image": []}  # fmt: skip
TOLERANCE = 1e-5  # float32: where the original fuses matrices, zeros stand in the sums


def adapter(theirs, places):
    """A LoRA of a pipeline's networks in diffusers' form."""
    rng, tensors = np.random.default_rng(0), {}
    for place in places:
        network = getattr(theirs, place)
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.Linear) and name.endswith(ENDS):
                inner = f"text_model.{name}" if name.startswith("encoder.layers.") else name
                for part, shape in (("A", (2, module.in_features)), ("B", (module.out_features, 2))):
                    tensors[f"{place}.{inner}.lora_{part}.weight"] = rng.standard_normal(shape, np.float32)
    return tensors


@pytest.mark.parametrize("system", MAKERS)
def test_a_lora_comes_back_from_every_form(tmp_path, system):
    theirs, folder, file = MAKERS[system](), tmp_path / "folder", tmp_path / "lora.safetensors"
    theirs.save_pretrained(folder)
    place = "unet" if hasattr(theirs, "unet") else "transformer"
    tensors = adapter(theirs, [place, *TEXT[system]])
    assert all(any(name.startswith(f"{p}.") for name in tensors) for p in (place, *TEXT[system]))
    safetensors.numpy.save_file(tensors, file)
    export = lambda source, form, out: main(["export", f"--from={folder}", f"--lora={source}", f"--form={form}",
                                             f"--out={tmp_path / out}"])  # fmt: skip
    expected = merged(folder, file)
    for form in ("lora-diffusers", "lora-kohya", "lora-comfy"):
        assert export(file, form, form) == 0
        there = safetensors.numpy.load_file(tmp_path / form / f"{STEM}.safetensors")
        names = sorted({name.split(".lora_")[0].removesuffix(".alpha") for name in there})
        if form == "lora-diffusers":
            assert {name: tensor.tobytes() for name, tensor in there.items()} == {
                name: tensor.tobytes() for name, tensor in tensors.items()}  # fmt: skip
        elif form == "lora-kohya":
            assert {name[: name.index("_", 5) + 1] for name in names} == {"lora_unet_", *TEXT[system].values()}
            assert not any("." in name for name in names)
        else:  # each names a matrix of ComfyUI's checkpoint, which has OpenCLIP's encoder by transformers' names
            assert main(["export", f"--from={folder}", "--form=original", f"--out={tmp_path / 'original'}"]) == 0
            weights = tmp_path / "original" / ("model" if TEXT[system] else "transformer")
            known = safetensors.numpy.load_file(weights.with_suffix(".safetensors"))
            known = {f"diffusion_model.{name.removeprefix('model.diffusion_model.')}" for name in known}
            assert {name for name in names if f"{name}.weight" not in known} == {
                name for name in names if name.startswith("text_encoders.")}  # fmt: skip
            prefixes = {name.split(".")[1] for name in names if name.startswith("text_encoders.")}
            assert prefixes == set(COMFY[system])
        again = merged(folder, tmp_path / form / f"{STEM}.safetensors")
        for one, other in zip(again, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=TOLERANCE)
    if system in ("sd", "xl"):  # what diffusers makes of kohya's names is what was there
        theirs.load_lora_weights(tmp_path / "lora-kohya")
        plain, count = lambda name: name.replace("text_model.", ""), 0
        there = {plain(name): tensor for name, tensor in tensors.items()}
        for place in ("unet", *TEXT[system]):
            for name, tensor in get_peft_model_state_dict(getattr(theirs, place), adapter_name="default_0").items():
                count += there[plain(f"{place}.{name}")].tobytes() == tensor.numpy().tobytes()
        assert count == len(tensors)
    header = yaml.safe_load((tmp_path / "lora-kohya" / "README.md").read_text().split("---")[1])
    assert "lora" in header["tags"] and "license" not in header


def merged(folder, lora):
    return jax.tree.leaves(load_pipeline(folder, loras=[read_lora(lora)])[1])


def with_lengths(tensors):
    """The same as DoRA, each module with lengths of its own for the rows."""
    rng = np.random.default_rng(1)
    return tensors | {name.replace(".lora_B.weight", ".lora_magnitude_vector"):
                      rng.uniform(0.5, 1.5, len(up)).astype(np.float32)
                      for name, up in tensors.items() if name.endswith(".lora_B.weight")}  # fmt: skip


def test_a_dora_comes_back_from_every_form_and_is_what_diffusers_fuses(tmp_path, capsys):
    theirs, folder, file = tiny_systems.stable_diffusion(), tmp_path / "folder", tmp_path / "lora.safetensors"
    theirs.save_pretrained(folder)
    safetensors.numpy.save_file(with_lengths(adapter(theirs, ["unet", "text_encoder"])), file)
    expected = merged(folder, file)
    for form in ("lora-diffusers", "lora-kohya", "lora-comfy"):
        out = tmp_path / form
        assert main(["export", f"--from={folder}", f"--lora={file}", f"--form={form}", f"--out={out}"]) == 0
        for one, other in zip(merged(folder, out / f"{STEM}.safetensors"), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=TOLERANCE)
    theirs.load_lora_weights(tmp_path / "lora-diffusers", weight_name=f"{STEM}.safetensors")
    theirs.fuse_lora(components=["unet", "text_encoder"])
    theirs.unload_lora_weights()
    theirs.save_pretrained(tmp_path / "fused")
    for one, other in zip(jax.tree.leaves(load_pipeline(tmp_path / "fused")[1]), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=TOLERANCE)

    flux = tiny_systems.flux()
    flux.save_pretrained(tmp_path / "flux")  # whose original fuses q, k and v; only two of them are changed here
    safetensors.numpy.save_file(with_lengths(adapter(flux, ["transformer"])), file)
    capsys.readouterr()
    assert main(["export", f"--from={tmp_path / 'flux'}", f"--lora={file}", "--form=lora-kohya",
                 f"--out={tmp_path / 'out'}"]) == 2  # fmt: skip
    assert "DoRA's lengths are known of a part of its rows" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_no_lora_of_rows_goes_into_no_other_form(tmp_path, capsys):
    theirs, folder, file = tiny_systems.stable_diffusion(), tmp_path / "folder", tmp_path / "lora.safetensors"
    theirs.save_pretrained(folder)
    tensors = adapter(theirs, ["unet"])
    module = next(iter(tensors)).removesuffix(".lora_A.weight")
    capsys.readouterr()
    rows = len(tensors[f"{module}.lora_B.weight"])
    command = ["export", f"--from={folder}", f"--lora={file}", "--form=lora-kohya", f"--out={tmp_path / 'out'}"]
    columns = tensors[f"{module}.lora_A.weight"].shape[1]
    for more, line in (({f"{module}.dora_scale": np.ones((1, columns), np.float32)}, "is a DoRA of columns"),
                       ({f"{module}.diff_b": np.ones(rows, np.float32)}, "is a LoRA with biases"),
                       ({"unet.other.lora_A.weight": np.ones((2, 4), np.float32),
                         "unet.other.lora_B.weight": np.ones((4, 2), np.float32)}, "changes 'unet.other'")):
        safetensors.numpy.save_file(tensors | more, file)
        assert main(command) == 2
        printed = capsys.readouterr().err
        assert line in printed and len(printed.strip().splitlines()) == 1, printed
        assert not (tmp_path / "out").exists()
    assert main([*command, f"--lora={file}"]) == 2 and "writes one LoRA file anew" in capsys.readouterr().err
    assert main(["export", f"--from={folder}", "--steps=3", f"--out={tmp_path / 'out'}"]) == 2
    assert "--steps goes with --form=stablehlo" in capsys.readouterr().err
