"""Captions that name a class: what a class-conditional denoiser is told instead of text."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lgm.parsing import near_miss


@dataclasses.dataclass(frozen=True)
class ClassNames:
    """Names to labels 0 ... `classes` - 1; the label `classes` itself stands for none. `labels` are in lower case."""

    classes: int
    labels: Mapping[str, int]

    def encode(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(labels [B, 1] int32, mask [B, 1] True). Raises ValueError, one line, for a caption that names no class."""
        ids = np.array([[self.number(caption)] for caption in captions], np.int32).reshape(-1, 1)
        return ids, np.ones(ids.shape, bool)

    @property
    def unconditional(self) -> tuple[np.ndarray, np.ndarray]:
        """Label and mask [1] of no class."""
        return np.array([self.classes], np.int32), np.zeros(1, bool)

    def number(self, caption: str) -> int:
        """The class of "class 207", "207" or a name."""
        word = caption.strip().lower()
        if word in self.labels:
            return self.labels[word]
        number = word.removeprefix("class").strip()
        if number.isdecimal():
            if int(number) >= self.classes:
                raise ValueError(f"{caption!r}: there are {self.classes} classes, from 0 to {self.classes - 1}")
            return int(number)
        hint = near_miss(word, self.labels) if self.labels else ""
        hint = hint if "did you mean" in hint or len(self.labels) < 20 else ""  # not a list of a thousand
        raise ValueError(f'{caption!r} names no class; write "class 207" or a name{hint}')


def class_names(classes: int, names: Sequence[str]) -> ClassNames:
    """The i-th of `names` is class i."""
    return ClassNames(classes, {name.strip().lower(): i for i, name in enumerate(names)})
