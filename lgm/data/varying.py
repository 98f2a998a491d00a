"""What is done to an image and its caption anew each time they are served.

All is drawn from (seed, serving number) alone, the n-th record that a run takes: so it is the same on any number of
processes, and for a run that is resumed. Pixels and words are drawn apart: asking for one changes nothing in the other.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

PIXELS, WORDS = 1, 2


def generator(seed: int, serving: int, stream: int) -> np.random.Generator:
    """The random numbers of one serving, of `PIXELS` or `WORDS`."""
    return np.random.default_rng((seed, serving, stream))


@dataclasses.dataclass(frozen=True)
class View:
    """How an image that was scaled to cover a size is cut to it: at `place`, the (down, right) shares in [0, 1) of all
    whole pixels where the cut may lie, or in the middle; and whether it is `flipped`, left to right."""

    place: tuple[float, float] | None = None
    flipped: bool = False

    def corner(self, stored: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """(top, left) of the cut in pixels of the scaled image, as it was before it was flipped."""
        spare = _spare(stored, size)
        if self.place is None:
            return tuple(round(side / 2) for side in spare)
        return tuple(int(share * (round(side) + 1)) for share, side in zip(self.place, spare, strict=True))

    def centre(self, stored: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
        """The same as (down, right) shares of what is to spare."""
        if self.place is None:
            return 0.5, 0.5
        corner, spare = self.corner(stored, size), _spare(stored, size)
        return tuple(at / round(side) if round(side) else 0.5 for at, side in zip(corner, spare, strict=True))

    def told(self, stored: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """(top, left) of the cut as SDXL is told it: in the image as it is seen, which may be flipped."""
        top, left = self.corner(stored, size)
        return top, round(_spare(stored, size)[1]) - left if self.flipped else left


def _spare(stored: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Pixels (down, right) by which an image that is scaled to cover a size exceeds it."""
    scale = max(size[0] / stored[0], size[1] / stored[1])
    return tuple(side * scale - wanted for side, wanted in zip(stored, size, strict=True))


def view(seed: int, serving: int, flip: bool, crop: bool) -> View:
    """What is drawn for a serving of an image: half of them are flipped, all places of a cut are as likely."""
    down, right, coin = generator(seed, serving, PIXELS).random(3).tolist()
    return View((down, right) if crop else None, flip and coin < 0.5)


def caption(choices: Sequence[str], seed: int, serving: int, tags=None) -> str:
    """One of an image's captions, all as likely, its tags arranged as a `lgm.config.Tags` says."""
    if len(choices) == 1 and tags is None:
        return choices[0]
    random = generator(seed, serving, WORDS)
    chosen = choices[random.integers(len(choices))]
    return chosen if tags is None else arranged(chosen, tags.keep, tags.shuffle, tags.dropout, random)


def arranged(text: str, keep: int, shuffle: bool, dropout: float, random: np.random.Generator) -> str:
    """A list of tags, separated by commas, of which the first `keep` stay where they are; the others come in another
    order, less each with probability `dropout`. One tag is left at the least."""
    tags = [tag for part in text.split(",") if (tag := part.strip())]
    first, rest = tags[:keep], tags[keep:]
    order, coins = random.permutation(len(rest)), random.random(len(rest))
    rest = [rest[place] for place in order] if shuffle else rest
    left = [tag for tag, coin in zip(rest, coins, strict=True) if coin >= dropout]
    return ", ".join([*first, *left] or rest[:1] or [text])
