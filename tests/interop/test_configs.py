"""Configurations in and out: what is written back makes the same network, in diffusers and transformers."""

import diffusers
import pytest
import torch
import transformers

from lgm.interop import diffusers_configs as configs
from lgm.interop import text_configs
from lgm.models.autoencoder import AutoencoderConfig
from lgm.models.clip_text import PRESETS as CLIP
from lgm.models.clip_text import CLIPTextConfig
from lgm.models.unet import UNetConfig

SDXL = dict(
    sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), use_linear_projection=True,
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2, 10),
    addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
)  # fmt: skip
SD_VAE = dict(
    block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, sample_size=512,
)  # fmt: skip

DIFFUSERS = {
    "sd15": (diffusers.UNet2DConditionModel, configs.read_unet, configs.write_unet,
             dict(cross_attention_dim=768, attention_head_dim=8)),
    "sd21": (diffusers.UNet2DConditionModel, configs.read_unet, configs.write_unet,
             dict(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)),
    "sdxl": (diffusers.UNet2DConditionModel, configs.read_unet, configs.write_unet, SDXL),
    "sd vae": (diffusers.AutoencoderKL, configs.read_autoencoder, configs.write_autoencoder, SD_VAE),
    "sd3 vae": (diffusers.AutoencoderKL, configs.read_autoencoder, configs.write_autoencoder,
                dict(SD_VAE, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False,
                     scaling_factor=1.5305, shift_factor=0.0609)),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFUSERS)
def test_a_configuration_written_back_makes_the_same_network_in_diffusers(name):
    cls, read, write, options = DIFFUSERS[name]
    with torch.device("meta"):
        theirs = cls(**options)
        ours = read(dict(theirs.config))
        again = cls.from_config(write(ours))
    shapes = lambda model: {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert shapes(again) == shapes(theirs)
    assert read(dict(again.config)) == ours


TRANSFORMERS = {
    "clip_l": (transformers.CLIPTextModel, text_configs.read_clip, text_configs.write_clip,
               transformers.CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)),
    "t5": (transformers.T5EncoderModel, text_configs.read_t5, text_configs.write_t5,
           transformers.T5Config(d_model=64, d_ff=96, num_layers=2, feed_forward_proj="gated-gelu")),
    "t5 original": (transformers.T5EncoderModel, text_configs.read_t5, text_configs.write_t5,
                    transformers.T5Config(d_model=64, d_ff=96, num_layers=2, relative_attention_num_buckets=16)),
    "bert": (transformers.BertModel, text_configs.read_bert, text_configs.write_bert,
             transformers.BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_configuration_written_back_makes_the_same_network_in_transformers(name):
    cls, read, write, theirs = TRANSFORMERS[name]
    ours = read(theirs.to_dict())
    again = type(theirs).from_dict(write(ours))
    assert read(again.to_dict()) == ours
    with torch.device("meta"):
        shapes = [{k: tuple(v.shape) for k, v in cls(c).state_dict().items()} for c in (theirs, again)]
    assert shapes[0] == shapes[1]


def test_an_old_clip_configuration_pools_at_the_largest_id():
    assert text_configs.read_clip({"eos_token_id": 2}).pool == "largest"
    assert text_configs.read_clip(text_configs.write_clip(CLIPTextConfig(**CLIP["clip_l"]))).pool == 49407
    assert text_configs.write_clip(CLIPTextConfig(pool="largest"))["eos_token_id"] == 2


@pytest.mark.parametrize(
    "read, options, message",
    [
        (configs.read_unet, {"in_channels": 8}, "it is that, or 9 of an inpainting model"),
        (configs.read_unet, {"class_embed_type": "timestep"}, "class_embed_type='timestep' has no equal here"),
        (configs.read_unet, {"down_block_types": ["SimpleCrossAttnDownBlock2D"] * 4}, "SimpleCrossAttnDownBlock2D"),
        (configs.read_autoencoder, {"act_fn": "relu"}, "act_fn='relu' has no equal here; supported: 'silu'"),
        (configs.read_autoencoder, {"down_block_types": ["AttnDownEncoderBlock2D"]}, "AttnDownEncoderBlock2D"),
        (text_configs.read_clip, {"hidden_act": "relu"}, "hidden_act='relu'"),
        (text_configs.read_t5, {"feed_forward_proj": "gated-silu"}, "feed_forward_proj='gated-silu'"),
    ],
)
def test_an_option_that_has_no_equal_is_named(read, options, message):
    with pytest.raises(ValueError, match=message):
        read(options)


@pytest.mark.parametrize(
    "write, config, message",
    [
        (configs.write_autoencoder, AutoencoderConfig(patch_size=2), "no patch_size"),
        (configs.write_unet, UNetConfig(text_dim=0), "text_dim=0 cannot be exported"),
        (configs.write_unet, UNetConfig(micro_ids=2), "not pooled_dim=0 and micro_ids=2"),
        (text_configs.write_clip, CLIPTextConfig(causal=False), "causal=False cannot be exported"),
        (text_configs.write_clip, CLIPTextConfig(), "set pool to its id"),
    ],
)
def test_what_cannot_be_exported_is_one_line(write, config, message):
    with pytest.raises(ValueError, match=message):
        write(config)
