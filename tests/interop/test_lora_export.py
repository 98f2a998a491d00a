"""LoRA files written here, in diffusers' names and in kohya's, loaded and fused by diffusers."""

import jax
import numpy as np
import pytest
import tiny_systems
import torch

from lgm.interop.components import component, load_component
from lgm.interop.keymap import to_theirs
from lgm.interop.lora_export import STEM, Naming, pairs_of, save_lora
from lgm.interop.lora_files import merge, read_lora
from lgm.interop.single_file import original_of
from lgm.interop.tensor_files import open_weights, save
from lgm.models.lora import LoRAConfig, init, merged

SYSTEMS = {"sd": ("unet", tiny_systems.stable_diffusion), "xl": ("unet", tiny_systems.stable_diffusion_xl),
           "flux": ("transformer", tiny_systems.flux), "sd3": ("transformer", tiny_systems.stable_diffusion_3)}
CONFIG = LoRAConfig(rank=3, alpha=6.0, targets=(r"/(qkv|q|kv|out|fc1|proj_in|proj_out|in)/kernel$",))


def write(folder, place, name, model, changes, config, form, original=None):
    """A LoRA file of one network's adapter, by the names of the `original` layout where one is given."""
    prefix = {"diffusers": f"{place}.", "kohya": "lora_unet_", "comfy": "diffusion_model."}[form]
    pairs = pairs_of(component(name).rules(model.config), changes, config)
    save_lora(folder, {place: (Naming(prefix, original), pairs)}, form)


def adapter_of(model, config):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: init(model, config, key), jax.random.key(0))
    return jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), shapes)


@pytest.mark.parametrize("form", ["diffusers", "kohya", "comfy"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_what_diffusers_fuses_is_what_is_merged_here(tmp_path, system, form):
    place, make = SYSTEMS[system]
    theirs = make()
    network = getattr(theirs, place)
    network.save_pretrained(tmp_path / place)
    name = type(network).__name__
    model, params = load_component(tmp_path / place, name)
    config, rules = CONFIG, component(name).rules(model.config)
    changes = adapter_of(model, config)
    original = None if (system, form) == ("sd", "kohya") else original_of(place, name, model.config)
    write(tmp_path, place, name, model, changes, config, form, original)
    ours = to_theirs(rules, merged(params, changes, config))
    before = {key: tensor.numpy().copy() for key, tensor in network.state_dict().items()}
    changed = [key for key in ours if not np.array_equal(ours[key], before[key])]
    assert len(changed) > 8
    lora = read_lora(tmp_path / f"{STEM}.safetensors")
    again, used = merge(open_weights(tmp_path / place), [lora], place, original_of(place, name, model.config))
    assert len(used) == len(lora.updates)
    for key, value in ours.items():  # sums of three products of numbers about 1
        np.testing.assert_allclose(again.get(key), value, atol=1e-5, err_msg=key)
    if form == "comfy" or (system, form) in (("sd3", "kohya"), ("flux", "kohya")):
        return  # what diffusers does not read, or of Flux at the released widths alone
    theirs.load_lora_weights(tmp_path)
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    for key, value in ours.items():
        np.testing.assert_allclose(network.state_dict()[key].numpy(), value, atol=1e-5, err_msg=key)


def test_kohyas_names_are_its_scripts(tmp_path):
    """As sd-scripts names them: diffusers' modules in Stable Diffusion 1, the original's in XL, Flux and SD3, fused."""
    wanted = {"sd": "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
              "xl": "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q",
              "flux": "lora_unet_double_blocks_0_img_attn_qkv",
              "sd3": "lora_unet_joint_blocks_0_x_block_attn_qkv"}  # fmt: skip
    for system, (place, make) in SYSTEMS.items():
        network = getattr(make(), place)
        network.save_pretrained(tmp_path / system)
        name = type(network).__name__
        model, _ = load_component(tmp_path / system, name)
        original = None if system == "sd" else original_of(place, name, model.config)
        write(tmp_path, place, name, model, adapter_of(model, CONFIG), CONFIG, "kohya", original)
        weights = open_weights(tmp_path / f"{STEM}.safetensors")
        module = wanted[system]
        down, up = weights.shape(f"{module}.lora_down.weight"), weights.shape(f"{module}.lora_up.weight")
        width = down[1]
        assert down == (3, width) and up == (width if "to_q" in module else 3 * width, 3)
        assert weights.get(f"{module}.alpha") == 6.0


def test_values_that_are_not_finite_are_not_written(tmp_path):
    network = tiny_systems.flux().transformer
    network.save_pretrained(tmp_path / "flux")
    model, _ = load_component(tmp_path / "flux", "FluxTransformer2DModel")
    adapter = adapter_of(model, CONFIG)
    next(iter(adapter.values()))["up"][...] = np.nan
    for form in ("diffusers", "kohya"):
        with pytest.raises(ValueError, match="tensor '.*' holds values that are not finite; it is not written"):
            write(tmp_path / "out", "transformer", "FluxTransformer2DModel", model, adapter, CONFIG, form)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module", ["text_encoder_3.shared", "text_encoder_3.encoder.embed_tokens"])
def test_a_table_of_tokens_is_changed_under_either_of_its_names(tmp_path, module):
    """By a whole difference, and as peft changes a table: rows by lora_embedding_A, columns by lora_embedding_B."""
    encoder = tiny_systems.t5(64)
    encoder.save_pretrained(tmp_path / "t5")
    table = encoder.shared.weight.detach().numpy().copy()
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 32), np.float32), rng.standard_normal((64, 2), np.float32)
    for parts, change in (({"diff": a.T @ b.T}, a.T @ b.T), ({"lora_embedding_A": a, "lora_embedding_B": b,
                                                             "alpha": np.full((), 3, np.float32)}, 1.5 * (b @ a).T)):
        save([(f"{module}.{name}", value) for name, value in parts.items()], tmp_path, "lora")
        lora = read_lora(tmp_path / "lora.safetensors")
        adapt = lambda weights, lora=lora: merge(weights, [lora], "text_encoder_3")[0]
        _, params = load_component(tmp_path / "t5", "T5EncoderModel", adapt=adapt)
        np.testing.assert_allclose(params["tokens"]["table"], table + change, atol=1e-5)


def test_peft_changes_a_table_so(tmp_path):
    import peft

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = torch.nn.Embedding(7, 5)

    base = Network()
    plain = base.tokens.weight.detach().numpy().copy()
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=3, target_modules=["tokens"]))
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape))
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    expected = adapted.merge_and_unload().tokens.weight.detach().numpy()
    save([("tokens.weight", plain)], tmp_path, "base")
    lora = read_lora(tmp_path / "adapter_model.safetensors")
    ours, used = merge(open_weights(tmp_path / "base.safetensors"), [lora], "unet")
    assert len(used) == 1
    np.testing.assert_allclose(ours.get("tokens.weight"), expected, atol=1e-5)


def test_dora_of_a_table_brings_its_columns_to_their_lengths(tmp_path):
    """As peft has it, whose magnitudes of a table are of the features, not of the words; 5 of both here."""
    rng = np.random.default_rng(0)
    new = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    table, a, b, lengths = new(5, 5), new(2, 5), new(5, 2), new(5)
    save([("tokens.weight", table)], tmp_path, "base")
    save([("unet.tokens.lora_embedding_A", a), ("unet.tokens.lora_embedding_B", b),
          ("unet.tokens.lora_magnitude_vector", lengths)], tmp_path, "lora")  # fmt: skip
    changed, _ = merge(open_weights(tmp_path / "base.safetensors"), [read_lora(tmp_path / "lora.safetensors")], "unet")
    whole = table + (b @ a).T
    np.testing.assert_allclose(changed.get("tokens.weight"), whole * lengths / np.linalg.norm(whole, axis=0), atol=1e-5)
