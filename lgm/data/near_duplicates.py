"""Held-out images that are nearly training images: found by a perceptual hash, in time for a million of them.

An image's dHash (Krawetz 2013) says of 8 x 8 neighbouring pairs of grey pixels which is lighter: 64 bits, few of which
change when it is compressed, scaled or made brighter. Since flags and emoji of one drawing in many colours have one
hash, colours must be near too.

Two images are near where at most DISTANCE bits differ and 4 x 4 colours by at most COLOUR levels in the mean. Of 561
shipped images, 95% are found at half the size, 96% at JPEG quality 80, 91% at 50, all at nine tenths of the brightness,
70% with 2% cut from every side. Of the 195 held-out images of emoji64 24 are near a training image (a man farmer and a
farmer, one flag under two names), of the 21 of flags 2 (the same flag), and of colours of one drawing none.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lgm.data import kept_hashes
from lgm.data.decoding import picture
from lgm.data.images import ImageSet
from lgm.data.sources import Bad

DISTANCE, COLOUR = 7, 4.0
MOST = 20_000  # images that are hashed at a run's start: some half a minute
CHUNK = 1 << 14  # images whose hashes are kept together: a killed process loses no more
SPEED = 150  # images that a core hashes in a second, of photographs of half a megapixel
NAMED = 5  # pairs that a line names
PARTS = 4  # of a hash, of 16 bits each
ROUGH = 64  # pixels a side that a JPEG may be decoded at


@dataclasses.dataclass(frozen=True)
class Hashes:
    """dHashes uint64 [N] and 4 x 4 colours uint8 [N, 48] of images."""

    bits: np.ndarray
    colours: np.ndarray


def hash_image(content: bytes, name: str) -> tuple[int, np.ndarray]:
    """(dHash, colours uint8 [48]) of an image file. Raises ValueError, one line with `name`, where it is unreadable."""
    image = picture(content, name, (ROUGH, ROUGH))
    grey_HW = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX))
    bits = np.packbits(grey_HW[:, 1:] > grey_HW[:, :-1])
    return int(bits.view(np.uint64)[0]), np.asarray(image.resize((4, 4), Image.Resampling.BOX)).reshape(48)


def hashes(images: ImageSet, known: np.ndarray, marks: np.ndarray) -> tuple[np.ndarray, Hashes]:
    """(the places of those images that can be read, their hashes), from what is known under the images' marks
    (`lgm.data.kept_hashes`); what is not is computed, by the set's threads, and kept."""
    at = np.searchsorted(known["mark"], marks)
    there = np.isin(marks, known["mark"])
    parts = [(np.flatnonzero(there), known[at[there]])]
    new = np.flatnonzero(~there)
    for start in range(0, len(new), CHUNK):
        some = new[start : start + CHUNK]
        found = images.tried(some, lambda place: hash_image(images.content(place), images.name(place)), Bad(share=1.0))
        good, kept = np.array(list(found), np.int64), np.zeros(len(found), kept_hashes.KEPT)
        one = joined(list(found.values()))
        kept["mark"], kept["bits"], kept["colours"] = marks[good], one.bits, one.colours
        kept_hashes.write(images, good, kept)
        parts.append((good, kept))
    places, kept = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(places, kind="stable")
    return places[order], Hashes(kept["bits"][order], kept["colours"][order])


def joined(found: Sequence[tuple[int, np.ndarray]]) -> Hashes:
    """What `hash_image` gave of several."""
    bits = np.array([bits for bits, _ in found], np.uint64)
    return Hashes(bits, np.array([colours for _, colours in found], np.uint8).reshape(-1, 48))


def nearest(asked: Hashes, known: Hashes) -> dict[int, tuple[int, int]]:
    """Number of an asked image -> (number of the known image nearest it, bits that differ), of those that have a near
    one. Exact: of DISTANCE bits that differ, one of four parts has DISTANCE // 4 at most, so only known images that
    share a part but for so many bits are compared (Norouzi, Punjani and Fleet 2012, 1307.2982)."""
    if not len(known.bits):
        return {}
    parts = lambda bits: bits[:, None].view(np.uint16).reshape(len(bits), PARTS)
    index = []
    for part_N in parts(known.bits).T:
        order = np.argsort(part_N, kind="stable")
        index.append((order, np.searchsorted(part_N[order], np.arange((1 << 16) + 1))))
    flips = np.array([0, *(1 << np.arange(16))], np.int64)  # DISTANCE // PARTS = 1
    found = {}
    for number, (bits, part_P) in enumerate(zip(asked.bits, parts(asked.bits).astype(np.int64), strict=True)):
        ranges = [(order, at[part ^ flips], at[(part ^ flips) + 1]) for (order, at), part in
                  zip(index, part_P, strict=True)]
        if sum(int((last - first).sum()) for _, first, last in ranges) < len(known.bits):
            others = np.concatenate([order[a:b] for order, first, last in ranges
                                     for a, b in zip(first.tolist(), last.tolist(), strict=True)])
        else:
            others = np.arange(len(known.bits))
        apart = np.bitwise_count(known.bits[others] ^ bits)
        others, apart = others[apart <= DISTANCE], apart[apart <= DISTANCE]
        colour = _colour_apart(known.colours[others].astype(np.float32), asked.colours[number].astype(np.float32))
        alike = np.flatnonzero(colour <= COLOUR)
        if len(alike):
            best = alike[np.lexsort((others[alike], colour[alike], apart[alike]))[0]]
            found[number] = int(others[best]), int(apart[best])
    return found


def _colour_apart(known_NC: np.ndarray, asked_C: np.ndarray) -> np.ndarray:
    """Mean levels between colours once one image is made as bright as the other, which may take a sixth: [N]."""
    scale_N = np.clip((asked_C.mean() + 1) / (known_NC.mean(axis=1) + 1), 5 / 6, 6 / 5)
    return np.abs(known_NC * scale_N[:, None] - asked_C).mean(axis=1)


def overlap(training: ImageSet, heldout: ImageSet, most: float = MOST) -> tuple[int, str]:
    """(held-out images that are near training images, a line that says so and names some); (0, a line that nothing was
    looked for, and what would) where the hashes of more than `most` images are not kept yet, and (0, "") where there is
    nothing to say."""
    if not len(heldout) or not len(training):
        return 0, ""
    sets = (training, heldout)
    marks = [kept_hashes.marks(part, np.arange(len(part))) for part in sets]
    kept = [kept_hashes.read(part, mine) for part, mine in zip(sets, marks, strict=True)]
    new = sum(int((~np.isin(mine, known["mark"])).sum()) for mine, known in zip(marks, kept, strict=True))
    if new > most:
        minutes = new / (SPEED * training.threads) / 60
        why = f"more than {most:,}" if most else "and a run from config.data.cache reads none"
        return 0, (f"near duplicates of held-out images are not looked for: {new:,} of {sum(map(len, sets)):,} images "
                   f"were not hashed yet, {why}; lgm data --config=PAGE does that once, in some "
                   f"{math.ceil(minutes):,} minutes on {training.threads} cores, and a run's start looks from then on")
    (places, known), (asked_places, asked) = map(hashes, sets, kept, marks)
    found = nearest(asked, known)
    pairs = [(heldout.name(asked_places[a]), training.name(places[b])) for a, (b, _) in found.items()]
    return len(found), told(pairs, len(heldout)) if found else ""


def told(pairs: Sequence[tuple[str, str]], count: int) -> str:
    """A line on (held-out image, training image) of so many held-out ones."""
    line = f"{len(pairs) or 'none'} of {count:,} held-out images are near duplicates of training images"
    rest = f" and {len(pairs) - NAMED:,} more" if len(pairs) > NAMED else ""
    return line + ": " * bool(pairs) + ", ".join(f"{one} of {other}" for one, other in pairs[:NAMED]) + rest
