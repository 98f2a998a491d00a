"""Every kind of low-rank change and every way its scale is given, against peft's own merge; who is named twice."""

import json

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from diffusers.loaders import lora_conversion_utils

from lgm.interop import original_names
from lgm.interop.lora_files import merge, read_lora
from lgm.interop.tensor_files import open_weights, save

TOLERANCE = 1e-5  # float32 sums of fewer than a hundred products of normal numbers, in another order


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = torch.nn.ModuleDict({part: torch.nn.Linear(12, 8) for part in ("to_q", "to_k")})
        self.conv = torch.nn.Conv2d(4, 6, 3)


def randomly(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("config", [
    peft.LoraConfig(r=4, lora_alpha=6),
    peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True),
    peft.LoraConfig(r=4, lora_alpha=6, rank_pattern={"to_k": 2}, alpha_pattern={"attn.to_q": 3, "conv": 5}),
    peft.LoraConfig(r=4, lora_alpha=6, rank_pattern={"to_k": 3}, alpha_pattern={"to_[kv]": 3}, use_rslora=True),
    peft.LoraConfig(r=4, lora_alpha=6, use_dora=True),
    peft.LoraConfig(r=4, lora_alpha=6, lora_bias=True),
    peft.LoHaConfig(r=3, alpha=5),
    peft.LoHaConfig(r=3, alpha=5, use_effective_conv2d=True, rank_pattern={"conv": 2}),
    peft.LoKrConfig(r=2, alpha=5),
    peft.LoKrConfig(r=2, alpha=5, decompose_both=True, use_effective_conv2d=True, decompose_factor=2),
    peft.LoKrConfig(r=20, alpha=5),
], ids=["lora", "rslora", "patterns", "patterns-rslora", "dora", "bias", "loha", "loha-tucker", "lokr", "lokr-tucker",
        "lokr-whole"])  # fmt: skip
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_folder_of_peft_is_merged_as_peft_merges_it(tmp_path, config, strength):
    torch.manual_seed(0)
    base = Network()
    config.target_modules = {"to_q", "to_k", "conv"}
    config.init_weights = config.init_lora_weights = False
    plain = {name: value.detach().clone() for name, value in base.state_dict().items()}
    adapted = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape) * 0.5 + (1 if "magnitude" in name else 0))
    adapted.save_pretrained(tmp_path)
    for module in adapted.modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            if hasattr(module, "scale_layer"):
                module.scale_layer(strength)
    merged = adapted.merge_and_unload().state_dict()
    save([(name, value.numpy()) for name, value in plain.items()], tmp_path, "base")
    lora = read_lora(tmp_path / "adapter_model.safetensors", strength)
    ours, used = merge(open_weights(tmp_path / "base.safetensors"), [lora], "unet")
    assert len(used) == 3
    for name, value in merged.items():
        np.testing.assert_allclose(ours.get(name), value.numpy(), atol=TOLERANCE, err_msg=name)
        assert name.endswith("bias") or not np.allclose(value, plain[name], atol=0.05)


def test_the_metadata_of_diffusers_scales_with_rank_and_alpha_patterns(tmp_path):
    """alpha of a pattern is divided by the root of the rank too, as peft divides it."""
    down, up = randomly(2, 12), randomly(8, 2)
    table = {"unet.r": 4, "unet.lora_alpha": 6, "unet.use_rslora": True, "unet.rank_pattern": {"attn.to_q": 2},
             "unet.alpha_pattern": {"to_q": 3}}  # fmt: skip
    file = tmp_path / "lora.safetensors"
    tensors = {"unet.attn.to_q.lora_A.weight": torch.tensor(down), "unet.attn.to_q.lora_B.weight": torch.tensor(up)}
    safetensors.torch.save_file(tensors, file, {"lora_adapter_metadata": json.dumps(table)})
    assert read_lora(file).updates["unet.attn.to_q"].scale == pytest.approx(3 / 2**0.5, rel=1e-12)
    for bad, message in (({"unet.r": 4}, "of rank 2, but .* says r=4"), ([], "no JSON object"),
                         ({"unet.lora_alpha": "x"}, "alpha='x' .* no finite number"),
                         ({"unet.alpha_pattern": {"(a+)+": 1}}, "too involved")):  # fmt: skip
        safetensors.torch.save_file(tensors, file, {"lora_adapter_metadata": json.dumps(bad)})
        with pytest.raises(ValueError, match=message):
            read_lora(file)
    metadata = {"ss_network_dim": "2", "ss_network_alpha": "1"}
    safetensors.torch.save_file({k.replace("unet.", "lora_unet_"): v for k, v in tensors.items()}, file, metadata)
    with pytest.raises(ValueError, match="no alpha, though ss_network_alpha"):
        read_lora(file)


def merged(tmp_path, base, lora, place, original=None):
    save(base.items(), tmp_path, "base")
    save(lora.items(), tmp_path, "lora")
    file = read_lora(tmp_path / "lora.safetensors")
    weights, used = merge(open_weights(tmp_path / "base.safetensors"), [file], place, original)
    assert len(used) == len(file.updates)
    return weights


@pytest.mark.parametrize("style", ["lora_te2_text_projection.lora_{}.weight",
                                   "text_encoder_2.text_projection.lora_{}.weight"])  # fmt: skip
@pytest.mark.parametrize("layout", [original_names.open_clip_text, original_names.same])
def test_a_projection_with_two_names_is_changed_once(tmp_path, style, layout):
    weight, down, up = randomly(5, 7), randomly(2, 7), randomly(5, 2)
    a, b = ("down", "up") if "te2_" in style else ("A", "B")
    module = style.split(".lora_")[0]
    lora = {style.format(a): down, style.format(b): up, f"{module}.alpha": np.float32(3).reshape(())}
    changed = merged(tmp_path, {"text_projection.weight": weight}, lora, "text_encoder_2", layout(None))
    np.testing.assert_allclose(changed.get("text_projection.weight"), weight + 1.5 * up @ down, atol=TOLERANCE)


def test_one_weight_under_two_spellings_is_refused(tmp_path):
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = lambda module: {f"{module}.lora_A.weight": randomly(2, 12), f"{module}.lora_B.weight": randomly(8, 2)}
    for other in (f"diffusion_model.{name}", f"lora_unet_{name.replace('.', '_')}",
                  f"unet.{name.replace('to_q', 'processor.to_q_lora')}", f"base_model.model.{name}"):  # fmt: skip
        with pytest.raises(ValueError, match="changes '.*to_q.weight' twice"):
            merged(tmp_path, {f"{name}.weight": randomly(8, 12)}, pair(f"unet.{name}") | pair(other), "unet")
    qkv = {f"transformer_blocks.0.attn.to_{p}.weight": randomly(4, 5) for p in "qkv"}
    fused = {"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": randomly(2, 5),
             "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight": randomly(12, 2),
             "transformer.transformer_blocks.0.attn.to_k.lora_A.weight": randomly(2, 5),
             "transformer.transformer_blocks.0.attn.to_k.lora_B.weight": randomly(4, 2)}  # fmt: skip
    with pytest.raises(ValueError, match="to_k.weight' twice"):
        merged(tmp_path, qkv, fused, "transformer", original_names.flux(None))


@pytest.mark.parametrize(("place", "weight", "module"), [
    ("unet", "mid.attn1.to_q.weight", "lycoris_mid_attn1_to_q"),  # LyCORIS' own prefix, as SimpleTuner writes it
    ("transformer", "transformer_blocks.0.attn.to_out.0.weight", "lycoris_transformer_blocks_0_attn_to_out_0"),
    ("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj.weight",
     "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora"),  # diffusers before peft (DIFFUSERS_OLD_TO_PEFT)
    ("text_encoder", "text_model.encoder.layers.0.self_attn.out_proj.weight",
     "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora"),
])  # fmt: skip
def test_further_spellings_of_a_weight(tmp_path, place, weight, module):
    base, down, up = randomly(6, 5), randomly(2, 5), randomly(6, 2)
    a, b = ("lora_down", "lora_up") if module.startswith("lycoris") else ("down", "up")
    found = merged(tmp_path, {weight: base}, {f"{module}.{a}.weight": down, f"{module}.{b}.weight": up}, place)
    np.testing.assert_allclose(found.get(weight), base + up @ down, atol=TOLERANCE)


@pytest.mark.parametrize("start", ["olora", "pissa"])
def test_a_lora_of_base_weights_that_peft_has_changed_is_refused(tmp_path, start):
    """peft takes the adapter's first value from the base, so that W + scale B A is not what it computes with."""
    torch.manual_seed(0)
    base = Network()
    plain = base.attn["to_q"].weight.detach().clone()
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules={"to_q"}, init_lora_weights=start)
    adapted = peft.get_peft_model(base, config)
    assert not torch.allclose(adapted.base_model.model.attn["to_q"].base_layer.weight, plain, atol=1e-2)
    adapted.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"init_lora_weights='{start}' is a LoRA of base weights that it has changed"):
        read_lora(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "mine.safetensors")  # whose names are peft's
    with pytest.raises(ValueError, match="init_lora_weights"):
        read_lora(tmp_path / "mine.safetensors")


class SD3:
    depth = 2


@pytest.mark.parametrize(("module", "name", "layout", "swapped"), [
    ("lora_unet_joint_blocks_1_context_block_adaLN_modulation_1", "transformer_blocks.1.norm1_context.linear",
     original_names.sd3(SD3), True),
    ("lora_unet_joint_blocks_0_context_block_adaLN_modulation_1", "transformer_blocks.0.norm1_context.linear",
     original_names.sd3(SD3), False),
    ("lora_unet_final_layer_adaLN_modulation_1", "norm_out.linear", original_names.sd3(SD3), True),
    ("lora_unet_final_layer_adaLN_modulation_1", "norm_out.linear", original_names.flux(None), True),
    ("transformer.final_layer.adaLN_modulation.1", "norm_out.linear", original_names.flux(None), True),
])  # fmt: skip
def test_the_last_modulation_has_its_halves_exchanged(tmp_path, module, name, layout, swapped):
    weight, bias, down, up, change = (randomly(8, 5), randomly(8), randomly(2, 5), randomly(8, 2), randomly(8, seed=1))
    lora = {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up, f"{module}.diff_b": change}
    base = {f"{name}.weight": weight, f"{name}.bias": bias}
    changed = merged(tmp_path, base, lora, "transformer", layout)
    theirs = lambda x: lora_conversion_utils.swap_scale_shift(torch.tensor(x)).numpy() if swapped else x
    np.testing.assert_allclose(changed.get(f"{name}.weight"), weight + theirs(up) @ down, atol=TOLERANCE)
    np.testing.assert_allclose(changed.get(f"{name}.bias"), bias + theirs(change), atol=TOLERANCE)


def test_xlabs_names_are_those_that_diffusers_reads(tmp_path):
    width = 6
    double = {f"transformer_blocks.0.attn.{part}.weight": randomly(width, width, seed=i) for i, part in enumerate(
        ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"])}  # fmt: skip
    single = {f"single_transformer_blocks.0.attn.to_{p}.weight": randomly(width, width, seed=ord(p)) for p in "qkv"}
    single["single_transformer_blocks.0.proj_out.weight"] = randomly(width, 5 * width)
    lora = {}
    for module, outputs, inputs in [("double_blocks.0.processor.qkv_lora1", 3, 1),
                                    ("double_blocks.0.processor.qkv_lora2", 3, 1),
                                    ("double_blocks.0.processor.proj_lora1", 1, 1),
                                    ("double_blocks.0.processor.proj_lora2", 1, 1),
                                    ("single_blocks.0.processor.qkv_lora", 3, 1),
                                    ("single_blocks.0.processor.proj_lora", 1, 5)]:  # fmt: skip
        lora[f"{module}.down.weight"] = randomly(2, inputs * width, seed=len(lora))
        lora[f"{module}.up.weight"] = randomly(outputs * width, 2, seed=len(lora))
    base = double | single
    changed = merged(tmp_path, base, lora, "transformer", original_names.flux(None))
    theirs = lora_conversion_utils._convert_xlabs_flux_lora_to_diffusers({k: torch.tensor(v) for k, v in lora.items()})
    assert len(theirs) == 2 * len(base)
    for name, weight in base.items():
        a, b = (theirs[f"transformer.{name.removesuffix('.weight')}.lora_{part}.weight"].numpy() for part in "AB")
        np.testing.assert_allclose(changed.get(name), weight + b @ a, atol=TOLERANCE, err_msg=name)


def test_kohyas_other_kinds_follow_their_formulas(tmp_path):
    """lora_mid, Tucker's LoHa, LoKr with its alpha, dora_scale of rows and of columns, and plain differences."""
    rng = np.random.default_rng(0)
    new = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    conv, matrix = new(6, 4, 3, 3), new(6, 4)
    alpha = np.float32(3).reshape(())

    def changed(weight, parts):
        lora = {f"lora_unet_x_y.{name}": value for name, value in parts.items()}
        return merged(tmp_path, {"x.y.weight": weight}, lora, "unet").get("x.y.weight")

    down, up, mid = new(2, 4, 1, 1), new(6, 2, 1, 1), new(2, 2, 3, 3)
    want = conv + 1.5 * np.einsum("om,mnkl,ni->oikl", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    parts = {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": mid, "alpha": alpha}
    np.testing.assert_allclose(changed(conv, parts), want, atol=TOLERANCE)

    one, two = (new(2, 6), new(2, 4), new(2, 2, 3, 3)), (new(2, 6), new(2, 4), new(2, 2, 3, 3))
    tucker = lambda a, b, t: np.einsum("ijkl,ip,jr->prkl", t, a, b)
    parts = {"alpha": alpha} | {f"hada_w{i}_{part}": x for i, three in enumerate((one, two), 1)
                                for part, x in zip("ab", three, strict=False)}  # fmt: skip
    parts |= {"hada_t1": one[2], "hada_t2": two[2]}
    np.testing.assert_allclose(changed(conv, parts), conv + 1.5 * tucker(*one) * tucker(*two), atol=3 * TOLERANCE)

    w1, a, b = new(2, 2), new(3, 2), new(2, 2)
    parts = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": alpha}
    np.testing.assert_allclose(changed(matrix, parts), matrix + 1.5 * np.kron(w1, a @ b), atol=TOLERANCE)
    parts = {"lokr_w1": w1, "lokr_w2": new(3, 2), "alpha": np.float32(1e10).reshape(())}  # which lycoris writes, unused
    np.testing.assert_allclose(changed(matrix, parts), matrix + np.kron(w1, parts["lokr_w2"]), atol=TOLERANCE)

    down, up = new(2, 4), new(6, 2)
    whole = matrix + 1.5 * up @ down
    for axis, scale in ((1, new(6, 1)), (0, new(1, 4))):
        parts = {"lora_up.weight": up, "lora_down.weight": down, "alpha": alpha, "dora_scale": scale}
        want = whole * scale / np.linalg.norm(whole, axis=axis, keepdims=True)
        np.testing.assert_allclose(changed(matrix, parts), want, atol=TOLERANCE)
    np.testing.assert_allclose(changed(matrix, {"diff": up @ down}), matrix + up @ down, atol=TOLERANCE)


@pytest.mark.parametrize(("parts", "message"), [
    ({"lora_A.weight": np.zeros((0, 4)), "lora_B.weight": np.zeros((6, 0))}, "no matrix"),
    ({"lora_A.weight": np.zeros(()), "lora_B.weight": np.zeros(())}, "no matrix"),
    ({"lora_A.weight": np.full((2, 4), np.nan), "lora_B.weight": np.zeros((6, 2))}, "not finite"),
    ({"lora_A.weight": np.zeros((2, 4)), "lora_B.weight": np.zeros((6, 3))}, "rank 2 and 3"),
    ({"lora_A.weight": np.zeros((2, 4)), "lora_B.weight": np.zeros((6, 2)), "alpha": np.full((), np.inf)},
     "no finite number"),
    ({"lora_A.weight": np.zeros((2, 4)), "lora_B.weight": np.zeros((6, 2)), "alpha": np.zeros(3)}, "one number"),
    ({"hada_w1_a": np.zeros((6, 2)), "hada_w1_b": np.zeros((2, 4))}, "make no LoRA"),
    ({"lokr_w1": np.zeros((2, 2)), "lokr_w2_a": np.zeros((2, 2))}, "make no LoRA"),
    ({"alpha": np.zeros(())}, "without the matrices"),
    ({"lora_A.weight": np.zeros((2, 4)), "lora_down.weight": np.zeros((2, 4))}, "under another name too"),
    ({"lora_A.weight": np.zeros((2, 4)), "lora_B.weight": np.zeros((6, 2)), "other": np.zeros(1)}, "no part of a LoRA"),
])  # fmt: skip
def test_what_makes_no_update_is_one_line(tmp_path, parts, message):
    save([(f"unet.x.{name}", value.astype(np.float32)) for name, value in parts.items()], tmp_path, "lora")
    with pytest.raises(ValueError, match=message) as error:
        read_lora(tmp_path)
    assert "\n" not in str(error.value) and "lora.safetensors" in str(error.value)
