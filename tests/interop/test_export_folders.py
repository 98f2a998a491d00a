"""`lgm export --from`: a folder written anew with LoRAs merged, networks of a single file, other dtypes; and runs that
were imported from folders of 16 bits."""

from types import SimpleNamespace

import diffusers
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import tiny_systems
import torch
from test_single_file import original_layout

from lgm.cli import main
from lgm.exporting import _schedule_of
from lgm.interop import original_names
from lgm.interop.components import component
from lgm.interop.keys_autoencoder import autoencoder_weights
from lgm.interop.schedulers import write_schedule
from lgm.interop.tensor_files import open_weights, save
from lgm.parsing import ConfigError


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    """(diffusers' pipeline, its folder)."""
    theirs, folder = tiny_systems.stable_diffusion(), tmp_path_factory.mktemp("sd") / "sd"
    theirs.save_pretrained(folder)
    return theirs, folder


def tensors(folder):
    """Every tensor of a folder by place and name; transformers 5 leaves a prefix out that we write."""
    files = sorted(folder.rglob("*.safetensors"))
    found = {f.parent.name: safetensors.numpy.load_file(f) for f in files}
    plain = lambda name: name.removeprefix("text_model.")
    return {f"{place}/{plain(name)}": t for place, part in found.items() for name, t in part.items()}


def test_a_single_file_becomes_a_folder_that_diffusers_loads_in_sixteen_bits(sd, tmp_path):
    theirs, folder = sd
    config = component("UNet2DConditionModel").read(theirs.unet.config)
    state = {name: -2 * tensor for name, tensor in theirs.unet.state_dict().items()}
    original = original_layout(state, original_names.unet(config), "model.diffusion_model.")
    safetensors.torch.save_file({k: v.contiguous() for k, v in original.items()}, tmp_path / "x.safetensors")
    out = tmp_path / "out"
    assert main(["export", f"--from={folder}", f"--single-file={tmp_path / 'x.safetensors'}", "--dtype=bfloat16",
                 f"--out={out}"]) == 0  # fmt: skip
    before, after = tensors(folder), tensors(out)
    assert before.keys() == after.keys() and {t.dtype for t in after.values()} == {np.dtype(ml_dtypes.bfloat16)}
    for name, value in before.items():
        expected = (-2 * value if name.startswith("unet/") else value).astype(ml_dtypes.bfloat16)
        assert after[name].tobytes() == expected.tobytes(), name
    again = diffusers.StableDiffusionPipeline.from_pretrained(out, torch_dtype=torch.bfloat16)
    assert again.unet.dtype == torch.bfloat16
    assert again.vae.config.sample_size == again.unet.config.sample_size * 2  # what enable_tiling goes by


def test_kohyas_files_of_flux_and_its_t5_are_merged_for_good(tmp_path):
    """q, k and v of a double block, and of a single block with its feed-forward network, are one matrix there."""
    folder, out = tmp_path / "flux", tmp_path / "out"
    tiny_systems.flux().save_pretrained(folder)
    rng = np.random.default_rng(0)
    new = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    modules = {"lora_unet_double_blocks_0_txt_attn_qkv": (96, 32), "lora_unet_single_blocks_1_linear1": (224, 32),
               "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (32, 32),
               "lora_te3_encoder_block_1_layer_0_SelfAttention_q": (32, 32)}  # fmt: skip
    pairs = {name: (new(rows, 2), new(2, columns)) for name, (rows, columns) in modules.items()}
    file = {f"{name}.lora_up.weight": up for name, (up, _) in pairs.items()}
    file |= {f"{name}.lora_down.weight": down for name, (_, down) in pairs.items()}
    file |= {f"{name}.alpha": np.array(1.0, np.float32) for name in pairs}
    safetensors.numpy.save_file(file, tmp_path / "lora.safetensors")
    assert main(["export", f"--from={folder}", f"--lora={tmp_path / 'lora.safetensors'}:0.5", f"--out={out}"]) == 0
    changes = {name: 0.25 * up @ down for name, (up, down) in pairs.items()}  # strength 0.5, alpha / rank 0.5
    double, single = (changes[name] for name in list(modules)[:2])
    expected = {"text_encoder/encoder.layers.0.self_attn.q_proj.weight": changes[list(modules)[2]],
                "text_encoder_2/encoder.block.1.layer.0.SelfAttention.q.weight": changes[list(modules)[3]],
                "transformer/single_transformer_blocks.1.proj_mlp.weight": single[96:]}  # fmt: skip
    for i, part in enumerate("qkv"):
        rows = slice(32 * i, 32 * i + 32)
        expected[f"transformer/transformer_blocks.0.attn.add_{part}_proj.weight"] = double[rows]
        expected[f"transformer/single_transformer_blocks.1.attn.to_{part}.weight"] = single[rows]
    before, after = tensors(folder), tensors(out)
    for name, value in before.items():
        change = expected.get(name, np.zeros_like(value))
        np.testing.assert_allclose(after[name] - value, change, atol=2e-6, err_msg=name)


def test_a_folder_of_sixteen_bits_is_imported_and_exported_bit_for_bit(tmp_path):
    folder, run, out = tmp_path / "sd", tmp_path / "run", tmp_path / "out"
    tiny_systems.smallest_stable_diffusion().to(torch.float16).save_pretrained(folder, variant="fp16")
    assert (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert main(["import", f"--from={folder}", f"--workdir={run}"]) == 0
    assert main(["export", f"--workdir={run}", "--dtype=float16", f"--out={out}"]) == 0
    assert main(["export", f"--from={folder}", f"--out={tmp_path / 'own'}"]) == 0  # whose type is kept unasked
    assert "torch_dtype=torch.float16" in (tmp_path / "own" / "README.md").read_text()
    before = tensors(folder)
    for after in (tensors(out), tensors(tmp_path / "own")):
        assert before.keys() == after.keys() and len(before) > 100
        for name, value in before.items():
            assert value.dtype == after[name].dtype == np.float16 and value.tobytes() == after[name].tobytes(), name


@pytest.mark.parametrize(("words", "line"), [
    (["--single-file=no.safetensors"], "no.safetensors is not there"),
    (["--single-file=x.ckpt"], "x.ckpt is a pickle, which can run code when read; convert it to safetensors"),
    (["--lora=x.bin"], "x.bin is a pickle"),
    (["--weights=raw"], "--weights goes with --workdir=DIR"),
])  # fmt: skip
def test_what_cannot_be_written_is_one_line(sd, tmp_path, capsys, words, line):
    assert main(["export", f"--from={sd[1]}", f"--out={tmp_path / 'out'}", *words]) != 0
    printed = capsys.readouterr().err
    assert line in printed and len(printed.strip().splitlines()) == 1, printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target, kind", [("eps", "epsilon"), ("v", "v_prediction"), ("x", "sample")])
def test_what_a_run_predicts_is_what_its_exported_scheduler_says(target, kind):
    """Whatever the folder that it started from said; diffusers' scheduler takes its prediction so."""
    given = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon", "beta_schedule": "scaled_linear"}
    system = SimpleNamespace(config=SimpleNamespace(
        sampling=SimpleNamespace(schedule=given), loss=SimpleNamespace(target=target), process={"name": "ddpm"}))
    schedule = _schedule_of(system)
    assert schedule.target == target
    assert diffusers.DDIMScheduler.from_config(write_schedule(schedule)).config.prediction_type == kind
    system.config.loss.target = "flow"
    with pytest.raises(ConfigError, match="config.loss.target='flow' is nothing that diffusers' DDIMScheduler"):
        _schedule_of(system)


@pytest.mark.parametrize(("target", "process", "line"), [
    *((target, {}, f"config.loss.target='{target}' of a rectified flow") for target in ("v", "x", "eps")),
    ("flow", {"shift": 3.0}, "config.process.shift=3.0: diffusers' networks are told how much noise"),
])  # fmt: skip
def test_a_flow_that_diffusers_cannot_be_told_is_not_exported_as_another(target, process, line):
    """dx / dt of the straight path, told t, is all that FlowMatchEulerDiscreteScheduler knows."""
    config = SimpleNamespace(sampling=SimpleNamespace(schedule={"shift": 2.0}), loss=SimpleNamespace(target="flow"),
                             process={"name": "rectified_flow"})
    system = SimpleNamespace(config=config, shift=float)
    assert _schedule_of(system).shift == 2.0
    config.loss.target, config.process = target, config.process | process
    with pytest.raises(ConfigError, match=line):
        _schedule_of(system)


def test_an_autoencoders_critic_is_left_out(tmp_path):
    """Of a file whose training kept loss.* beside the network."""
    names = ("encoder.conv_in.weight", "loss.discriminator.main.0.weight", "loss.logvar")
    save([(name, np.zeros(1, np.float32)) for name in names], tmp_path, "vae")
    assert autoencoder_weights(open_weights(tmp_path)).names == ["encoder.conv_in.weight"]
