"""Tiny diffusers pipelines with random weights, one of each system, for tests to save, load and sample."""

import diffusers
import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import pre_tokenizers

from lgm.drawing import text_to_image

TOKENS = 24  # of every text encoder
PROMPTS = ["a cat!", "Two dogs, in the rain"]
SIZE, STEPS, GUIDANCE, T5_TOKENS = (16, 16), 4, 3.0, 12
SD_BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


def clip_tokenizer(pad="<|endoftext|>"):
    """Every byte is a token, alone and at the end of a word."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = bytes_ + [f"{b}</w>" for b in bytes_] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad, model_max_length=TOKENS)


def t5_tokenizer():
    letters = [chr(c) for c in range(97, 123)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)] + [(c, -3.0) for c in letters]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def clip(projection=None, activation="quick_gelu", width=32):
    """A text encoder, and with a projection one that has it."""
    cls = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    config = transformers.CLIPTextConfig(
        vocab_size=514, hidden_size=width, intermediate_size=37, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=TOKENS, hidden_act=activation, projection_dim=projection or width,
        bos_token_id=512, eos_token_id=513, pad_token_id=1,
    )  # fmt: skip
    return randomized(cls(config), 0.2)


def t5(width=32):
    config = transformers.T5Config(
        vocab_size=32, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return randomized(transformers.T5EncoderModel(config), 0.15)


def vae(latent_channels=4, quant=True, scale=0.18215, shift=None):
    return randomized(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=4,
            latent_channels=latent_channels, scaling_factor=scale, shift_factor=shift, use_quant_conv=quant,
            use_post_quant_conv=quant,
        ),
        0.1,
    )  # fmt: skip


def randomized(model, scale):
    """Weights large enough that every part shows in the picture, small enough that float32 errors stay small."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * scale + (p if p.ndim == 1 else 0))
    return model.eval()


def stable_diffusion(scheduler=None):
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, cross_attention_dim=32, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
    )  # fmt: skip
    scheduler = scheduler or diffusers.DDIMScheduler(
        **SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    return diffusers.StableDiffusionPipeline(
        unet=randomized(unet, 0.1), scheduler=scheduler, vae=vae(), text_encoder=clip(), tokenizer=clip_tokenizer(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def smallest_stable_diffusion():
    """One level, for tests that train it."""
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8,), layers_per_block=1, sample_size=8, cross_attention_dim=32, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), norm_num_groups=4,
    )  # fmt: skip
    parts = stable_diffusion().components | {"unet": randomized(unet, 0.1)}
    return diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)


def stable_diffusion_xl():
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, cross_attention_dim=64,
        attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=72,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        unet=randomized(unet, 0.1), vae=vae(scale=0.13025), text_encoder=clip(), tokenizer=clip_tokenizer(),
        text_encoder_2=clip(24, "gelu"), tokenizer_2=clip_tokenizer("!"),
        scheduler=diffusers.EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading"),
    )  # fmt: skip


def stable_diffusion_3(with_t5=True, num_layers=2, **options):
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=num_layers, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=48, out_channels=16,
        pos_embed_max_size=12, **options,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=randomized(transformer, 0.1), vae=vae(16, False, 1.5305, 0.0609),
        text_encoder=clip(24), tokenizer=clip_tokenizer(), text_encoder_2=clip(24, "gelu"),
        tokenizer_2=clip_tokenizer("!"), text_encoder_3=t5(64) if with_t5 else None,
        tokenizer_3=t5_tokenizer() if with_t5 else None, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux(guidance=True):
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=guidance, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    dynamic = dict(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15) if guidance else dict(shift=1.0)
    return diffusers.FluxPipeline(
        transformer=randomized(transformer, 0.1), vae=vae(16, False, 0.3611, 0.1159), text_encoder=clip(),
        tokenizer=clip_tokenizer(), text_encoder_2=t5(), tokenizer_2=t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**dynamic),
    )  # fmt: skip


def chat_tokenizer():
    """Every byte is a token, and the marks of a conversation are, as Qwen's tokenizers have them."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = transformers.Qwen2Tokenizer(vocab={b: i for i, b in enumerate(bytes_)}, merges=[])
    marks = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}")  # fmt: skip
    return tokenizer


LANGUAGE = dict(vocab_size=264, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2)  # fmt: skip


def z_image(**scheduler):
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32,
        axes_dims=[4, 6, 6], axes_lens=[576, 32, 32],
    )  # fmt: skip
    encoder = transformers.Qwen3Model(transformers.Qwen3Config(**LANGUAGE, head_dim=8))
    return diffusers.ZImagePipeline(
        transformer=randomized(transformer, 0.1), vae=vae(16, False, 0.3611, 0.1159),
        text_encoder=randomized(encoder, 0.2), tokenizer=chat_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**(scheduler or dict(shift=3.0))),
    )  # fmt: skip


def qwen_image():
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=64, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 2], num_res_blocks=1,
                                                   temperal_downsample=[True])  # fmt: skip
    text = LANGUAGE | dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]})
    eye = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32,
               fullatt_block_indexes=[0])  # fmt: skip
    encoder = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=eye))  # fmt: skip
    return diffusers.QwenImagePipeline(
        transformer=randomized(transformer, 0.1), vae=randomized(autoencoder, 0.3),
        text_encoder=randomized(encoder, 0.2), tokenizer=chat_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9,
                                                            max_image_seq_len=8192, shift_terminal=0.02),
    )  # fmt: skip


# so many layers that their time would show
DEEP = dict(vocab_size=272, hidden_size=16, intermediate_size=24, num_attention_heads=1, num_key_value_heads=1,
            head_dim=8)  # fmt: skip


def flux2_parts(guidance, joint):
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=128, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=joint, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=guidance,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    autoencoder.bn.running_mean.copy_(torch.randn(128, generator=generator))
    autoencoder.bn.running_var.copy_(torch.rand(128, generator=generator) + 0.5)
    return dict(
        transformer=randomized(transformer, 0.1), vae=randomized(autoencoder, 0.1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
    )  # fmt: skip


def flux2_klein(distilled=False):
    encoder = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
        **DEEP, num_hidden_layers=28, tie_word_embeddings=False))  # fmt: skip
    return diffusers.Flux2KleinPipeline(
        **flux2_parts(False, 48), text_encoder=randomized(encoder, 0.2), tokenizer=chat_tokenizer(),
        is_distilled=distilled,
    )  # fmt: skip


def instruct_tokenizer():
    """Every byte is a token, a text begins with one more, and padding is on the left, as Mistral's tokenizers do it."""
    marks = ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    vocab = {token: i for i, token in enumerate([*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.add_special_tokens(marks)
    inner.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        padding_side="left")  # fmt: skip
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content[0].text }}"
        "[/SYSTEM_PROMPT]{% else %}[INST]{{ m.content[0].text }}[/INST]{% endif %}{% endfor %}")  # fmt: skip
    return tokenizer


def flux2():
    text = DEEP | dict(num_hidden_layers=31, model_type="mistral", sliding_window=None)
    eye = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28,
               patch_size=14, model_type="pixtral")  # fmt: skip
    encoder = transformers.Mistral3ForConditionalGeneration(
        transformers.Mistral3Config(text_config=text, vision_config=eye, tie_word_embeddings=False))  # fmt: skip
    return diffusers.Flux2Pipeline(**flux2_parts(True, 48), text_encoder=randomized(encoder, 0.2),
                                   tokenizer=instruct_tokenizer())  # fmt: skip


def noise_for(theirs):
    channels = theirs.vae.config.latent_channels
    return np.random.default_rng(0).standard_normal((len(PROMPTS), 8, 8, channels)).astype(np.float32)


def their_images(theirs, noise, size=SIZE, **options):
    """diffusers' images [B, H, W, 3] from our noise."""
    theirs.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    if isinstance(theirs, diffusers.FluxPipeline):
        latents = theirs._pack_latents(latents, len(noise), noise.shape[-1], *noise.shape[1:3])
    if hasattr(theirs, "text_encoder_3") or isinstance(theirs, diffusers.FluxPipeline):
        options["max_sequence_length"] = T5_TOKENS
    out = theirs(PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np", height=size[0],
                 width=size[1], latents=latents, **options)  # fmt: skip
    return out.images


def draw(pipeline, params, noise, **options):
    return text_to_image(pipeline, params, PROMPTS, steps=STEPS, guidance=GUIDANCE, size=SIZE, noise=noise,
                         t5_tokens=T5_TOKENS, **options)  # fmt: skip


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal to noise ratio in dB of images in [0, 1]."""
    return float(-10 * np.log10(np.mean(np.square(np.asarray(a, np.float64) - b)) + 1e-20))
