"""Which weights a module's name in a LoRA file stands for, in every spelling that trainers use."""

import dataclasses
import re
from collections.abc import Iterable, Iterator

from lgm.interop.lora_updates import Rows
from lgm.interop.original_names import QKV, Original

# place in a diffusers folder -> how modules of it are prefixed by diffusers, kohya, LyCORIS, in the original layout
PREFIXES = {
    "unet": ("unet.", "lora_unet_", "lycoris_", "model.diffusion_model.", "diffusion_model."),
    "transformer": ("transformer.", "lora_unet_", "lora_transformer_", "lycoris_", "model.diffusion_model.",
                    "diffusion_model."),
    "text_encoder": ("text_encoder.", "lora_te_", "lora_te1_", "text_encoders.clip_l.transformer."),
    # kohya's scripts call Flux's T5 te3
    "text_encoder_2": ("text_encoder_2.", "lora_te2_", "lora_te3_", "text_encoders.clip_g.transformer.",
                       "text_encoders.t5xxl.transformer."),
    "text_encoder_3": ("text_encoder_3.", "lora_te3_", "text_encoders.t5xxl.transformer."),
}  # fmt: skip
_ALL = tuple({prefix for found in PREFIXES.values() for prefix in found})
_PEFT = "base_model.model."
_DENOISERS = ("unet", "transformer")  # whose modules may stand without a prefix
_ATTENTION = ("to_q", "to_k", "to_v", "to_out", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


@dataclasses.dataclass(frozen=True)
class Target:
    """A module of ours: its name without .weight, and which rows of the file's update it takes, halves exchanged."""

    module: str
    rows: Rows = None
    swap: bool = False


def targets_of(names: Iterable[str], original: Original | None) -> dict[str, list[Target]]:
    """What every spelling of a module, with underscores for dots, stands for; each module of ours stands in it once."""
    found: dict[str, dict[str, Target]] = {}
    modules = sorted({name.rpartition(".")[0] for name in names if name.endswith((".weight", ".bias"))})
    for module in modules:
        for spelling in _own_spellings(module):
            found[_key(spelling)] = {module: Target(module)}
    own = set(found)
    for module in modules:
        for spelling, target in _other_spellings(module, original):
            if (key := _key(spelling)) not in own:
                found.setdefault(key, {}).setdefault(module, target)
    return {key: list(targets.values()) for key, targets in found.items()}


def inner_name(module: str, place: str) -> str | None:
    """The name below the network at `place` that the file's `module` has, underscored; None where it is another's."""
    while module.startswith(_PEFT):
        module = module.removeprefix(_PEFT)
    prefix = next((p for p in PREFIXES.get(place, ()) if module.startswith(p)), None)
    if prefix is None:
        return _key(module) if place in _DENOISERS and not module.startswith(_ALL) else None
    module = module.removeprefix(prefix)
    return _key(module.removeprefix(_PEFT))


def _key(module: str) -> str:
    return module.replace(".", "_")


def _own_spellings(module: str) -> Iterator[str]:
    """diffusers' and transformers' names: before peft, attention's modules were its processor's."""
    yield module
    if module.startswith("text_model."):
        yield module.removeprefix("text_model.")
    parent, _, part = module.removesuffix(".0").rpartition(".")
    if part in _ATTENTION:
        yield f"{parent}.processor.{part}_lora"
    if parent.endswith(".self_attn"):  # of text encoders, before peft
        yield f"{parent}.to_{part.removesuffix('_proj')}_lora"
    if module.endswith(".to_out.0"):
        yield module.removesuffix(".0")
    if module == "shared":  # T5's table of tokens
        yield "encoder.embed_tokens"


def _other_spellings(module: str, original: Original | None) -> Iterator[tuple[str, Target]]:
    """Names of the original layout, whose matrices may be fused, and XLabs' names of Flux's."""
    if original is None:
        return
    source = original(f"{module}.weight")
    if source.change in (None, "swap", "squeeze") and source.name.endswith(".weight"):
        name = source.name.removesuffix(".weight")
        yield name, Target(module, source.rows, source.change == "swap")
        for theirs, xlabs in _XLABS.items():
            if name.startswith("double_blocks.") and name.endswith(f".{theirs}"):
                yield f"{name.removesuffix(theirs)}processor.{xlabs}", Target(module, source.rows)
        if name.startswith("single_blocks."):
            block = ".".join(name.split(".")[:2])
            if part := re.fullmatch(r".*\.attn\.to_([qkv])", module):
                yield f"{block}.processor.qkv_lora", Target(module, QKV[part.group(1)])
            if name.endswith(".linear2"):
                yield f"{block}.processor.proj_lora", Target(module)


_XLABS = {
    "img_attn.qkv": "qkv_lora1",
    "txt_attn.qkv": "qkv_lora2",
    "img_attn.proj": "proj_lora1",
    "txt_attn.proj": "proj_lora2",
}
