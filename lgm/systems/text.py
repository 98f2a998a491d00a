"""What a system of a folder tells its denoiser of prompts, and its text encoders as the frozen text side of a run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgm.models import Conditioning, Model, Params, family_of
from lgm.systems.folders import load_pipeline
from lgm.systems.release import SCORES, TEXT, Ids, Pipeline, Run


def conditions(pipeline: Pipeline, params: Mapping[str, Params], prompts: Sequence[str], size: tuple[int, int],
               negative: str | None, guidance: float, guided: bool, t5_tokens: int | None = None,
               ) -> tuple[Conditioning, Conditioning | None]:  # fmt: skip
    """(the conditioning of `prompts` for images of `size` (height, width) in pixels, what guidance extrapolates from if
    they are `guided`): the conditioning of `negative`, or of no prompt at all.

    SDXL's folder may ask that no prompt be zeros instead of the encoding of an empty text. `guidance` goes to a
    denoiser that was distilled with it (Flux.1-dev) and is ignored by the others; `t5_tokens` is the length that texts
    are padded to for T5, by default what the system's own program takes.
    """
    count = len(prompts)
    cond = encode(pipeline, params, tokenize(pipeline, prompts, t5_tokens), size, guidance)
    if not guided:
        return cond, None
    ids = nothing(pipeline, count, t5_tokens) if negative is None else tokenize(pipeline, [negative] * count, t5_tokens)
    none = encode(pipeline, params, ids, size, guidance, SCORES[1])
    if negative is None and zeros_for_nothing(pipeline):
        none = dataclasses.replace(none, text=jnp.zeros_like(none.text), pooled=jnp.zeros_like(none.pooled))
    return cond, none


def tokenize(pipeline: Pipeline, prompts: Sequence[str], t5_tokens: int | None = None) -> Ids:
    """The ids [B, L] of `prompts` for every text encoder by its place; of a class-conditional system their labels."""
    return pipeline.system.tokenize(pipeline, prompts, t5_tokens or pipeline.system.t5_tokens(pipeline.conditioning))


def nothing(pipeline: Pipeline, count: int, t5_tokens: int | None = None) -> Ids:
    """The ids of no prompt."""
    return pipeline.system.nothing(pipeline, count, t5_tokens or pipeline.system.t5_tokens(pipeline.conditioning))


def zeros_for_nothing(pipeline: Pipeline) -> bool:
    """Whether no prompt is told by zeros."""
    return bool(pipeline.options.get("force_zeros_for_empty_prompt"))


def encode(pipeline: Pipeline, params: Mapping[str, Params], ids: Ids, size: tuple[int, int], guidance: float = 1.0,
           score: float = SCORES[0]) -> Conditioning:
    """The conditioning of what `tokenize` gives. `score` is what SDXL's refiner is told of the picture."""
    run = lambda place: run_encoder(pipeline.models[place], params[place], ids[place])
    return told(pipeline, run, ids, size, guidance, score)


def run_encoder(model: Model, params: Params, ids_BL) -> Any:
    """What a text encoder makes of ids."""
    return _apply(model, family_of(model.config).masked, params, ids_BL)


def told(pipeline: Pipeline, run: Run, ids: Ids, size: tuple[int, int], guidance: float = 1.0,
         score: float = SCORES[0]) -> Conditioning:
    """The conditioning of what `run` says that the text encoders make of `ids`."""
    cond = pipeline.system.encode(pipeline, run, ids, size, score)
    if not pipeline.conditioning.guidance:
        return cond
    return dataclasses.replace(cond, guidance=jnp.full(len(next(iter(ids.values()))), guidance, jnp.float32))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(model: Model, masked: bool, params: Params, ids_BL):
    return model.apply(params, jnp.maximum(ids_BL, ~ids_BL), ids_BL >= 0) if masked else model.apply(params, ids_BL)


@dataclasses.dataclass(frozen=True, eq=False)
class FolderText:
    """The frozen text encoders and tokenizers of a diffusers folder, as a run's text side.

    Captions become one row of ids: those of all encoders side by side, in the order of `lengths`. `size` is that of
    the images, which SDXL is told. A class-conditional system's captions name classes.
    """

    pipeline: Pipeline
    size: tuple[int, int]
    lengths: Mapping[str, int]

    def encode(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids [B, L] int32, mask [B, L] bool); a row of the mask is False where there is no caption."""
        ids = self._joined(tokenize(self.pipeline, captions))
        return ids, np.ones(ids.shape, bool)

    @property
    def unconditional(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask [L] of no caption."""
        ids = self._joined(nothing(self.pipeline, 1))[0]
        return ids, np.zeros(ids.shape, bool)

    def condition(self, params: Mapping[str, Params], ids_BL: jax.Array, mask_BL: jax.Array) -> Conditioning:
        """What the denoiser is told, as the folder's own pipeline tells it."""
        ends = np.cumsum(list(self.lengths.values()))[:-1]
        ids = dict(zip(self.lengths, jnp.split(ids_BL, ends, 1), strict=True))
        cond = encode(self.pipeline, params, ids, self.size, self.pipeline.defaults.guidance)
        return self.with_nothing(cond, mask_BL.any(1))

    def with_nothing(self, cond: Conditioning, some_B: jax.Array) -> Conditioning:
        """`cond` with what stands for no caption where there is none, `some_B` being False."""
        if self.pipeline.scored:
            scores_B = jnp.where(some_B, *SCORES)
            cond = dataclasses.replace(cond, micro=cond.micro.at[:, -1].set(scores_B))
        if not zeros_for_nothing(self.pipeline):
            return cond
        text = jnp.where(some_B[:, None, None], cond.text, 0)
        return dataclasses.replace(cond, text=text, pooled=jnp.where(some_B[:, None], cond.pooled, 0))

    def _joined(self, ids: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([ids[place] for place in self.lengths], 1).astype(np.int32)


def text_of(pipeline: Pipeline, size: tuple[int, int]) -> FolderText:
    """The text side of a system, of images of `size`."""
    return FolderText(pipeline, size, {place: ids.shape[1] for place, ids in nothing(pipeline, 1).items()})


def load_text(folder: str, size: tuple[int, int], dtype: str, shard: Callable[[Model], Any] | None = None,
              classes: Sequence[str] = (), only: Collection[str] = TEXT) -> tuple[FolderText, dict[str, Params]]:
    """(the text side of a folder, the parameters of its text encoders by place, of those in `only`), computed and held
    in `dtype`.

    `classes` are names for those of a class-conditional system, in the place of its own.
    """
    pipeline, params = load_pipeline(folder, dtype=dtype, shard=shard, only=only)
    if classes:
        pipeline = dataclasses.replace(pipeline, options={**pipeline.options, "id2label": dict(enumerate(classes))})
    return text_of(pipeline, size), params
