"""The parts of a diffusers folder: for each class, its configuration both ways, its key map and its file of weights."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lgm.casting import cast
from lgm.files import write_json
from lgm.interop import diffusers_configs as configs
from lgm.interop import keys_causal_text as causal
from lgm.interop import keys_text, tables, text_configs
from lgm.interop import original_names as original
from lgm.interop.fields import Table, WrongKind, carried, joined
from lgm.interop.keymap import Extra, check, iterate_theirs, names_of
from lgm.interop.keys_autoencoder import autoencoder_rules, autoencoder_weights
from lgm.interop.keys_autoencoder_flux2 import (
    AUTOENCODER_FLUX2,
    AUTOENCODER_FLUX2_LAYOUTS,
    autoencoder_flux2_rules,
    read_autoencoder_flux2,
    with_statistics,
    write_autoencoder_flux2,
)
from lgm.interop.keys_dit import dit_rules, position_table, read_dit, read_sit, with_positions, write_dit, write_sit
from lgm.interop.keys_flux import flux_rules, read_flux, write_flux
from lgm.interop.keys_flux2 import FLUX2, FLUX2_LAYOUTS, flux2_rules, read_flux2, write_flux2
from lgm.interop.keys_frame_autoencoder import (
    FRAME_AUTOENCODER,
    FRAME_LAYOUTS,
    frame_autoencoder_rules,
    read_frame_autoencoder,
    write_frame_autoencoder,
)
from lgm.interop.keys_qwen_image import QWEN_IMAGE, qwen_image_rules, read_qwen_image, write_qwen_image
from lgm.interop.keys_sd3 import read_sd3, sd3_rules, with_positions_of, write_sd3
from lgm.interop.keys_unet import unet_rules
from lgm.interop.keys_z_image import Z_IMAGE, Z_IMAGE_LAYOUTS, read_z_image, unused_norm, write_z_image, z_image_rules
from lgm.interop.original_names import Layouts
from lgm.interop.scaled import descaled
from lgm.interop.tensor_files import Weights, load, open_weights, save
from lgm.models import Model, Params, build, family_of
from lgm.parsing import ConfigError, near_miss
from lgm.untrusted import read_object


@dataclasses.dataclass(frozen=True)
class Component:
    """One class of diffusers or transformers, or of ours in a folder like theirs.

    `table` says what options it has (`fields`). `prepare` renames what some versions of the library name otherwise;
    `refine` is for a configuration that the weights must complete; `kept_wide` is the ending of tensors that the
    library keeps in float32 where the rest is float16. `beside` are the tensors of its files that nothing here computes
    with, under the names that they are written again by. `layouts` are those of single files, the likeliest first; of
    text encoders that several systems have, `single_file` says. `only_original` are tensors that files in the first of
    them have and the library's have not.
    """

    library: str
    read: Callable[[Mapping[str, Any]], Any]
    write: Callable[[Any], dict[str, Any]]
    rules: Callable[[Any], list]
    table: Table
    prepare: Callable[[Weights], Weights] = lambda weights: weights
    refine: Callable[[Any, Weights], Any] | None = None
    kept_wide: str | None = None
    beside: Callable[[Weights], Weights] | None = None
    layouts: Layouts = ()
    only_original: Callable[[Any], Mapping[str, np.ndarray]] = lambda config: {}

    @property
    def stem(self) -> str:
        """The name of its weights without ending."""
        return "model" if self.library == "transformers" else "diffusion_pytorch_model"

    def dtype_of(self, tensor: str, dtype: Any) -> Any:
        """What a tensor is written as where `dtype` is asked for, or that of each tensor by name."""
        if isinstance(dtype, Mapping):
            return dtype.get(tensor)
        wide = self.kept_wide is not None and tensor.endswith(self.kept_wide) and dtype == np.float16
        return np.float32 if wide else dtype


def _clip(projected: bool) -> Component:
    def read(config):
        ours = text_configs.read_clip(config)
        return ours if projected else dataclasses.replace(ours, projection_dim=None)

    return Component("transformers", read, text_configs.write_clip, keys_text.clip_text, tables.CLIP,
                     keys_text.clip_text_weights)


def _causal(read: Callable, write: Callable, table: Table) -> Component:
    return Component("transformers", read, write, causal.causal_text_rules, table, causal.causal_text_weights,
                     layouts=[("", original.in_model), ("", original.same)])


TENSORS_A_BLOCK, MOST_BLOCKS = 6, 4096  # at least, of any network; at most

COMPONENTS: dict[str, Component] = {
    "AutoencoderKL": Component(
        "diffusers", configs.read_autoencoder, configs.write_autoencoder, autoencoder_rules, tables.AUTOENCODER,
        autoencoder_weights, layouts=[("first_stage_model.", original.autoencoder), ("vae.", original.autoencoder),
                                      ("", original.autoencoder), ("", original.same)],
    ),
    "AutoencoderKLFlux2": Component(
        "diffusers", read_autoencoder_flux2, write_autoencoder_flux2, autoencoder_flux2_rules, AUTOENCODER_FLUX2,
        autoencoder_weights, with_statistics, layouts=AUTOENCODER_FLUX2_LAYOUTS,
    ),
    "AutoencoderKLQwenImage": Component(
        "diffusers", read_frame_autoencoder, write_frame_autoencoder, frame_autoencoder_rules, FRAME_AUTOENCODER,
        layouts=FRAME_LAYOUTS,
    ),
    "BertModel": Component("transformers", text_configs.read_bert, text_configs.write_bert, keys_text.bert,
                           tables.BERT),
    "CLIPTextModel": _clip(projected=False),
    "CLIPTextModelWithProjection": _clip(projected=True),
    "DiTTransformer2DModel": Component("diffusers", read_dit, write_dit, dit_rules, tables.DIT, refine=with_positions,
                                       layouts=[("", original.dit)], only_original=position_table),
    "Flux2Transformer2DModel": Component("diffusers", read_flux2, write_flux2, flux2_rules, FLUX2,
                                         layouts=FLUX2_LAYOUTS),
    "FluxTransformer2DModel": Component(
        "diffusers", read_flux, write_flux, flux_rules, tables.FLUX,
        layouts=[("", original.flux), ("model.diffusion_model.", original.flux), ("", original.same)],
    ),
    "Mistral3ForConditionalGeneration": Component(
        "transformers", causal.read_mistral3, causal.write_mistral3, causal.mistral3_rules, causal.MISTRAL3,
        causal.mistral3_weights, beside=causal.mistral3_others, layouts=[("", original.same)],
    ),
    "MistralModel": _causal(causal.read_mistral, causal.write_mistral, causal.MISTRAL),
    "Qwen2_5_VLForConditionalGeneration": Component(
        "transformers", causal.read_qwen25_vl, causal.write_qwen25_vl, causal.qwen25_vl_rules, causal.QWEN25_VL,
        causal.qwen25_vl_weights, beside=causal.qwen25_vl_others, layouts=[("", original.same)],
    ),
    "Qwen2_5_VLTextModel": _causal(causal.read_qwen25, causal.write_qwen25, causal.QWEN25),
    "Qwen3ForCausalLM": Component(
        "transformers", causal.read_qwen3, causal.write_qwen3_lm, causal.qwen25_vl_rules, causal.QWEN3,
        causal.qwen25_vl_weights, beside=causal.qwen25_vl_others, layouts=[("", original.same)],
    ),
    "Qwen3Model": _causal(causal.read_qwen3, causal.write_qwen3, causal.QWEN3),
    "QwenImageTransformer2DModel": Component(
        "diffusers", read_qwen_image, write_qwen_image, qwen_image_rules, QWEN_IMAGE,
        layouts=[("", original.same), ("model.diffusion_model.", original.same)],
    ),
    "SD3Transformer2DModel": Component(
        "diffusers", read_sd3, write_sd3, sd3_rules, tables.SD3, refine=with_positions_of,
        layouts=[("model.diffusion_model.", original.sd3), ("", original.sd3), ("", original.same)],
    ),
    "SiTTransformer2DModel": Component("lgm", read_sit, write_sit, dit_rules, tables.DIT, refine=with_positions,
                                       layouts=[("", original.dit)], only_original=position_table),
    "T5EncoderModel": Component(
        "transformers", text_configs.read_t5, text_configs.write_t5, keys_text.t5, tables.T5, keys_text.t5_weights,
        kept_wide=".wo.weight",
    ),
    "UNet2DConditionModel": Component(
        "diffusers", configs.read_unet, configs.write_unet, unet_rules, tables.UNET,
        layouts=[("model.diffusion_model.", original.unet), ("", original.unet), ("", original.same)],
    ),
    "ZImageTransformer2DModel": Component("diffusers", read_z_image, write_z_image, z_image_rules, Z_IMAGE,
                                          layouts=Z_IMAGE_LAYOUTS, only_original=unused_norm),
}


AUTOENCODERS = ("AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLQwenImage")


def component(name: str) -> Component:
    """The component of a class name; ValueError, one line, for one that has no equal here."""
    if name not in COMPONENTS:
        raise ValueError(f"{name} has no equal here{near_miss(name, COMPONENTS)}")
    return COMPONENTS[name]


def read_config(folder: str | Path, name: str, **changes) -> Any:
    """Our configuration of the component `name` in a folder with config.json, with fields of ours changed."""
    path, kind = Path(folder) / "config.json", component(name)
    config = read_json(path)
    try:
        config = dataclasses.replace(kind.read(config), **changes)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{path} is no configuration of a {name} ({error!r})") from error
    except WrongKind as error:
        raise ValueError(f"{path} is no configuration of a {name} ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    weights = open_weights(folder) if any(path.parent.glob("*.safetensors")) else None
    check_size(config, weights, path)
    return config if weights is None or kind.refine is None else kind.refine(config, weights)


def read_carried(folder: str | Path, name: str) -> dict[str, Any]:
    """The options of a component's config.json that have no part in what is computed here, to be written again."""
    return carried(read_json(Path(folder) / "config.json"), component(name).table)


def check_size(config: Any, weights: Weights | None, path: Path) -> None:
    """Raise ValueError, one line, where `config` has more blocks than the tensors of `weights` can make up, before
    any of them is built."""
    blocks, tensors = family_of(config).blocks(config), None if weights is None else len(weights.names)
    if tensors is not None and blocks * TENSORS_A_BLOCK > tensors:
        raise ValueError(f"{path}: so many layers ({blocks} blocks) need more than the {tensors} tensors beside it")
    if blocks > MOST_BLOCKS:
        raise ValueError(f"{path}: {blocks} blocks are more than any model has ({MOST_BLOCKS})")


def load_component(
    folder: str | Path,
    name: str,
    *,
    held_in: Any = None,
    shard: Callable[[Model], Any] | None = None,
    weights: Weights | None = None,
    adapt: Callable[[Weights], Weights] = lambda weights: weights,
    **changes,
) -> tuple[Model, Params]:
    """(model, parameters) of a component's folder; `changes` are fields of our configuration to set.

    Parameters are cast to the dtype `held_in` (float32 by default) and built straight into the shardings that
    `shard(model)` gives; without it they are numpy arrays. `weights` take the place of the folder's, `adapt` changes
    them before, as by merging a LoRA. Raises ValueError, one line, for whatever does not fit.
    """
    config, kind = read_config(folder, name, **changes), component(name)
    if weights is not None:
        check_size(config, weights, weights.path)
        config = config if kind.refine is None else kind.refine(config, weights)
    model = build(config)
    weights = adapt(kind.prepare(descaled(open_weights(folder)) if weights is None else weights))
    shardings = None if shard is None else shard(model)
    return model, load(kind.rules(model.config), model.abstract(), weights, dtype=held_in, shardings=shardings)


def open_checked(folder: Path, name: str, model: Model) -> tuple[list, Weights]:
    """(key map, weights) of the network of class `name` in a folder, which are seen to be for `model`; none is read."""
    kind = component(name)
    rules, weights = kind.rules(model.config), kind.prepare(open_weights(folder))
    try:
        check(rules, model.abstract(), weights.names, weights.shape)
    except ValueError as error:
        raise ConfigError(f"{weights.path}: {error}") from error
    return rules, weights


def names_in_library(name: str, config: Any) -> list[str]:
    """Every tensor that the library's checkpoint of a component may have."""
    rules = component(name).rules(config)
    extras = [rule.theirs for rule in rules if isinstance(rule, Extra) and rule.make is not None]
    return names_of(rules, build(config).abstract()) + extras


def save_component(
    folder: str | Path, name: str, config: Any, params: Params, dtype: Any = None, options: Mapping[str, Any] = {},
    beside: Weights | None = None,
) -> None:  # fmt: skip
    """Write config.json and the weights, cast to `dtype` where given (`Component.dtype_of`), as the library's
    `save_pretrained` does.

    `options` are written as well, in the place of what is a matter of form here (`read_carried`), and the tensors
    `beside` ours, in the dtype of ours. Raises ValueError, one line, naming a tensor that is not finite in `dtype`.
    """
    kind = component(name)
    tensors = all_tensors(name, config, params, beside)
    converted = ((key, cast(key, np.asarray(tensor), kind.dtype_of(key, dtype))) for key, tensor in tensors)
    save(converted, folder, kind.stem)
    write_json(Path(folder) / "config.json", joined(kind.write(config), options))


def all_tensors(name: str, config: Any, params: Params, beside: Weights | None) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a component's checkpoint by the library's name, those `beside` ours in the dtype of ours."""
    yield from iterate_theirs(component(name).rules(config), params)
    if beside is not None:
        held = jax.tree.leaves(params)[0].dtype
        yield from ((key, cast(key, beside.get(key), held)) for key in beside.names)


def read_json(path: Path, infinite: bool = False) -> dict[str, Any]:
    """A JSON object, as `read_object` reads it. Raises ValueError, one line, where there is none."""
    try:
        return read_object(path, infinite)
    except FileNotFoundError:
        raise ValueError(f"{path} is not there") from None
