"""Every option that a class of diffusers or transformers has is obeyed, carried through export or refused."""

import inspect
import json
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
import transformers

from lgm.exporting import _carried
from lgm.interop.components import COMPONENTS, load_component, read_carried, save_component
from lgm.interop.fields import CARRIED, STORED, Fixed, Kind

SD_BLOCKS = dict(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1)
SMALL = {
    "UNet2DConditionModel": dict(
        **SD_BLOCKS, sample_size=8, cross_attention_dim=16, attention_head_dim=2, transformer_layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
    "AutoencoderKL": dict(**SD_BLOCKS, down_block_types=("DownEncoderBlock2D",) * 2,
                          up_block_types=("UpDecoderBlock2D",) * 2),
    "SD3Transformer2DModel": dict(sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=2,
                                  caption_projection_dim=16, joint_attention_dim=16, pooled_projection_dim=16,
                                  pos_embed_max_size=8),
    "FluxTransformer2DModel": dict(num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
                                   joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6)),
    "DiTTransformer2DModel": dict(num_layers=1, attention_head_dim=8, num_attention_heads=2, sample_size=8,
                                  num_embeds_ada_norm=5),
    "CLIPTextModel": dict(vocab_size=50, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
                          num_attention_heads=2, max_position_embeddings=12, eos_token_id=49),
    "T5EncoderModel": dict(vocab_size=50, d_model=16, d_kv=8, d_ff=20, num_layers=2, num_heads=2,
                           feed_forward_proj="gated-gelu"),
    "BertModel": dict(vocab_size=50, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
                      num_attention_heads=2, max_position_embeddings=12),
}  # fmt: skip
SMALL["CLIPTextModelWithProjection"] = SMALL["CLIPTextModel"] | dict(projection_dim=16)
CONFIGS = {"CLIPTextModel": transformers.CLIPTextConfig, "CLIPTextModelWithProjection": transformers.CLIPTextConfig,
           "T5EncoderModel": transformers.T5Config, "BertModel": transformers.BertConfig}  # fmt: skip
# what is tried in the place of a value, by its type, and for what must be told by name
NAMED = {
    "hidden_act": ["gelu", "relu"], "act_fn": ["relu", "gelu"], "feed_forward_proj": ["relu", "gated-silu"],
    "dense_act_fn": ["relu"], "qk_norm": ["rms_norm"], "time_embedding_type": ["fourier"], "attention_type": ["gated"],
    "latents_mean": [[0.1, 0.2, 0.3, 0.4]], "latents_std": [[1.0, 2.0, 3.0, 4.0]], "shift_factor": [0.5],
    "resnet_time_scale_shift": ["scale_shift"], "activation_fn": ["gelu"], "norm_type": ["ada_norm"],
    "dual_attention_layers": [[0]], "mid_block_type": ["UNetMidBlock2D", None], "time_embedding_dim": [16],
    "class_embed_type": ["timestep"], "addition_embed_type": ["text_time"], "position_embedding_type": ["relative_key"],
    "time_embedding_act_fn": ["silu"], "timestep_post_act": ["silu"], "encoder_hid_dim": [16], "sample_size": [16],
    "num_class_embeds": [4], "time_cond_proj_dim": [8], "cross_attention_norm": ["layer_norm"],
    "mid_block_only_cross_attention": [True], "encoder_hid_dim_type": ["text_proj"],
    "reverse_transformer_layers_per_block": [[1, 1]], "torchscript": [True],
}  # fmt: skip


def options_of(name: str) -> dict:
    """Every option of a class with its default."""
    if name in CONFIGS:
        return CONFIGS[name]().to_dict()
    cls = getattr(diffusers, name)
    return {key: option.default for key, option in inspect.signature(cls.__init__).parameters.items() if key != "self"}


CASES = [(name, key) for name in SMALL for key in options_of(name) if key not in STORED]


def others(key: str, value) -> list:
    """Values that an option might have instead."""
    if key in NAMED:
        return NAMED[key]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2, value + 1]
    if isinstance(value, float):
        return [value + 0.25]
    return ["another", 3]


@pytest.mark.parametrize("name", SMALL)
def test_every_option_of_a_class_stands_in_its_table(name):
    known = COMPONENTS[name].table
    missing = [key for key in options_of(name) if key not in known and key not in STORED]
    assert not missing


@pytest.mark.parametrize(("name", "key"), CASES)
def test_an_option_is_read_carried_or_refused(name, key, tmp_path):
    options = {**options_of(name), **SMALL[name]}
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items() if k not in STORED}
    kind, meaning = COMPONENTS[name], COMPONENTS[name].table[key]
    if name == "T5EncoderModel":
        options |= {"dense_act_fn": "gelu_new", "is_gated_act": True}
    ours = kind.read(options)
    for value in others(key, options[key]):
        changed = options | {key: value}
        if isinstance(meaning, Fixed):
            if value not in meaning.allowed:
                with pytest.raises(ValueError, match=key):
                    kind.read(changed)
            continue
        if meaning is CARRIED:
            assert kind.read(changed) == ours
            (tmp_path / "config.json").write_text(json.dumps(changed))
            assert read_carried(tmp_path, name)[key] == value
            continue
        assert isinstance(meaning, Kind)
        try:
            found = kind.read(changed)
        except ValueError:
            continue
        assert found != ours or (name, key) in WITHOUT_EFFECT


# read to be held against another option, or of a part that is not there
WITHOUT_EFFECT = {
    ("UNet2DConditionModel", "projection_class_embeddings_input_dim"),
    ("UNet2DConditionModel", "addition_time_embed_dim"),
    ("UNet2DConditionModel", "sample_size"),  # which the pipeline reads
    ("CLIPTextModel", "projection_dim"),
    *((name, "model_type") for name in CONFIGS),
}


def their_model(name: str, **changes):
    options = SMALL[name] | changes
    cls = getattr(transformers if name in CONFIGS else diffusers, name)
    torch.manual_seed(0)
    model = cls(CONFIGS[name](**options)) if name in CONFIGS else cls(**options)
    return model.eval()


def their_output(name: str, model) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    normal = lambda *shape: torch.randn(shape, generator=generator)
    ids = torch.tensor([[3, 4, 5, 49, 1, 1]])
    time = torch.tensor([500.0])
    with torch.no_grad():
        if name in CONFIGS:
            out = model(input_ids=ids)[0]
        elif name == "UNet2DConditionModel":
            out = model(normal(1, 4, 8, 8), time, normal(1, 3, 16)).sample
        elif name == "AutoencoderKL":
            out = model.decode(model.encode(normal(1, 3, 8, 8)).latent_dist.mean).sample
        elif name == "SD3Transformer2DModel":
            out = model(normal(1, 16, 8, 8), normal(1, 3, 16), normal(1, 16), time).sample
        elif name == "FluxTransformer2DModel":
            out = model(normal(1, 4, 64), normal(1, 3, 16), normal(1, 16), time / 1000, torch.zeros(4, 3),
                        torch.zeros(3, 3)).sample
        else:
            out = model(normal(1, 4, 8, 8), time, torch.tensor([1])).sample
    return out.numpy()


@pytest.mark.parametrize("name", SMALL)
def test_what_is_carried_changes_no_result_of_theirs(name):
    table, options, base = COMPONENTS[name].table, options_of(name), their_model(name)
    weights, want = base.state_dict(), their_output(name, base)
    tried = 0
    for key in options:
        if table.get(key, CARRIED) is not CARRIED or key in (*STORED, "return_dict"):  # which form theirs hands out
            continue
        for value in [v for v in others(key, options[key]) if isinstance(v, type(options[key]))]:
            try:
                changed = their_model(name, **{key: value})
                changed.load_state_dict(weights)
            except Exception:  # it is no value that theirs takes
                continue
            np.testing.assert_allclose(their_output(name, changed), want, 1e-4, 1e-6, err_msg=f"{key}={value}")
            tried += 1
    assert tried >= {"SD3Transformer2DModel": 0, "FluxTransformer2DModel": 0}.get(name, 1)


def test_what_a_vae_says_of_its_arithmetic_survives(tmp_path):
    """SDXL's autoencoder overflows in float16 and says so; one that was made not to says so too."""
    for upcast in (True, False):
        their_model("AutoencoderKL", force_upcast=upcast).save_pretrained(tmp_path / f"{upcast}")
        model, params = load_component(tmp_path / f"{upcast}", "AutoencoderKL")
        options = read_carried(tmp_path / f"{upcast}", "AutoencoderKL")
        save_component(tmp_path / f"out{upcast}", "AutoencoderKL", model.config, params, np.float16, options)
        assert diffusers.AutoencoderKL.from_pretrained(tmp_path / f"out{upcast}").config.force_upcast is upcast


def test_a_run_is_exported_with_what_its_networks_own_folders_say(tmp_path):
    """Whatever the folder of its text says of another autoencoder and another denoiser."""
    for place, name in (("vae", "AutoencoderKL"), ("unet", "UNet2DConditionModel")):
        their_model(name).save_config(tmp_path / place)
        options = json.loads((tmp_path / place / "config.json").read_text())
        options |= {"force_upcast": False} if place == "vae" else {"upcast_attention": True}
        (tmp_path / place / "config.json").write_text(json.dumps(options))
    theirs = SimpleNamespace(
        carried={"vae": {"force_upcast": True}, "unet": {"upcast_attention": False},
                 "text_encoder": {"use_cache": True}},
        classes={"vae": "AutoencoderKL", "unet": "UNet2DConditionModel"}, system=SimpleNamespace(denoiser="unet"),
    )  # fmt: skip
    carried = _carried(SimpleNamespace(autoencoder=str(tmp_path / "vae"), init_from=str(tmp_path)), theirs)
    assert carried["vae"]["force_upcast"] is False and carried["unet"]["upcast_attention"] is True
    assert carried["text_encoder"] == {"use_cache": True}
    carried = _carried(SimpleNamespace(autoencoder="emoji64", init_from=None), theirs)
    assert carried["vae"] == {} and carried["unet"] == {"upcast_attention": False}


@pytest.mark.parametrize(("dtype", "value", "line"), [
    (np.float16, 1e5, "holds 100000, which float16 cannot; bfloat16 or float32 would do"),
    (np.float16, np.inf, "holds values that are not finite"),
    (None, np.nan, "holds values that are not finite"),
])  # fmt: skip
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, dtype, value, line):
    their_model("BertModel").save_pretrained(tmp_path / "bert")
    model, params = load_component(tmp_path / "bert", "BertModel")
    params["blocks"]["fc1"]["kernel"][1, 2, 3] = value
    with pytest.raises(ValueError, match=r"tensor 'encoder.layer.1.intermediate.dense.weight' " + line):
        save_component(tmp_path / "out", "BertModel", model.config, params, dtype)
    assert not list((tmp_path / "out").iterdir())


def test_t5_keeps_its_last_products_wide_in_float16(tmp_path):
    """As transformers, which keeps `wo` in float32 where the rest is float16."""
    from safetensors.numpy import load_file

    their_model("T5EncoderModel").save_pretrained(tmp_path / "t5")
    model, params = load_component(tmp_path / "t5", "T5EncoderModel")
    save_component(tmp_path / "out", "T5EncoderModel", model.config, params, np.float16)
    theirs = transformers.T5EncoderModel.from_pretrained(tmp_path / "t5", dtype=torch.float16)
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert str(theirs.state_dict()[name].dtype).removeprefix("torch.") == tensor.dtype, name
