"""Images a second that reading, decoding, scaling and batching bring, beside two other loaders on the same files.

    python tools/data_speed.py                      # a table by format and size, then the cores that feed a chip
    python tools/data_speed.py --alone              # of one image at a time, for a machine that has other work
    python tools/data_speed.py --rows=1000000       # what so many lines of metadata cost, opened by 4 processes

Photographs' stand-ins (smooth noise, quality 90) of `times` the trained size a side are written as JPEG, PNG and WebP.
Each loader reads them shuffled on all cores in a process of its own, the loaders in turns, and each one's best round
counts: images a second, and images a second of processor time, which other work on the machine disturbs less.

    lgm          `lgm.data.batches`: threads
    torch        torch.utils.data, one worker process a core, Pillow: convert, then ImageOps.fit by Lanczos
    tf           tf.data, decode_image and an antialiased Lanczos resize, all parallelism AUTOTUNE
    tf-aliased   the same with TensorFlow's default resize, bilinear without antialiasing: less work, other pixels

Loaders whose package is not installed are left out (TensorFlow is no dependency: pip install tensorflow-cpu).
"""

import argparse
import io
import itertools
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from lgm.data import batches, open_images
from lgm.data.batches import cores

FORMATS = {"jpeg": dict(quality=90), "png": {}, "webp": dict(quality=90)}
NEEDS = {"lgm": "lgm", "torch": "torch", "tf": "tensorflow", "tf-aliased": "tensorflow"}
SHARDS = ("tar", "parquet")  # read by lgm alone
PLANS = Path(__file__).parent / "plans"
PEAKS = {"H100": 989e12, "v5p": 459e12}  # bfloat16 FLOP/s of one chip
# (name, side, training FLOPs an image, MFU) of what has no plan: three times the forward pass, at an MFU assumed
OTHERS = (("dit_xl_2", 256, 3 * 237e9, 0.5), ("sd15", 512, 3 * 803e9, 0.5))


def photographs(count, side, form="jpeg", seed=0):
    """Encoded images of `side` pixels a side."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (side // 10, side // 10, 3), np.uint8))
        buffer = io.BytesIO()
        small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, form, **FORMATS[form])
        yield buffer.getvalue()


def write(root, pictures, form):
    """A folder of pictures, and a tar and a Parquet shard of the same."""
    folder = root / "folder"
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        (folder / f"{number:05d}.{form}").write_bytes(picture)
    with tarfile.open(root / "pictures.tar", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    pq.write_table(pa.table({"image": pictures}), root / "pictures.parquet", row_group_size=64)
    return {"folder": folder, "tar": root / "pictures.tar", "parquet": root / "pictures.parquet"}


def measure(loader, path, side, size, count):
    """(images a second, images a second of processor time) of a loader over `count` images, its start included."""
    make = {"lgm": _lgm, "torch": _torch, "tf": _tensorflow, "tf-aliased": _tensorflow}[loader]
    batches_of = make(path, side, size, count, *([False] if loader == "tf-aliased" else []))
    used = lambda: sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    start, before = time.perf_counter(), used()
    seen = 0
    for batch in batches_of():
        assert batch.shape == (size, side, side, 3) and batch.dtype == np.uint8, (batch.shape, batch.dtype)
        seen += len(batch)
    return seen / (time.perf_counter() - start), seen / (used() - before)


def _lgm(path, side, size, count):
    images, read, none = open_images(str(path), resolution=side), itertools.count(), np.zeros((side, side, 3), np.uint8)
    # the others end: what this one reads ahead of its last batch must not be work
    image = lambda index: images.image(index) if next(read) < count // size * size else none

    def run():
        iterator = batches({}, image=image, length=len(images), batch_size=size, seed=0)
        for _ in range(count // size):
            yield next(iterator)["image"]

    return run


def _torch(path, side, size, count):
    from torch.utils.data import DataLoader, RandomSampler

    files = _Files(sorted(Path(path).iterdir()), side)
    sampler = RandomSampler(files, replacement=True, num_samples=count // size * size)
    return lambda: iter(DataLoader(files, batch_size=size, sampler=sampler, num_workers=cores(), collate_fn=np.stack))


class _Files:
    def __init__(self, files, side):
        self.files, self.side = files, side

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        with Image.open(self.files[i]) as image:
            return np.asarray(ImageOps.fit(image.convert("RGB"), (self.side, self.side), Image.Resampling.LANCZOS))


def _tensorflow(path, side, size, count, antialias=True):
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    import tensorflow as tf

    files = [str(file) for file in sorted(Path(path).iterdir())]
    decoded = _decoded(tf, side, antialias)
    data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat().take(count // size * size)
    data = data.map(decoded, num_parallel_calls=tf.data.AUTOTUNE).batch(size).prefetch(tf.data.AUTOTUNE)
    return data.as_numpy_iterator


def _decoded(tf, side, antialias=True):
    def decoded(name):
        image = tf.io.decode_image(tf.io.read_file(name), channels=3, expand_animations=False)
        image = tf.image.resize(image, (side, side), "lanczos3" if antialias else "bilinear", antialias=antialias)
        return tf.saturate_cast(tf.round(image), tf.uint8)

    return decoded


def alone(sides, times, forms, tries=40):
    """Print the processor time that each loader's reading of one image takes, of several tries by turns the least,
    which other work on the machine disturbs least; the better peer's over lgm's, of the least and of the medians."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(f"milliseconds of a core an image, least of {tries}{'':8s}lgm    torch       tf   the better's / lgm's "
          "(of medians)")
    for side in sides:
        graph = tf.function(_decoded(tf, side), input_signature=[tf.TensorSpec([], tf.string)])
        for form, by in ((form, by) for form in forms for by in times):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"0.{form}"
                file.write_bytes(next(photographs(1, round(side * by), form)))
                images, files, name = open_images(folder, resolution=side), _Files([file], side), tf.constant(str(file))
                ways = [lambda: images.image(0), lambda: files[0], lambda: graph(name).numpy()]
                taken = np.zeros((tries, len(ways)))
                for one in taken:
                    for way, act in enumerate(ways):
                        start = time.process_time()
                        act()
                        one[way] = time.process_time() - start
            least, median = taken.min(0), np.median(taken, 0)
            print(f"{side:5d} px {form:5s} of {by:4g}x{'':20s}" + "".join(f"{1e3 * one:9.2f}" for one in least)
                  + "{:12.2f} ({:.2f})".format(*(found[1:].min() / found[0] for found in (least, median))), flush=True)


def table(sides, times, forms, images, size, rounds):
    """Print every loader's speed; {side: lgm's images a second of one core for JPEG of the smallest `times`}."""
    loaders = [name for name, package in NEEDS.items() if find_spec(package)]
    print(f"{cores()} cores; images a second (in brackets: of one core's time), {size} a batch")
    print(f"{'':36s}" + "".join(f"{name:>18s}" for name in loaders) + "    lgm / best of torch and tf")
    speeds = {}
    for side in sides:
        for form, times_side in ((form, by) for form in forms for by in times):
            count = max(images * 256 // side, 2 * size)
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                pictures = list(photographs(min(count, 64), round(side * times_side), form))
                places = write(root, pictures, form)
                where = [(name, "folder") for name in loaders]
                if form == "jpeg" and times_side == min(times):
                    where += [("lgm", kind) for kind in SHARDS]
                best = dict.fromkeys(where, (0.0, 0.0))
                for _ in range(rounds):
                    for one in where:
                        found = _apart(one[0], places[one[1]], side, size, count)
                        best[one] = tuple(map(max, best[one], found))
            shown = lambda speed: f"{speed[0]:8.1f} ({speed[1]:7.1f})"
            others = [best[name, "folder"] for name in loaders if name in ("torch", "tf")]
            ratio = [best["lgm", "folder"][i] / max(other[i] for other in others) for i in range(2) if others]
            ratio = "{:10.2f} ({:.2f})".format(*ratio) if ratio else ""
            mean = sum(map(len, pictures)) // len(pictures)
            columns = "".join(f"{shown(best[name, 'folder']):>18s}" for name in loaders)
            print(f"{side:5d} px {form:5s} of {times_side:4g}x, {mean >> 10:6,} KB  folder{columns}{ratio}", flush=True)
            for one in where[len(loaders):]:
                print(f"{'':26s}{one[1]:>10s}{shown(best[one]):>18s}", flush=True)
            if form == "jpeg" and times_side == min(times):
                speeds[side] = best["lgm", "folder"][1]
    return speeds


def _apart(loader, path, side, size, count):
    """`measure` in a process of its own."""
    words = [sys.executable, __file__, "--measure", loader, str(path), str(side), str(size), str(count)]
    said = subprocess.run(words, capture_output=True, text=True)
    if said.returncode:
        sys.exit(f"{loader} failed:\n{said.stderr[-2000:]}")
    return json.loads(said.stdout.splitlines()[-1])


def feeding(speeds):
    """Print how many cores feed one chip with JPEGs, for every released system at the MFU of its best plan."""
    chosen = {}
    for path in sorted(PLANS.glob("*.json")):
        plan = json.loads(path.read_text())
        one = (plan["name"], 1024, plan["model_flops"] * plan["chips"] / plan["batch_size"], plan["mfu"])
        chosen[plan["name"]] = max(one, chosen.get(plan["name"], one), key=lambda one: one[3])
    print("\nimages a second of one chip, and cores like these that decode as many (trained from pixels; from latents "
          "that `lgm encode` kept, none decode)")
    for name, side, flops, mfu in (*OTHERS, *chosen.values()):
        if side in speeds:
            rates = {chip: mfu * peak / flops for chip, peak in PEAKS.items()}
            print(f"{name:12s} {side:5d} px at {mfu:.0%} MFU  " + "   ".join(
                f"{chip} {rate:7.1f}/s, {rate / speeds[side]:5.2f} cores" for chip, rate in rates.items()))


def python_alone(count=400):
    """Print what Python itself takes of an image, seen where there are next to no pixels."""
    with tempfile.TemporaryDirectory() as folder:
        places = write(Path(folder), list(photographs(20, 20)), "jpeg")
        images = open_images(str(places["folder"]), resolution=16)
        start = time.process_time()
        for number in range(count):
            images.image(number % 20)
        seconds = (time.process_time() - start) / count
    print(f"\nPython holds its lock at most {1e3 * seconds:.2f} ms an image: one process serves up to "
          f"{1 / seconds:,.0f} a second, on however many cores")


def rows(count, processes=4):
    """Print what it costs several processes at once to open a table of so many lines that name a few files."""
    write_table = {"jsonl": _json_lines, "csv": pc.write_csv, "parquet": pq.write_table}
    numbers = range(count)
    table = pa.table({
        "file_name": [f"{number % 4}.png" for number in numbers],
        "text": [f"a caption of some words, {number}" for number in numbers],
        "width": [640 + number % 7 for number in numbers], "height": [480] * count,
        "split": ["train" if number % 50 else "heldout" for number in numbers]})
    print(f"{count:,} rows opened by {processes} processes at once on {cores()} cores")
    for form, write_form in write_table.items():
        with tempfile.TemporaryDirectory() as folder:
            for number in range(4):
                Image.new("RGB", (8, 8)).save(f"{folder}/{number}.png")
            path = Path(folder) / f"metadata.{form}"
            write_form(table, path)
            words = [sys.executable, __file__, "--open", folder]
            running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
            found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
            seconds, used, kept, before, peak = (max(one[name] for one in found) for name in found[0])
            each = lambda amount: f"{amount / count:.0f}"
            print(f"{form:8s} {seconds:5.1f} s ({used:.1f} s of a core each); bytes a row: {each(path.stat().st_size)} "
                  f"in the file, {each(kept)} kept, {each(peak - before)} at the peak; a process has {before >> 20} MB "
                  f"before, {peak >> 20} MB at most", flush=True)


def _json_lines(table, path):
    """Write JSON lines."""
    with open(path, "w") as file:
        for batch in table.to_batches(1 << 14):
            file.writelines(f"{json.dumps(row)}\n" for row in batch.to_pylist())


def opened(folder):
    """What opening one folder takes of this process."""
    # not ru_maxrss, which begins with that of the process that started this one
    most = lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) << 10
    before, start, used = most(), time.perf_counter(), time.process_time()
    images = open_images(folder, {"split": "train"})
    return {"seconds": time.perf_counter() - start, "used": time.process_time() - used, "kept": images.rows.nbytes,
            "before": before, "peak": most()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default="256,512,1024", help="trained sizes in pixels (default: 256,512,1024)")
    parser.add_argument("--times", default="1.25,3", help="sides of the files over those (default: 1.25,3)")
    parser.add_argument("--formats", default=",".join(FORMATS), help="of the files (default: jpeg,png,webp)")
    parser.add_argument("--images", type=int, default=400, help="of 256 px in a round, fewer of more (default: 400)")
    parser.add_argument("--rounds", type=int, default=2, help="of which the best counts (default: 2)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--alone", action="store_true", help="one image at a time, the least of many tries")
    parser.add_argument("--rows", type=int, default=0, help="measure metadata of so many lines instead")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--open", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    numbers = lambda words, kind: [kind(word) for word in words.split(",")]
    if arguments.measure:
        loader, path, *numbers = arguments.measure
        print(json.dumps(measure(loader, path, *map(int, numbers))))
    elif arguments.open:
        print(json.dumps(opened(arguments.open)))
    elif arguments.rows:
        rows(arguments.rows)
    elif arguments.alone:
        os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        alone(numbers(arguments.sides, int), numbers(arguments.times, float), arguments.formats.split(","))
    else:
        feeding(table(numbers(arguments.sides, int), numbers(arguments.times, float), arguments.formats.split(","),
                      arguments.images, arguments.batch, arguments.rounds))
        python_alone()
    return 0


if __name__ == "__main__":
    sys.exit(main())
