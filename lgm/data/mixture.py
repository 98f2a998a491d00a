"""The images that a config names: those of one source, or several image sets as one, each image known by its set."""

from collections.abc import Mapping

import numpy as np

from lgm.data.images import ImageSet, open_two
from lgm.data.rows import JOINED_FROM, RECORD, joined
from lgm.data.sources import Bad
from lgm.parsing import ConfigError


def open_data(data, bad: Bad | None = None) -> tuple[ImageSet, ImageSet]:
    """(training images, held-out images) of a `lgm.config.Data`, each of whose sources is opened once."""
    bad = Bad(data.bad_share) if bad is None else bad
    train, heldout = open_parts(data, bad)
    return (*train.values(), *heldout.values()) if isinstance(data.source, str) else (mixture(train), mixture(heldout))


def open_heldout(data, bad: Bad | None = None) -> ImageSet:
    """The held-out images of a `lgm.config.Data`."""
    return open_data(data, bad)[1]


def open_parts(data, bad: Bad) -> tuple[dict[str, ImageSet], dict[str, ImageSet]]:
    """(training images, held-out images) of each source, by name."""
    if isinstance(data.source, str):
        images, heldout = open_two(data.source, data.where, data.heldout_where, data, data.caption, bad)
        return {data.source: images}, {data.source: heldout}
    otherwise = lambda value, common: common if value is None else value
    sets = {}
    for part in data.source:
        where, heldout = otherwise(part.where, data.where), otherwise(part.heldout_where, data.heldout_where)
        try:
            sets[part.name] = open_two(part.source, where, heldout, data, otherwise(part.caption, data.caption), bad)
        except ValueError as error:
            raise ConfigError(f"config.data.source.{part.name}: {error}") from None
    return {name: one for name, (one, _) in sets.items()}, {name: other for name, (_, other) in sets.items()}


class Joined:
    """The source: the records of all sets, one set after the other."""

    kind = "mixture"

    def __init__(self, sets: Mapping[str, ImageSet]):
        self.sets = list(sets.values())
        self.rows = joined({name: images.rows for name, images in sets.items()})
        self.part, self.record = (self.rows.table[name].to_numpy() for name in (JOINED_FROM, RECORD))

    def read(self, i: int) -> bytes:
        """The encoded image of record `i`."""
        return self.sets[self.part[i]].records.read(int(self.record[i]))

    def stamp(self, i: int) -> str:
        """What changes where the image of record `i` does."""
        return self.sets[self.part[i]].records.stamp(int(self.record[i]))


def mixture(sets: Mapping[str, ImageSet]) -> ImageSet:
    """One set of all images of several, by name; each image is called NAME/FILE. The sets take turns in it, so that any
    first part of it has as much of each as there is of it.

    Raises ConfigError, one line, where one has captions and another has not.
    """
    told = {name: bool(images.rows.told().any()) for name, images in sets.items() if images.rows.captioned}
    if any(told.values()) and not all(told.values()):
        silent = next(name for name, some in told.items() if not some)
        other = next(name for name, some in told.items() if some)
        raise ConfigError(f"config.data.source.{silent} has no captions, and {other} has; say which field they are, "
                          "caption='...', or caption='' for none")
    records, first = Joined(sets), next(iter(sets.values()))
    images = ImageSet("", records, records.rows, first.resolution, first.threads)
    place = np.concatenate([(np.arange(len(images)) + 0.5) / len(images) for images in sets.values()])
    return images.take(np.argsort(place, kind="stable"))
