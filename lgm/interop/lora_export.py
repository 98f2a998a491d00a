"""Adapters trained here, in the LoRA files that diffusers loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from lgm.interop.keymap import CONV_AS_LINEAR, LINEAR, Rule, Rules, Transform, parts_of
from lgm.interop.weights import save
from lgm.models.lora import Adapter, LoRAConfig

STEM = "pytorch_lora_weights"  # the name that diffusers looks for


def save_lora(folder: str | Path, adapters: Mapping[str, tuple[Rules, Adapter]], config: LoRAConfig) -> None:
    """Write pytorch_lora_weights.safetensors.

    `adapters` has the key map of a network and its adapter by place ("unet", "transformer", "text_encoder"). alpha is
    folded into B, so that the file needs none. Raises ValueError for a matrix that diffusers could not adapt.
    """
    tensors = (
        (f"{place}.{name}", tensor)
        for place, (rules, adapter) in adapters.items()
        for name, tensor in lora_tensors(rules, adapter, config)
    )
    save(list(tensors), folder, STEM)


def lora_tensors(rules: Rules, adapter: Adapter, config: LoRAConfig) -> Iterator[tuple[str, np.ndarray]]:
    """A and B of every module of theirs. Matrices that we fuse share A and divide B."""
    of_path = {rule.ours: rule for rule in rules if isinstance(rule, Rule)}
    for path, pair in adapter.items():
        rule = of_path.get(path)
        if rule is None or rule.transform.pattern not in (LINEAR.pattern, CONV_AS_LINEAR.pattern) or rule.axis != -1:
            raise ValueError(f"{path} has no equal in diffusers that a LoRA could adapt; leave it out of the targets")
        down, up = np.asarray(pair["down"]), np.asarray(pair["up"]) * np.float32(config.scale)
        spatial = (1, 1) if rule.transform.pattern == CONV_AS_LINEAR.pattern else ()
        chunks = Transform(order=rule.transform.order)
        for name, layer, part in parts_of(rule, up):
            a, b = (down if layer is None else down[layer]).T, chunks.to_theirs(part).T
            module = name.removesuffix(".weight")
            yield f"{module}.lora_A.weight", a.reshape(*a.shape, *spatial)
            yield f"{module}.lora_B.weight", b.reshape(*b.shape, *spatial)
