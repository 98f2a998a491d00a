"""Images a second that reading, decoding and batching bring, by format and size, beside PIL in PyTorch's loader.

    python tools/data_speed.py --images=200 --sides=256,512,1024

Photographs' stand-ins (smooth noise, JPEG at quality 90) are written in each format, and read by one thread and by as
many as there are cores. PyTorch's DataLoader, with as many workers and Pillow's plain calls, reads the folder; without
PyTorch its column is left out. `--rows=1000000`: what it takes to open so many lines of metadata.
"""

import argparse
import io
import json
import resource
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lgm.data import batches, open_images
from lgm.data.batches import cores


def photographs(count, side, seed=0):
    """Encoded JPEGs of 1.25 x `side` pixels a side."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8))
        buffer = io.BytesIO()
        small.resize((side * 5 // 4,) * 2, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def write(root, pictures):
    """The folder, the tar and the Parquet shard of some pictures."""
    (root / "folder").mkdir()
    for number, picture in enumerate(pictures):
        (root / "folder" / f"{number:05d}.jpg").write_bytes(picture)
        (root / "folder" / f"{number:05d}.txt").write_text(f"picture {number}")
    with tarfile.open(root / "pictures.tar", "w") as archive:
        for path in sorted((root / "folder").iterdir()):
            archive.add(path, path.name)
    pq.write_table(pa.table({"image": pictures, "text": [f"picture {i}" for i in range(len(pictures))]}),
                   root / "pictures.parquet", row_group_size=64)
    return {"folder": root / "folder", "tar": root / "pictures.tar", "parquet": root / "pictures.parquet"}


def ours(path, side, size, threads, steps):
    """Images a second of `lgm.data.batches`."""
    images = open_images(str(path), resolution=side, threads=threads)
    iterator = batches({}, image=images.image, length=len(images), batch_size=size, seed=0, threads=threads)
    next(iterator)
    start = time.perf_counter()
    for _ in range(steps):
        next(iterator)
    return steps * size / (time.perf_counter() - start)


def torchs(path, side, size, workers, steps):
    """Images a second of PyTorch's DataLoader over the same files; None without PyTorch."""
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        return None
    files = sorted(Path(path).glob("*.jpg"))
    loader = iter(DataLoader(_Files(files, side), batch_size=size, shuffle=True, num_workers=workers, drop_last=True,
                             collate_fn=np.stack))
    next(loader)
    start, count = time.perf_counter(), 0
    for _ in range(steps):
        try:
            count += len(next(loader))
        except StopIteration:
            break
    return count / (time.perf_counter() - start)


class _Files:
    def __init__(self, files, side):
        self.files, self.side = files, side

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        from PIL import ImageOps

        with Image.open(self.files[i]) as image:
            return np.asarray(ImageOps.fit(image.convert("RGB"), (self.side, self.side), Image.Resampling.LANCZOS))


def rows(count):
    """Seconds and bytes a row of opening a table of `count` lines that name a few files."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for number in range(4):
            Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
        with open(folder / "metadata.jsonl", "w") as file:
            for number in range(count):
                file.write(json.dumps({"file_name": f"{number % 4}.png", "text": f"a caption of some words, {number}",
                                       "width": 640 + number % 7, "height": 480, "split": "train"}) + "\n")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        images = open_images(str(folder), {"split": "train"})
        seconds = time.perf_counter() - start
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        print(f"{len(images):,} rows: {seconds:.1f} s, {images.rows.nbytes / count:.0f} bytes a row kept, "
              f"{peak / count:.0f} at the peak ({(folder / 'metadata.jsonl').stat().st_size / count:.0f} in the file)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--sides", default="256,512,1024")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rows", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.rows:
        return rows(arguments.rows)
    steps = max(1, arguments.images // arguments.batch - 1)
    print(f"{cores()} cores; images a second")
    for side in map(int, arguments.sides.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            places = write(Path(folder), list(photographs(arguments.images, side)))
            for kind, path in places.items():
                one, most = (ours(path, side, arguments.batch, threads, steps) for threads in (1, cores()))
                beside = torchs(path, side, arguments.batch, cores(), steps) if kind == "folder" else None
                beside = f"  torch with {cores()} workers {beside:8.1f}" if beside else ""
                print(f"{side:5d} px {kind:8s} one thread {one:8.1f}  {cores()} threads {most:8.1f}{beside}",
                      flush=True)
    return None


if __name__ == "__main__":
    sys.exit(main())
