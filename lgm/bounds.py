"""What the numbers of a configuration may be: one table, by the name of a field, for every record that a config has.

A field of several records means the same in all, unless "Record.field" says otherwise. Numbers are finite everywhere;
what holds between fields stands in the records and in `lgm.config`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Bound:
    """low <= value <= high, or with `above` and `below` without equality."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether a finite value lies within."""
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high)  # fmt: skip

    def __str__(self) -> str:
        if self.high < math.inf and self.low > -math.inf:
            return f"lie in {'(' if self.above else '['}{self.low:.10g}, {self.high:.10g}{')' if self.below else ']'}"
        if self.low > -math.inf:
            return f"be {'above' if self.above else 'at least'} {self.low:g}"
        return "be finite"


COUNT = Bound(1)  # of things there must be at least one of
SOME = Bound(0)  # of things there may be none of, and weights
POSITIVE = Bound(0, above=True)
SHARE = Bound(0, 1)
PROPER = Bound(0, 1, below=True)
FINITE = Bound()

_GROUPS = {
    COUNT: """total_images batch_size accumulate resolution crop pairs steps times noises keep microbatches rank
        channels latent_channels block_channels layers_per_block patch_size width depth single_depth heads head_width
        group unroll classes base_size position_size vocab_size max_length mlp_width projection_dim token_types
        norm_groups refiner_depth kv_heads base_channels multipliers threads Data.buckets Log.every_images""",
    SOME: """variance l1 l2 gradient kl noise warmup_images decay_images weight_decay clip_norm ramp count every_images
        max_images levels distance checkpoint_every_images replicate_below transformer_depth mid_depth text_dim
        pooled_dim micro_ids beside dual_attention pool""",
    POSITIVE: "lr eps half_life_images clip alpha mlp_ratio scale latents_std position_scale rotary_period epsilon",
    SHARE: "interval final bad_share",
    PROPER: "b1 b2 caption_dropout",
    FINITE: "guidance log_snr shift latents_mean position_offset CausalTextConfig.hidden",
    Bound(0, 2**32 - 1): "seed",
    Bound(2): "micro_dim rotary_axes MMDiTConfig.depth",
    Bound(4): "buckets max_distance",
    Bound(-1): "data fsdp context tensor stage",  # -1 takes what is left; `parallel.make_mesh` says the rest
}
BOUNDS: dict[str, Bound] = {name: bound for bound, names in _GROUPS.items() for name in names.split()}


def bound_of(record: str, field: str) -> Bound | None:
    """The bound of a record's field; None where it has none but finiteness."""
    return BOUNDS.get(f"{record}.{field}", BOUNDS.get(field))


def check_bounds(record: str, values: Mapping[str, Any], path: str = "") -> None:
    """Raise ValueError, one line, for the first of a record's values, or of a list's items, that cannot be."""
    for name, value in values.items():
        bound = bound_of(record, name) or FINITE
        for item in value if isinstance(value, (list, tuple)) else (value,):
            number = isinstance(item, (int, float)) and not isinstance(item, bool)
            if number and not (is_finite(item) and bound.holds(item)):
                every = " everywhere" if isinstance(value, (list, tuple)) else ""
                text = str(value) if len(str(value)) < 80 else f"{str(value)[:40]}..."
                finite = "" if is_finite(item) or bound.high < math.inf or bound == FINITE else " and finite"
                raise ValueError(f"{path}{name}={text} must {bound}{finite}{every}")


def is_finite(value: float) -> bool:
    """Whether a float holds a number's value."""
    try:
        return math.isfinite(value)
    except OverflowError:  # of a whole number
        return False
