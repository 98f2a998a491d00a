"""What a collection of images is, in lines that a person reads: `lgm data PATH`."""

import collections
import sys
from collections.abc import Sequence

import numpy as np

from lgm.data.buckets import assign_buckets, bucket_sizes, lost, told_losses
from lgm.data.decoding import stored_size
from lgm.data.grid import save_grid
from lgm.data.images import ImageSet, open_images
from lgm.data.near_duplicates import hash_image, joined, nearest, told
from lgm.data.rows import REPEATS
from lgm.data.sources import Bad
from lgm.data.wordpiece import Tokenizer

SHOWN, LONGEST, SHEET = 10, 100, 40  # rows and bad records printed, letters of each, pictures on a sheet


def describe(source: str, *, caption: str = "text", resolution: int = 512, step: int = 64, checked: int = 10_000,
             tokenizer: str = "emoji64", sheet: str | None = None) -> list[str]:
    """Lines on kind, number, columns, sizes, buckets, captions, ten rows and bad records of a source.

    As many as `checked` images, spread over all, are decoded to find the bad. With `sheet` a PNG of some is written.
    Raises ValueError, one line, for what is no collection of images.
    """
    buckets = bucket_sizes(resolution, step)
    words = Tokenizer(tokenizer, max_length=3)
    bad = Bad(share=1.0)
    try:
        images = open_images(source, resolution=resolution, caption=caption, bad=bad)
    except ValueError as error:  # that nothing is left, which what is bad explains
        reasons = [reason for _, reason in bad.found if reason not in str(error)]
        raise ValueError(f"{reasons[0]}; {error}" if reasons else str(error)) from None
    if not len(images):
        raise ValueError(f"{bad.found[0][1] if bad.found else source}; no image of {source} is left")
    some = np.unique(np.linspace(0, len(images) - 1, min(len(images), max(checked, 1))).astype(int))
    found = _checked(images, some, bad)
    sizes = {place: size for place, (size, _) in found.items()}
    rows = images.rows
    lines = [f"{source}: {images.records.kind}, {len(images):,} images, metadata of "
             f"{rows.table.nbytes / len(rows):,.0f} bytes an image",
             f"columns   {', '.join(rows.fields)}"]
    if REPEATS in rows.table.column_names:
        lines.append(f"repeats   {_counted(rows.values(REPEATS))} (how often an epoch serves an image, and how many)")
    if others := getattr(images.records, "others", ()):
        lines.append(f"left out  {_counted(others)} (files by what their names end in: no kind of image that is read)")
    if "split" in rows.fields:
        lines.append(f"splits    {_counted(rows.values('split'))}")
        lines += _near(images, {place: hashed for place, (_, hashed) in found.items()})
    if sizes:
        height_N, width_N = np.array(list(sizes.values())).T
        ratio = width_N / height_N
        of_bucket = ["{}x{}".format(*buckets[number]) for number in assign_buckets(list(sizes.values()), buckets)]
        lines += [f"sizes     {_range(width_N)} px wide, {_range(height_N)} px high, width / height "
                  f"{ratio.min():.2f} to {ratio.max():.2f}; {len({*sizes.values()}):,} sizes",
                  f"buckets   {_counted(of_bucket)}"
                  f" (height x width, of about {resolution} x {resolution} px, by {step})"]
        lines += _crops(images, sizes, buckets, resolution)
    lines.append(_captions(images, some, caption, words, tokenizer))
    for number in some[np.linspace(0, len(some) - 1, min(SHOWN, len(some))).astype(int)].tolist():
        row = rows[number]
        lines.append(_cut(f"row {number:<5} {row.pop('file_name')}  {row}"))
    of = "all were read" if len(some) == len(images) else f"{len(some):,} were read"
    lines.append(f"bad       {len(bad.found):,} ({of})" if bad.found else f"bad       none ({of})")
    lines += [_cut(f"  {reason}") for _, reason in bad.found[:SHOWN]]
    if len(bad.found) > SHOWN:
        lines.append(f"  and {len(bad.found) - SHOWN:,} more")
    if sheet:
        lines.append(f"sheet     {_write_sheet(images, list(sizes), sheet)}")
    return lines


def run(source: str, **options) -> int:
    """Print what a source is; the exit code."""
    return printed(describe(source, **options))


def printed(lines: Sequence[str]) -> int:
    """Print lines as a terminal can show them; the exit code."""
    encoding = sys.stdout.encoding or "utf-8"
    print("\n".join(line.encode(encoding, "replace").decode(encoding) for line in lines))
    return 0


def _checked(images: ImageSet, places: np.ndarray, bad: Bad) -> dict[int, tuple]:
    """The stored (height, width) and the hash of those of some images that can be decoded; the others are noted."""
    def look(place: int) -> tuple:
        name, content = images.name(place), images.content(place)
        return stored_size(content, name), hash_image(content, name)

    return images.tried(places, look, bad)


def _near(images: ImageSet, hashed: dict[int, tuple]) -> list[str]:
    """A line on held-out images, those of another split than "train", that are nearly training images; none without."""
    places = np.array(list(hashed), np.int64)
    training = np.array([split == "train" for split in images.rows.values("split", places)], bool)
    if training.all() or not training.any():
        return []
    part = lambda chosen: joined([hashed[place] for place in chosen.tolist()])
    known, asked = places[training], places[~training]
    pairs = [(images.name(asked[one]), images.name(known[other]))
             for one, (other, _) in nearest(part(asked), part(known)).items()]
    among = f" (among {len(places):,} that were read)" if len(places) < len(images) else ""
    return [f"near      {told(pairs, len(asked))}{among}"]


def _crops(images: ImageSet, sizes: dict[int, tuple[int, int]], buckets, resolution: int) -> list[str]:
    """What is lost of images by cuts to buckets, and to squares."""
    places, stored = list(sizes), np.array(list(sizes.values()))
    name = lambda number: images.name(places[number])
    cuts = {"buckets": np.array(buckets)[assign_buckets(stored, buckets)],
            "squares": np.full_like(stored, resolution)}
    told = {what: told_losses(name, lost(stored, targets)) for what, targets in cuts.items()}
    return [f"crops     to {what}: {line or 'none loses much'}" for what, line in told.items()]


def _captions(images: ImageSet, places: np.ndarray, field: str, words: Tokenizer, tokenizer: str) -> str:
    texts = [text for text in images.rows.captions(places) if text]
    if not texts:
        return f"captions  none in the field {field!r}"
    lengths = np.array([len(encoding.ids) for encoding in words.tokenizer.encode_batch(texts)])
    letters = np.array([len(text) for text in texts])
    return (f"captions  {len(texts):,} of {len(places):,} in {field!r}: {_range(letters)} letters, {_range(lengths)} "
            f"tokens of {tokenizer}; {len({*texts}):,} different")


def _counted(values) -> str:
    ranked = collections.Counter(map(str, values)).most_common()
    more = f", {len(ranked) - SHOWN} more" if len(ranked) > SHOWN else ""
    return ", ".join(f"{value} {count:,}" for value, count in ranked[:SHOWN]) + more


def _range(values: np.ndarray) -> str:
    low, middle, high = values.min(), int(np.median(values)), values.max()
    return f"{low}" if low == high else f"{low} to {high} (median {middle})"


def _cut(line: str) -> str:
    line = " ".join(line.split())
    return line if len(line) <= LONGEST + 20 else f"{line[: LONGEST + 17]}..."


def _write_sheet(images: ImageSet, places: list[int], path: str) -> str:
    """Pictures in their own shapes on white squares, with captions."""
    side = 128
    if not places:
        return "none: no image can be read"
    chosen = [places[i] for i in np.unique(np.linspace(0, len(places) - 1, min(SHEET, len(places))).astype(int))]
    tiles = np.full((len(chosen), side, side, 3), 255, np.uint8)
    for tile, place in zip(tiles, chosen, strict=True):
        height, width = stored_size(images.content(place), images.name(place))
        scale = side / max(height, width)
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = (side - height) // 2, (side - width) // 2
        tile[top : top + height, left : left + width] = images.image(place, (height, width))
    save_grid(path, tiles, [text or images.name(place).rpartition("/")[2] for place, text in
                            zip(chosen, images.rows.captions(np.array(chosen)), strict=True)], scale=1)
    return path
