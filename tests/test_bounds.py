"""What a config's numbers may be: every field has a bound; beyond it, one line has the key, the value and a remedy."""

import dataclasses
import math
import typing

import jax
import numpy as np
import pytest

from lgm import config as schema
from lgm.bounds import bounds_of
from lgm.cli import main
from lgm.models import FAMILIES, build, classes
from lgm.models import lora as low_rank
from lgm.models.lora import LoRAConfig
from lgm.parsing import ConfigError
from lgm.train.optimizer import build_optimizer

TEXT = dict(encoder=dict(family="clip_text", vocab_size=4096, width=32, depth=1, heads=2, max_length=16))
MODELS = {
    "mmdit": dict(channels=32, patch_size=1, width=32, depth=2, heads=2, text_dim=32, pooled_dim=32, qk_norm="rms"),
    "unet": dict(channels=32, block_channels=(32,), transformer_depth=(1,), heads=(2,), text_dim=32),
    "flux": dict(channels=32, width=64, depth=1, single_depth=1, heads=4, text_dim=32, pooled_dim=32,
                 rotary_axes=(4, 6, 6)),
    "dit": dict(channels=32, width=32, depth=2, heads=2, classes=3),
    "autoencoder": dict(block_channels=(32, 32)),
    "clip_text": dict(width=32, depth=1, heads=2, vocab_size=9),
    "t5": dict(width=32, depth=1, heads=2, head_width=8, mlp_width=8, vocab_size=9),
    "bert": dict(width=32, depth=1, heads=2, vocab_size=9),
}


def values_of(family="mmdit", **changes):
    values = dict(name="b", total_images=96, batch_size=8, model=dict(family=family, **MODELS[family]))
    if family in ("mmdit", "unet", "flux"):
        values["text"] = {"encoder": dict(TEXT["encoder"])}
    for key, value in changes.items():
        *sections, last = key.split(".")
        node = values
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return values


def records():
    """Every dataclass that a config is made of."""
    found, waiting = {}, [schema.Config, schema.DenoisingLoss, schema.AutoencoderLoss, LoRAConfig,
                          *(classes(family)[0] for family in FAMILIES)]
    while waiting:
        cls = waiting.pop()
        found[cls.__name__] = cls
        for hint in typing.get_type_hints(cls).values():
            parts = (hint, *typing.get_args(hint))
            waiting += [part for part in parts if dataclasses.is_dataclass(part) and part.__name__ not in found]
    return found


def numeric(hint):
    return hint in (int, float) or any(numeric(part) for part in typing.get_args(hint)
                                       if typing.get_origin(hint) is not typing.Literal)


@pytest.mark.parametrize("name", sorted(records()))
def test_every_number_has_a_bound_and_every_default_lies_within(name):
    cls = records()[name]
    for field in dataclasses.fields(cls):
        hint = typing.get_type_hints(cls)[field.name]
        if not numeric(hint) or typing.get_origin(hint) is dict:
            continue
        bound = bounds_of(cls).get(field.name)
        assert bound is not None, f"{name}.{field.name} has no bound"
        default = field.default
        for value in default if isinstance(default, tuple) else (default,):
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                assert bound.holds(value)


BEYOND = [
    ("optimizer.b1", 1.0, "lie in [0, 1)"), ("optimizer.b1", -0.1, "lie in [0, 1)"),
    ("optimizer.b2", 2, "lie in [0, 1)"), ("optimizer.b2", math.nan, "lie in [0, 1)"),
    ("optimizer.eps", 0, "be above 0"), ("optimizer.eps", math.inf, "be above 0 and finite"),
    ("optimizer.clip_norm", -1, "be at least 0"), ("optimizer.weight_decay", -0.1, "be at least 0"),
    ("optimizer.lr", 0, "be above 0"), ("optimizer.lr", math.inf, "be above 0"),
    ("optimizer.final", 1.5, "lie in [0, 1]"),
    ("optimizer.warmup_images", -1, "be at least 0"), ("optimizer.decay_images", -5, "be at least 0"),
    ("batch_size", 0, "be at least 1"), ("accumulate", -2, "be at least 1"), ("total_images", -8, "be at least 1"),
    ("seed", -1, "lie in [0, "), ("data.resolution", 0, "be at least 1"), ("data.resolution", -64, "be at least 1"),
    ("data.crop", 0, "be at least 1"), ("text.caption_dropout", 1, "lie in [0, 1)"),
    ("ema.half_life_images", 0, "be at least 1|be above 0"), ("ema.ramp", -0.1, "be at least 0"),
    ("ema.ramp", math.nan, "be at least 0"), ("sampling.steps", 0, "be at least 1"),
    ("sampling.guidance", math.nan, "be finite"), ("sampling.guidance", -math.inf, "be finite"),
    ("sampling.clip", 0, "be above 0"), ("sampling.interval", (-0.1, 1.0), "lie in [0, 1]"),
    ("sampling.interval", (0.7, 0.2), "rise"), ("sampling.count", -1, "be at least 0"),
    ("sampling.every_images", -1, "be at least 0"), ("evaluation.times", 0, "be at least 1"),
    ("evaluation.noises", 0, "be at least 1"), ("evaluation.batch_size", 0, "be at least 1"),
    ("evaluation.max_images", -1, "be at least 0"), ("evaluation.levels", -1, "be at least 0"),
    ("evaluation.log_snr", (3.0, -3.0), "rise"), ("evaluation.log_snr", (-math.inf, 3.0), "be finite"),
    ("evaluation.distance", 2, "be 0, for none"), ("log.every_images", 0, "be at least 1"),
    ("log.checkpoint_every_images", -1, "be at least 0"), ("log.keep", 0, "be at least 1"),
    ("mesh.data", -2, "be at least -1"), ("mesh.replicate_below", -1, "be at least 0"),
    ("mesh.microbatches", 0, "be at least 1"), ("loss.variance", -1, "be at least 0"),
    ("lora.rank", 0, "be at least 1"), ("lora.alpha", 0, "be above 0"), ("lora.alpha", math.nan, "be above 0"),
    ("model.heads", 0, "be at least 1"), ("model.heads", -2, "be at least 1"), ("model.heads", 3, "divide"),
    ("model.width", 0, "be at least 1"), ("model.width", 30, "multiple of 4"), ("model.depth", 0, "be at least 2"),
    ("model.patch_size", 0, "be at least 1"), ("model.channels", -4, "be at least 1"),
    ("model.mlp_ratio", 0, "be above 0"), ("model.position_size", 0, "be at least 1"),
    ("model.base_size", 0, "be at least 1"), ("model.position_scale", 0, "be above 0"),
    ("model.position_offset", math.nan, "be finite"), ("model.dual_attention", -1, "be at least 0"),
    ("model.group", 0, "be at least 1"), ("model.text_dim", 16, "equal"), ("model.pooled_dim", 16, "equal"),
    ("text.encoder.heads", 0, "be at least 1"), ("text.encoder.vocab_size", 0, "be at least 1"),
    ("text.encoder.pool", -1, "be at least 0"), ("text.encoder.mlp_width", 0, "be at least 1"),
    ("text.encoder.projection_dim", -3, "be at least 1"),
]  # fmt: skip
OF_FAMILIES = [
    ("unet", "model.norm_groups", 0, "be at least 1"), ("unet", "model.norm_groups", 5, "divide"),
    ("unet", "model.heads", (0,), "be at least 1"), ("unet", "model.heads", (5,), "divide"),
    ("unet", "model.block_channels", (0,), "be at least 1"), ("unet", "model.block_channels", (), "level"),
    ("unet", "model.layers_per_block", 0, "be at least 1"), ("unet", "model.transformer_depth", (-1,), "be at least 0"),
    ("unet", "model.mid_depth", -1, "be at least 0"), ("unet", "model.micro_ids", 6, "micro_ids"),
    ("flux", "model.heads", 0, "be at least 1"), ("flux", "model.rotary_axes", (5, 5, 6), "even"),
    ("flux", "model.rotary_axes", (0, 8, 8), "be at least 2"), ("flux", "model.rotary_axes", (4, 4, 6), "sum"),
    ("dit", "model.classes", 0, "be at least 1"), ("dit", "model.heads", 0, "be at least 1"),
    ("dit", "model.depth", 0, "be at least 1"), ("dit", "model.base_size", -1, "be at least 1"),
    ("autoencoder", "model.norm_groups", 0, "be at least 1"), ("autoencoder", "model.norm_groups", 7, "divide"),
    ("autoencoder", "model.scale", 0, "be above 0"), ("autoencoder", "model.shift", math.inf, "be finite"),
    ("autoencoder", "model.latent_channels", 0, "be at least 1"), ("autoencoder", "loss.kl", -1, "be at least 0"),
    ("autoencoder", "loss.noise", math.nan, "be at least 0"), ("autoencoder", "data.resolution", 63, "multiples of 2"),
    ("autoencoder", "data.crop", 31, "multiples of 2"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "key", "value", "remedy"), [("mmdit", *case) for case in BEYOND] + OF_FAMILIES)
def test_what_cannot_be_is_one_line_with_key_value_and_remedy(family, key, value, remedy):
    schema.from_dict(values_of(family))
    with pytest.raises(ConfigError) as caught:
        schema.from_dict(values_of(family, **{key: value}))
    line = str(caught.value)
    assert "\n" not in line and key.split(".")[-1] in line and any(part in line for part in remedy.split("|")), line
    shown = value[0] if isinstance(value, tuple) and value else value
    assert str(shown) in line or str(float(shown)) in line, line


@pytest.mark.parametrize(("change", "line"), [
    (["--config.data.resolution=60"], "config.data.resolution=60 is no multiple of 8"),
    (["--config.model.patch_size=2", "--config.data.resolution=72"], "config.data.resolution=72 is no multiple of 16"),
    (["--config.model.channels=16"], "config.model.channels=16 is not the 32 of the latents"),
    (["--config.model.position_size=7"], "more than config.model.position_size=7"),
    (["--config.text=None"], "is told text (text_dim=32, pooled_dim=32): give config.text"),
    (["--config.text.encoder.family=t5"], "config.text.encoder."),
    (["--config.optimizer.b2=2"], "config.optimizer.b2=2.0 must lie in [0, 1)"),
])  # fmt: skip
def test_training_is_refused_in_one_line_and_leaves_nothing(change, line, tiny_config, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert main(["train", f"--config={tiny_config}", f"--workdir={workdir}", *change]) == 2
    error = capsys.readouterr().err.strip()
    assert line in error and "\n" not in error and not workdir.exists()


DECAYED = {"kernel": True, "bias": False, "scale": False}  # by the last part of a parameter's path
TABLES = {"dit": {"table"}, "clip_text": {"table"}, "t5": {"table"}, "bert": {"table"}}


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("family", sorted(MODELS))
def test_weight_decay_shrinks_kernels_and_spares_norms_biases_and_embeddings(family, name):
    params = build(classes(family)[0](**MODELS[family])).abstract()
    expected = DECAYED | dict.fromkeys(TABLES.get(family, ()), False)
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)} <= set(expected)
    _check_decay({"denoiser": params}, name, lambda path: expected[path[-1].key])


def test_weight_decay_shrinks_both_factors_of_a_low_rank_change():
    model = build(classes("mmdit")[0](**MODELS["mmdit"]))
    params = jax.eval_shape(lambda key: low_rank.init(model, LoRAConfig(rank=2), key), jax.random.key(0))
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)} == {"down", "up"}
    _check_decay({"lora": params}, "adamw", lambda path: True)


def _check_decay(abstract, name, decays):
    """With gradients of zero an optimizer's update is -rate x decay x weight, or nothing."""
    options = {"optimizer.weight_decay": 0.1, "optimizer.lr": 0.5, "optimizer.schedule": "constant",
               "optimizer.name": name}
    optimizer = build_optimizer(schema.from_dict(values_of(**options)))
    params = jax.tree.map(lambda leaf: np.ones((2,) * leaf.ndim, np.float32), abstract)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        np.testing.assert_allclose(update, -0.05 if decays(path) else 0.0, rtol=1e-6, err_msg=str(path))
