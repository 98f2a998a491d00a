"""Key map and configurations of causal language models, in the layouts of transformers' Qwen3Model, Qwen2_5_VLTextModel
and MistralModel, alone and within the classes that write or see as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lgm.interop.fields import (
    CARRIED,
    COUNT,
    COUNT_OR_NONE,
    NAME,
    NUMBER,
    POSITIVE,
    Kind,
    Table,
    WrongKind,
    check,
    fixed,
)
from lgm.interop.keymap import Extra, Rule, linear, norm, prefixed
from lgm.interop.tables import OUTPUTS
from lgm.interop.tensor_files import Weights
from lgm.models.causal_text import CausalTextConfig
from lgm.untrusted import shown

_OBJECT = Kind("an object or null", lambda value: value is None or isinstance(value, dict))
_COMMON: Table = OUTPUTS | {
    "eos_token_id": CARRIED,
    "head_dim": COUNT_OR_NONE,
    "hidden_act": fixed("silu"),
    "hidden_size": COUNT,
    "intermediate_size": COUNT,
    "max_position_embeddings": COUNT,
    "model_type": NAME,
    "num_attention_heads": COUNT,
    "num_hidden_layers": COUNT,
    "num_key_value_heads": COUNT_OR_NONE,
    "rms_norm_eps": POSITIVE,
    "rope_parameters": _OBJECT,
    "rope_scaling": _OBJECT,  # as versions before 5 have it
    "rope_theta": NUMBER,  # likewise
    "vocab_size": COUNT,
}
_WINDOWS: Table = {
    "layer_types": CARRIED,  # which layers would have a window
    "max_window_layers": CARRIED,
    "sliding_window": CARRIED,
    "use_sliding_window": fixed(False, None),
}
QWEN3: Table = _COMMON | _WINDOWS | {"attention_bias": fixed(False)}
QWEN25: Table = _COMMON | _WINDOWS
MISTRAL: Table = _COMMON | {"sliding_window": COUNT_OR_NONE}
MISTRAL3: Table = {"text_config": MISTRAL, "vision_config": CARRIED}
QWEN25_VL: Table = QWEN25 | {"text_config": QWEN25, "vision_config": CARRIED}  # older folders say all at one level


def causal_text_rules(config: CausalTextConfig) -> list[Rule | Extra]:
    """The layers of any of these, by the names that they share."""
    layer = "layers.{layer}."
    attention = f"{layer}self_attn."
    norms = norm("blocks/norm_q", f"{attention}q_norm", bias=False) + norm("blocks/norm_k", f"{attention}k_norm",
                                                                           bias=False)
    return [
        Rule("tokens/table", "embed_tokens.weight"),
        *norm("blocks/norm1", f"{layer}input_layernorm", bias=False),
        *linear("blocks/q", f"{attention}q_proj", bias=config.qkv_bias),
        *linear("blocks/kv", (f"{attention}k_proj", f"{attention}v_proj"), bias=config.qkv_bias),
        *(norms if config.qk_norm else []),
        *linear("blocks/out", f"{attention}o_proj", bias=False),
        *norm("blocks/norm2", f"{layer}post_attention_layernorm", bias=False),
        *linear("blocks/wi", (f"{layer}mlp.gate_proj", f"{layer}mlp.up_proj"), bias=False),
        *linear("blocks/wo", f"{layer}mlp.down_proj", bias=False),
        *norm("norm", "norm", bias=False),
    ]


_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.")
# the head of next tokens and the eye, and what versions of the library put before them
_OTHERS = ("lm_head.", "visual.", "vision_tower.", "multi_modal_projector.")
_BEFORE = ("model.", "language_model.")


def causal_text_weights(weights: Weights) -> Weights:
    """`weights` of the bare model: without its prefix in a larger one, a head of next tokens or an eye."""

    def rename(name: str) -> str | None:
        if _unprefixed(name, _BEFORE).startswith(_OTHERS):
            return None
        return _unprefixed(name, _PREFIXES)

    return weights.renamed(rename)


def qwen25_vl_rules(config: CausalTextConfig) -> list[Rule | Extra]:
    """The text model within Qwen2_5_VLForConditionalGeneration, by the names of the released files."""
    return prefixed(causal_text_rules(config), theirs="model.")


def qwen25_vl_weights(weights: Weights) -> Weights:
    """`weights` of the text model alone, by the names of the released files."""
    return causal_text_weights(weights).renamed("model.{}".format)


def qwen25_vl_others(weights: Weights) -> Weights:
    """The head and the eye, by the names of the released files, which every version of the library reads."""

    def rename(name: str) -> str | None:
        return name if (name := _unprefixed(name, _BEFORE)).startswith(_OTHERS) else None

    return weights.renamed(rename)


_MISTRAL3 = "language_model."  # before the names of both the text model and its head in the released files


def mistral3_rules(config: CausalTextConfig) -> list[Rule | Extra]:
    """The text model within Mistral3ForConditionalGeneration, by the names of the released files."""
    return prefixed(causal_text_rules(config), theirs=f"{_MISTRAL3}model.")


def mistral3_weights(weights: Weights) -> Weights:
    """`weights` of the text model alone, by the names of the released files."""
    return causal_text_weights(weights).renamed(f"{_MISTRAL3}model.{{}}".format)


def mistral3_others(weights: Weights) -> Weights:
    """The head, the eye and what joins it, by the names of the released files."""
    return qwen25_vl_others(weights).renamed(lambda name: f"{_MISTRAL3 if name.startswith('lm_head.') else ''}{name}")


def _unprefixed(name: str, prefixes: tuple[str, ...]) -> str:
    return name.removeprefix(next((prefix for prefix in prefixes if name.startswith(prefix)), ""))


def read_qwen3(config: Mapping[str, Any]) -> CausalTextConfig:
    """CausalTextConfig of a Qwen3Model."""
    check(config, QWEN3)
    shape = dict(vocab_size=151_936, width=4096, mlp_width=22_016, depth=32, heads=32, kv_heads=32, head_width=128,
                 max_length=32_768, epsilon=1e-6)  # fmt: skip
    return _read(config, shape, 10_000.0, qk_norm=True)


def read_qwen25(config: Mapping[str, Any]) -> CausalTextConfig:
    """CausalTextConfig of a Qwen2_5_VLTextModel; of text alone its three kinds of positions are one."""
    check(config, QWEN25)
    shape = dict(vocab_size=152_064, width=8192, mlp_width=29_568, depth=80, heads=64, kv_heads=8, max_length=32_768,
                 epsilon=1e-5)  # fmt: skip
    return _read(config, shape, 1_000_000.0, qk_norm=False, qkv_bias=True)


def read_qwen25_vl(config: Mapping[str, Any]) -> CausalTextConfig:
    """CausalTextConfig of the text model of a Qwen2_5_VLForConditionalGeneration."""
    check(config, QWEN25_VL)
    return read_qwen25(config.get("text_config") or config)


def read_mistral(config: Mapping[str, Any]) -> CausalTextConfig:
    """CausalTextConfig of a MistralModel, for texts that its window, if it has one, does not cut."""
    check(config, MISTRAL)
    shape = dict(vocab_size=32_000, width=4096, mlp_width=14_336, depth=32, heads=32, kv_heads=8, max_length=131_072,
                 epsilon=1e-6)  # fmt: skip
    window = config.get("sliding_window", 4096)
    longest = min(config.get("max_position_embeddings", 131_072), window or 1 << 24)
    return _read({**config, "max_position_embeddings": longest}, shape, 10_000.0, qk_norm=False)


_KEYS = {"vocab_size": "vocab_size", "width": "hidden_size", "mlp_width": "intermediate_size",
         "depth": "num_hidden_layers", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads",
         "head_width": "head_dim", "max_length": "max_position_embeddings", "epsilon": "rms_norm_eps"}  # fmt: skip


def _read(config: Mapping[str, Any], defaults: Mapping[str, Any], period: float, **kind: bool) -> CausalTextConfig:
    shape = {ours: config.get(theirs, defaults.get(ours)) for ours, theirs in _KEYS.items()}
    shape["kv_heads"] = shape["kv_heads"] or shape["heads"]
    shape["head_width"] = shape["head_width"] or shape["width"] // shape["heads"]
    return CausalTextConfig(**shape, rotary_period=_period(config, period), **kind)


def _period(config: Mapping[str, Any], default: float) -> float:
    """The longest period of the rotary positions. Raises ValueError, one line, where they are scaled."""
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    said = config.get(key) or {}
    kind = said.get("rope_type", said.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"config.json: {key} of rope_type={shown(kind)} has no equal here; supported: default")
    period = said.get("rope_theta", config.get("rope_theta", default))
    if not POSITIVE.holds(period):
        raise WrongKind(f"config.json: rope_theta={shown(period)} is not {POSITIVE.words}")
    return float(period)


def read_mistral3(config: Mapping[str, Any]) -> CausalTextConfig:
    """CausalTextConfig of the text model of a Mistral3ForConditionalGeneration."""
    check(config, MISTRAL3)
    if not config.get("text_config"):
        raise WrongKind("config.json: text_config is missing")
    return read_mistral(config["text_config"])


def write_qwen3(config: CausalTextConfig) -> dict[str, Any]:
    """config.json of a Qwen3Model."""
    _expect(config, "Qwen3Model", qk_norm=True, qkv_bias=False)
    return _write(config, "Qwen3Model", "qwen3") | {"attention_bias": False}


def write_qwen25(config: CausalTextConfig) -> dict[str, Any]:
    """config.json of a Qwen2_5_VLTextModel."""
    _expect(config, "Qwen2_5_VLTextModel", qk_norm=False, qkv_bias=True,
            head_width=config.width // config.heads)  # fmt: skip
    written, half = _write(config, "Qwen2_5_VLTextModel", "qwen2_5_vl_text"), config.head_width // 2
    place = 3 * half // 8  # of rows and of columns in a picture; the rest is time's
    written["rope_parameters"]["mrope_section"] = [half - 2 * place, place, place]
    del written["head_dim"]  # which follows
    return written


def write_qwen25_vl(config: CausalTextConfig) -> dict[str, Any]:
    """config.json of a Qwen2_5_VLForConditionalGeneration, but for what its eye is."""
    text = write_qwen25(config)
    del text["architectures"], text["tie_word_embeddings"]
    return {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "text_config": text,
            "tie_word_embeddings": False}  # fmt: skip


def write_qwen3_lm(config: CausalTextConfig) -> dict[str, Any]:
    """config.json of a Qwen3ForCausalLM."""
    return write_qwen3(config) | {"architectures": ["Qwen3ForCausalLM"]}


def write_mistral(config: CausalTextConfig) -> dict[str, Any]:
    """config.json of a MistralModel."""
    _expect(config, "MistralModel", qk_norm=False, qkv_bias=False)
    return _write(config, "MistralModel", "mistral") | {"sliding_window": None}


def write_mistral3(config: CausalTextConfig) -> dict[str, Any]:
    """config.json of a Mistral3ForConditionalGeneration, but for what its eye is."""
    text = write_mistral(config)
    del text["architectures"]
    return {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": text}


def _write(config: CausalTextConfig, name: str, kind: str) -> dict[str, Any]:
    return {
        "architectures": [name],
        "model_type": kind,
        **{theirs: getattr(config, ours) for ours, theirs in _KEYS.items()},
        "hidden_act": "silu",
        "rope_theta": config.rotary_period,  # for versions before 5
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_period},
        "tie_word_embeddings": False,
    }


def _expect(config: CausalTextConfig, name: str, **fields: Any) -> None:
    for field, value in fields.items():
        if getattr(config, field) != value:
            raise ValueError(f"transformers' {name} has {field}={value}; one of {field}={getattr(config, field)} "
                             "cannot be exported")
