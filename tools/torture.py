"""Kill a real training run again and again, at random moments, and see whether it ends as the undisturbed one does.

    python tools/torture.py --workdir=/tmp/torture --kills=50 --terms=20 --processes=1,2

A small MMDiT with its text encoder is trained on the shipped emoji. First undisturbed, then with SIGKILL and SIGTERM
while it starts, compiles, trains, writes a checkpoint or ends; the same command goes on each time. When it has come to
its end, its newest checkpoint (parameters, both moments, EMA, position in the data) must have the undisturbed run's
bits, its metrics must be the same but for speeds, and each step must have seen the same images, in every epoch each
image once; then the next lap begins, until all signals are sent. Of several processes a signal hits one, its supervisor
or its worker. With --buckets it is flags of two shapes that are trained on, read and scaled in every step, each batch
of one shape. Prints one JSON line of what was done; exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict(dict(
        name="torture", batch_size=4, total_images=160,
        data=dict(where=dict(subcategory="face-hat"), heldout_where=dict(subcategory="face-glasses")),
        text=dict(encoder=dict(family="clip_text", vocab_size=4096, width=32, depth=1, heads=2, max_length=16)),
        model=dict(family="mmdit", channels=32, patch_size=1, width=32, depth=2, heads=2, text_dim=32, pooled_dim=32,
                   position_size=8, base_size=8),
        loss=dict(target="flow", density=dict(name="logit_normal")),
        optimizer=dict(lr=3e-3, warmup_images=16), ema=dict(half_life_images=32),
        sampling=dict(steps=2, count=2, every_images=80),
        evaluation=dict(every_images=40, times=2, batch_size=4, max_images=4),
        log=dict(every_images=8, checkpoint_every_images=12),
    ))
"""
# of one shape 4 flags, of another 12: an epoch is 4 batches, and after any number of them each was seen as often
BUCKETS = (
    ('where=dict(subcategory="face-hat"), heldout_where=dict(subcategory="face-glasses")',
     'source="flags", where=dict(code="be ch ne np ad ae af ag ai al am ao ar as at au".split()), '
     'heldout_where=dict(code=["mc", "va", "us"]), buckets=16, latents="step"'),
    ("position_size=8, base_size=8", "position_size=16, base_size=8"),
)
# what no two runs have in common
SPEEDS = ("images_per_second", "step_seconds", "tflops_per_second", "executed_", "mfu", "goodput", "seconds/")
MOMENTS = ("any", "training", "saving", "saved")
LIMIT = 3600  # seconds in which a run must end


def main() -> int:
    """Parse the words and run the laps."""
    if sys.argv[1:2] == ["--worker"]:
        return worker(Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="a folder for all of it, emptied first")
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs (default: 50)")
    parser.add_argument("--terms", type=int, default=20, help="SIGTERMs (default: 20)")
    parser.add_argument("--processes", default="1,2", help="share the signals between runs of so many (default: 1,2)")
    parser.add_argument("--buckets", action="store_true", help="train on images of two shapes")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    counts = [int(word) for word in words.processes.split(",")]
    shutil.rmtree(words.workdir, ignore_errors=True)
    found = []
    for place, count in enumerate(counts):
        share = lambda total, place=place: total // len(counts) + (place < total % len(counts))
        found.append(torture(Path(words.workdir) / f"{count}", config_text(words.buckets), count, share(words.kills),
                             share(words.terms), random.Random(words.seed + count)))
    wrong = [line for part in found for line in part["wrong"]]
    print(json.dumps({"runs": found, "wrong": len(wrong)}))
    return 1 if wrong else 0


def config_text(buckets: bool, *others: tuple[str, str]) -> str:
    """The config, on images of one shape or of two, with other pieces of its text replaced."""
    text = CONFIG
    for old, new in (*(BUCKETS if buckets else ()), *others):
        assert old in text, old
        text = text.replace(old, new)
    return text


def torture(folder: Path, page: str, count: int, kills: int, terms: int, rng: random.Random) -> dict:
    """Laps of a run on `count` processes until so many signals have hit it; what they were and what went wrong."""
    folder.mkdir(parents=True)
    config = folder / "config.py"
    config.write_text(page)
    alone = folder / "undisturbed"
    codes, text = end(start(config, alone, count))  # fills the compilation cache too
    assert codes == [0] * count, text
    begin = time.monotonic()
    shutil.rmtree(alone)
    alone.with_suffix(".images").unlink()
    assert end(start(config, alone, count))[0] == [0] * count
    length = time.monotonic() - begin
    left = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
    rng.shuffle(left)
    hit, wrong, laps, codes_seen = collections.Counter(), [], 0, collections.Counter()
    while left:
        laps += 1
        run = folder / f"lap-{laps}"
        while True:
            processes = start(config, run, count)
            moment = rng.choice(MOMENTS)
            if left and wait(run, moment, rng, length, processes) and strike(processes, left[-1], rng):
                hit[f"{left.pop().name} {moment}"] += 1
            codes, text = end(processes)
            codes_seen.update(codes)
            if "Traceback" in text:
                wrong.append(f"{run}: {text[-2000:]}")
            if codes == [0] * count:
                break
            if any(code in (1, 2) for code in codes) or len(wrong) > 20:
                wrong.append(f"{run}: exit codes {codes}: {text[-2000:]}")
                break
        wrong += [f"{run}: {line}" for line in differences(run, alone)]
        for line in wrong:
            print(line, file=sys.stderr, flush=True)
        print(f"{count} processes, lap {laps}: {sum(hit.values())} signals so far", file=sys.stderr, flush=True)
        if len(wrong) > 20:
            break
    return {"processes": count, "laps": laps, "undisturbed_seconds": round(length, 1), "signals": dict(hit),
            "exit_codes": {str(code): times for code, times in sorted(codes_seen.items())}, "wrong": wrong}


class ConditioningSpec(subprocess.Popen):
    """A process whose words go to a file, so that no full pipe stops it."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.file = tempfile.TemporaryFile("w+", errors="replace")
        super().__init__(command, env=environment, stdout=self.file, stderr=subprocess.STDOUT)

    def ended(self, limit: float) -> str:
        """All that it said, once it has ended."""
        self.wait(limit)
        self.file.seek(0)
        return self.file.read()


def start(config: Path, run: Path, count: int, *extra: str) -> list[ConditioningSpec]:
    """The processes of one start; their images are written beside the run's folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {"JAX_COMPILATION_CACHE_DIR": str(config.parent / "cache")} | os.environ | {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    command = [sys.executable, __file__, "--worker", str(run.with_suffix(".images")), "train", f"--config={config}",
               f"--workdir={run}", *extra]
    several = [[]] if count == 1 else [
        [f"--coordinator={address}", f"--processes={count}", f"--process-id={i}"] for i in range(count)]
    return [ConditioningSpec([*command, *words], environment) for words in several]


def end(processes: list[ConditioningSpec]) -> tuple[list[int], str]:
    """(exit codes, all that was said); a run that does not end is ended, and its code is that of SIGALRM."""
    texts, hung = [], False
    for process in processes:
        try:
            texts.append(process.ended(LIMIT))
        except subprocess.TimeoutExpired:
            hung = True
            process.kill()
            texts.append(process.ended(LIMIT) + f"\nTraceback of a hang: it did not end within {LIMIT} s")
    return [-signal.SIGALRM] * len(processes) if hung else [process.returncode for process in processes], "".join(texts)


def wait(run: Path, moment: str, rng: random.Random, length: float, processes: list[ConditioningSpec]) -> bool:
    """Wait for a moment of the run; False where it has ended before that."""
    running = lambda: all(process.poll() is None for process in processes)
    seen, pause = state(run, moment), rng.uniform(0, length) if moment == "any" else rng.uniform(0, 0.2)
    skip = rng.randint(1, 4)  # changes to let pass
    while moment != "any" and skip and running():
        now = state(run, moment)
        skip, seen = (skip - 1, now) if now != seen and now else (skip, now)
        time.sleep(0.001)
    deadline = time.monotonic() + pause
    while running() and time.monotonic() < deadline:
        time.sleep(0.001)
    return running()


def state(run: Path, moment: str):
    """What is seen to change: rows of metrics, a checkpoint that is being written, or one that is there."""
    if moment == "training":
        path = run / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0
    place = run / "checkpoints"
    names = os.listdir(place) if place.is_dir() else []
    return sorted(name for name in names if name.isdigit() == (moment == "saved"))


def strike(processes: list[ConditioningSpec], number: int, rng: random.Random) -> bool:
    """Send the signal to one of the processes; of several also to one's worker. Whether there was one to hit."""
    victim = rng.choice(processes)
    pids = [victim.pid]
    if len(processes) > 1:
        try:
            pids += map(int, Path(f"/proc/{victim.pid}/task/{victim.pid}/children").read_text().split())
        except OSError:
            return False
    try:
        os.kill(rng.choice(pids), number)
    except ProcessLookupError:
        return False
    return True


def differences(run: Path, alone: Path) -> list[str]:
    """What a run has otherwise than the undisturbed one: checkpoint, metrics, images."""
    wrong = []
    ours, theirs = final(run), final(alone)
    if ours[:2] != theirs[:2]:
        wrong.append(f"ended at step {ours[:2]}, not {theirs[:2]}")
    elif differing := [name for name, array in ours[2].items() if array.tobytes() != theirs[2][name].tobytes()]:
        wrong.append(f"{len(differing)} of {len(ours[2])} arrays differ, as {differing[0]}")
    if (a := metrics(run)) != (b := metrics(alone)):
        odd = next((pair for pair in zip(a, b, strict=False) if pair[0] != pair[1]), (len(a), len(b)))
        wrong.append(f"metrics differ: {odd[0]} and {odd[1]}")
    if kinds(run) != kinds(alone):
        wrong.append(f"files differ: {kinds(run) ^ kinds(alone)}")
    (ours, odd), (theirs, _) = images(run), images(alone)
    if odd:
        wrong.append(f"steps {odd} saw other images when they were done again")
    if ours != theirs:
        wrong.append("other images were seen")
    everything = [index for step in sorted(ours) for index in ours[step]]
    if sorted(ours) != list(range(1, len(ours) + 1)):
        wrong.append(f"steps {sorted(ours)} are not all there")
    counts = collections.Counter(everything)
    if max(counts.values()) - min(counts.values()) > 1:
        wrong.append(f"images were seen {min(counts.values())} to {max(counts.values())} times")
    return wrong


def final(run: Path):
    """(step, position in the data, name -> array) of the newest checkpoint, read without this project."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    place = run / "checkpoints"
    step = max((int(path.name) for path in place.iterdir() if path.name.isdigit()), default=0)
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(place / str(step) / "state").item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = reader.restore(place / str(step) / "state", restore_args=plain)
    leaves, _ = jax.tree.flatten_with_path(state)
    data = json.loads((place / str(step) / "data" / "metadata").read_text())
    return step, data, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def metrics(run: Path) -> list[dict]:
    """The rows of a run without its speeds."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(SPEEDS)} for row in rows]


def kinds(run: Path) -> set[str]:
    """The names that a run leaves, those of TensorBoard's files as one, without temporary files of what was killed."""
    names = (str(path.relative_to(run)) for path in run.rglob("*") if path.parent.name != "state" and path.is_file())
    return {name.partition(".tfevents")[0] for name in names if not name.startswith(("checkpoints/", "."))}


def images(run: Path) -> tuple[dict[int, list[str]], list[int]]:
    """(step -> the images it saw, all processes' together, steps that saw others when they were done again); an image
    is its number and a sum of its pixels and tokens, where these are in the batch."""
    saw = collections.defaultdict(lambda: collections.defaultdict(set))  # (step, processes) -> process -> what it took
    for line in run.with_suffix(".images").read_text().splitlines():
        count, process, step = map(int, line.split()[:3])
        saw[step, count][process].add(tuple(line.split()[3:]))
    whole, odd = {}, set()
    for (step, count), shares in sorted(saw.items()):
        odd |= {step} if any(len(each) > 1 for each in shares.values()) else set()
        if len(shares) == count:  # of a step that was cut short not all have told
            batch = [index for process in range(count) for index in next(iter(shares[process]))]
            odd |= {step} if whole.setdefault(step, batch) != batch else set()
    return whole, sorted(odd)


def worker(log: Path, argv: list[str]) -> int:
    """`lgm` with these words, noting which images each step takes."""
    from lgm import cli, processes
    from lgm.processes import member

    supervise = processes.supervise

    def supervising(place, bounds, command, least):
        return supervise(place, bounds, [sys.executable, __file__, "--worker", str(log), *command[3:]], least)

    processes.supervise = supervising
    if any(word.startswith("--coordinator=") for word in argv) and not member.is_member():
        return cli.main(argv)  # a supervisor, which trains nothing itself
    from lgm.train import loop

    put, at_step, taken = loop.put_batch, member.at_step, []

    def putting(layout, batch):
        exact = [batch[name] for name in ("image", "tokens") if name in batch]
        taken[:] = [f"{index}:{zlib.crc32(b''.join(part[row].tobytes() for part in exact)):08x}"
                    for row, index in enumerate(batch["index"].tolist())]
        return put(layout, batch)

    def stepping(step):
        import jax

        line = " ".join(map(str, (jax.process_count(), jax.process_index(), step, *taken))) + "\n"
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(file, line.encode())  # whole or not at all, whatever kills this process
        os.close(file)
        at_step(step)

    loop.put_batch, member.at_step = putting, stepping
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
