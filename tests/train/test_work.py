"""FLOPs of a train step: what is frozen in it counts once, what is trained three times; by counts made by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from lgm import config as schema
from lgm.config.reading import read_config_file
from lgm.models import Conditioning
from lgm.planning.abstract import abstract_batch, abstract_system
from lgm.train.work import frozen_flops, training_flops


def conv(inputs, outputs, side, kernel=3):
    return 2 * kernel**2 * inputs * outputs * side**2


def sd_encoder(side):
    """The released autoencoders' encoder: two residual blocks a level and a halving between levels, two blocks around
    one of attention at the end, the moments and their 1 x 1 convolution."""
    block = lambda i, o, s: conv(i, o, s) + conv(o, o, s) + (conv(i, o, s, 1) if i != o else 0)
    total, before, last = conv(3, 128, side), 128, side // 8
    for level, width in enumerate((128, 256, 512, 512)):
        at = side >> level
        total += block(before, width, at) + block(width, width, at) + (conv(width, width, at // 2) if level < 3 else 0)
        before = width
    attention = 4 * conv(512, 512, last, 1) + 4 * last**4 * 512
    return total + 2 * block(512, 512, last) + attention + conv(512, 8, last) + conv(8, 8, last, 1)


def transformer(length, width, inner, depth, heads=None, products=2):
    """Four products of attention, `products` of the feed-forward network, scores and their product with values."""
    heads = heads or width
    return depth * (2 * length * (4 * width * heads + products * width * inner) + 4 * length**2 * heads)


def of(name, **data):
    values = read_config_file(f"configs/pod.py:{name}", ())
    values["data"] = {**values["data"], **data}
    system, frozen, _ = abstract_system(schema.from_dict(values))
    return system, frozen


@pytest.mark.parametrize("side, known", [(256, 0.27272e12), (512, 1.1167e12)])
def test_the_autoencoder_counts_where_each_step_encodes(side, known):
    assert sd_encoder(side) == pytest.approx(known, rel=1e-4)
    counts = [frozen_flops(*of("sdxl", resolution=side, latents=latents)) for latents in ("memory", "step")]
    assert counts[1] - counts[0] == pytest.approx(sd_encoder(side), rel=1e-6)


def test_a_folders_text_encoders_count_once_and_what_is_trained_three_times():
    clip = transformer(77, 768, 3072, 12) + transformer(77, 1280, 5120, 32)
    projections = 2 * 768 * 768 + 2 * 1280 * 1280  # of the pooled vectors
    system, frozen = of("sd3_medium")
    length = system.folder.lengths["text_encoder_3"]
    t5 = transformer(length, 4096, 10240, 24, products=3)
    text = frozen_flops(system, frozen)
    assert text == pytest.approx(clip + projections + t5, rel=1e-3)  # SD3's penultimate layers leave one of each out
    once = training_flops(system, frozen) - text
    # SD3-medium's forward pass at 1024 px and 333 tokens of text, as it is published for 4,096 + 333
    assert once == pytest.approx(3 * 8.895e12, rel=0.02)


def test_what_is_read_from_a_cache_is_in_no_step():
    system, frozen = of("sd3_medium", cache="not/here")
    batch = abstract_batch(system.config, system)
    length = 77 + system.folder.folder.lengths["text_encoder_3"]
    assert frozen == {} and frozen_flops(system, frozen) == 0.0
    assert batch["tokens"].shape[1] == length * 4096 + 2048 and batch["tokens"].dtype == system.config.model.dtype
    cond = jax.eval_shape(system.condition, {}, batch["tokens"], batch["mask"])
    assert cond.text.shape[1:] == (length, 4096) and cond.pooled.shape[1:] == (2048,) and cond.text_mask is None
    whole = training_flops(*of("sd3_medium"))
    assert training_flops(system, frozen) == pytest.approx(whole - frozen_flops(*of("sd3_medium")), rel=1e-6)


def test_latents_and_text_that_are_not_computed_in_the_step_are_not_counted(tiny_config):
    config = schema.load(tiny_config)
    system, frozen, _ = abstract_system(config)
    assert frozen_flops(system, frozen) == 0.0
    step = dataclasses.replace(config, data=dataclasses.replace(config.data, latents="step"))
    encoding = dataclasses.replace(system, config=step)
    assert training_flops(encoding, frozen) - training_flops(system, frozen) == frozen_flops(encoding, frozen) > 0
    adapted = schema.load(tiny_config, [("lora.rank", "2"), ("init_from", "a/run")])  # its text encoder is frozen
    changed, frozen, _ = abstract_system(adapted)
    text = frozen_flops(changed, frozen)
    # one layer of width 32 over 16 tokens
    assert text == pytest.approx(transformer(16, 32, 128, 1), rel=1e-6)


def test_a_model_that_is_told_classes_is_planned_without_a_text_encoder():
    values = {"name": "dit", "batch_size": 4, "total_images": 8, "text": {"classes": ["a", "b"]},
              "model": dict(family="dit", width=32, depth=2, heads=2, channels=32, patch_size=1, classes=2,
                            base_size=8)}  # fmt: skip
    config = schema.from_dict(values)
    system, frozen, _ = abstract_system(config)
    assert abstract_batch(config, system)["tokens"].shape == (4, 1)
    folder = schema.from_dict(values | {"text": {"folder": "not/here"}})  # planned with the published classes
    assert abstract_batch(folder, abstract_system(folder)[0])["tokens"].shape == (4, 1)
    latent = jax.ShapeDtypeStruct((1, *system.latent_shape()), jnp.float32)
    forward = system.denoiser.flops(latent, jnp.zeros(1), Conditioning(label=jnp.zeros(1, jnp.int32)))
    assert training_flops(system, frozen) == pytest.approx(3 * forward, rel=0.05)  # but for the first layer's input
