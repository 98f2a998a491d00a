"""DiT and SiT: told a class by its number; captions are classes, by number or by the folder's names for them."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from lgm.data.class_names import ClassNames
from lgm.interop.keys_dit import per_block
from lgm.models import Conditioning
from lgm.systems.release import Defaults, Ids, Pipeline, Released


def class_names(pipeline: Pipeline) -> ClassNames:
    """The classes, with the names of the folder's id2label."""
    labels = pipeline.options.get("id2label") or {}
    names = {name.strip().lower(): int(key) for key, value in labels.items() for name in value.split(",")}
    return ClassNames(pipeline.conditioning.classes, names)


def tokenize(pipeline: Pipeline, prompts: Sequence[str], t5_tokens: int) -> Ids:
    return {"label": class_names(pipeline).encode(prompts)[0]}


DIT = Released(
    "DiTPipeline", "dit", "transformer", "DiTTransformer2DModel",
    encode=lambda pipeline, run, ids, size, score: Conditioning(label=jnp.asarray(ids["label"])[:, 0]),
    defaults=lambda pipeline: Defaults(50, 4.0),
    autoencoder=("autoencoder", "sd15"),
    tokenize=tokenize,
    nothing=lambda pipeline, count, _: {"label": np.full((count, 1), pipeline.conditioning.classes, np.int32)},
    old_names={"Transformer2DModel": "DiTTransformer2DModel"},  # as the released folders have it
    form=per_block,
    kohya=None,
)  # fmt: skip
