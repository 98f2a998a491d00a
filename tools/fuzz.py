"""Feed `lgm` damaged files and odd words; any traceback, hang, abort, blow-up or success on failure is a defect.

    python tools/fuzz.py --cases=1500 --seed=0                 all kinds, a line for each defect
    python tools/fuzz.py --cases=50 --kind=tokenizer           one kind
    python tools/fuzz.py --case=37 --seed=0 --keep=DIR         one case again, its files left in DIR

A case is a function of (seed, number) alone. Its command runs in a forked child with bounds on time and memory: it must
end by itself, with exit code 0 and what it was asked for, or another code and one line. Exit code 1 where any did not.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import fuzz_mutations as mutations
import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
MEMORY, PATIENCE = 3 << 30, 90  # bytes; seconds of computing
SYSTEMS = ("sd", "xl", "sd3", "flux")
DRAWN = ["--prompt=a cat", "--steps=1", "--size=16"]
TRAINED = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict(dict(
        name="tiny", batch_size=4, total_images=4, data=dict(resolution=64),
        text=dict(encoder=dict(family="clip_text", vocab_size=4096, width=16, depth=1, heads=2, max_length=16)),
        model=dict(family="mmdit", channels=32, patch_size=1, width=16, depth=2, heads=2, text_dim=16, pooled_dim=16,
                   position_size=8, base_size=8),
        loss=dict(target="flow", density=dict(name="logit_normal")), optimizer=dict(lr=3e-3, warmup_images=4),
        ema=dict(half_life_images=32), sampling=dict(steps=1, count=1),
    ))
"""
FLAGS = ("steps", "guidance", "seed", "count", "size", "strength", "true-guidance", "interval", "tile", "rule",
         "solver", "schedule", "noise", "image", "mask", "lora", "single-file", "dtype", "prompt", "out")  # fmt: skip
WORDS = (*mutations.NUMBERS, "karras:rho=nan", "even:shift=inf", "rescaled:share=nan", "unipc:order=99", "0,nan",
         "0.2,0.1", "/dev/zero", "/", "\ud800", "16x16x16", "x" * 5000, "a\0b")  # fmt: skip


@dataclasses.dataclass
class Case:
    """A command and what was damaged before it; `out` is what it must leave where it succeeds."""

    words: list[str]
    what: str
    out: Path | None = None
    begun: bool = False  # whether what fails may have written a part of it


def make_originals(folder: Path) -> None:
    """Folders of each system, a LoRA, a collection in every format and a run, with what is random in them fixed."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "interop"), str(ROOT / "tests" / "data")]
    import formats
    import tiny_systems
    from safetensors.numpy import save_file

    made = {"sd": tiny_systems.stable_diffusion, "xl": tiny_systems.stable_diffusion_xl,
            "sd3": tiny_systems.stable_diffusion_3, "flux": tiny_systems.flux}  # fmt: skip
    for name, make in made.items():
        make().save_pretrained(folder / name)
    rng, places = np.random.default_rng(0), ("to_q", "to_v")
    tensors = {}
    for place in places:
        name = f"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.{place}"
        tensors[f"{name}.lora_A.weight"] = rng.standard_normal((2, 8), np.float32)
        tensors[f"{name}.lora_B.weight"] = rng.standard_normal((8, 2), np.float32)
        tensors[f"{name}.alpha"] = np.full((), 2, np.float32)
    save_file(tensors, folder / "lora.safetensors")
    (folder / "train.py").write_text(TRAINED.replace("data=dict(", f"data=dict(source={str(folder / 'images')!r}, "))
    (folder / "images").mkdir()
    rows = []
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (64, 64 + 8 * i, 3), np.uint8)).save(folder / "images" / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"picture {i}", "kind": ["a", i % 2], "width": 64 + 8 * i,
                     "height": 64})
    (folder / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pictures = [(folder / "images" / f"{i % 8}.png").read_bytes() for i in range(12)]
    records = [(f"{i}.png", picture, f"picture {i}", "ab"[i % 2]) for i, picture in enumerate(pictures)]
    for name, write in formats.FORMATS.items():
        (folder / "collections" / name).mkdir(parents=True)
        write(folder / "collections" / name, records)
    (folder / "metrics.csv").write_text("run,params,images,loss,flops\n" + "".join(
        f"r{i},{n},{d},{2 + n**-0.3 + d**-0.3},{6 * n * d}\n"
        for i, (n, d) in enumerate((n, d) for n in (1e6, 1e7, 1e8) for d in (1e8, 1e9, 1e10))))
    from lgm.cli import main

    assert main(["train", f"--config={folder / 'train.py'}", f"--workdir={folder / 'run'}"]) == 0


def make_case(kind: str, rng: random.Random, originals: Path, folder: Path, verbs: list[str]) -> Case:
    """Copy an original into `folder`, damage it and say what to run on it."""
    if kind in ("train", "run", "collection", "flag"):
        return {"train": _training, "run": _run, "collection": _collection, "flag": _flag}[kind](rng, originals, folder)
    system = rng.choice(SYSTEMS)
    source = folder / system
    shutil.copytree(originals / system, source, copy_function=os.link)
    files = sorted(path for path in source.rglob("*") if path.is_file())
    jsons = [path for path in files if path.suffix == ".json" and path.name != "tokenizer.json"]
    tensors = [path for path in files if path.suffix == ".safetensors"]
    tokens = [path for path in files if "tokenizer" in str(path.relative_to(source))]
    if kind == "config":
        return _reading(rng, source, folder, verbs, mutations.damage_json(rng, rng.choice(jsons)))
    if kind == "weights":
        return _reading(rng, source, folder, verbs, mutations.damage_tensors(rng, rng.choice(tensors)))
    if kind == "file":
        return _reading(rng, source, folder, verbs, mutations.damage_file(rng, rng.choice(files)))
    if kind == "tokenizer":
        path = rng.choice(tokens)
        damage = mutations.damage_json if path.suffix == ".json" and rng.random() < 0.8 else mutations.damage_file
        return _reading(rng, source, folder, verbs, damage(rng, path))
    if kind in ("lora", "single"):
        path = folder / "x.safetensors"
        shutil.copy(originals / "lora.safetensors" if kind == "lora" else rng.choice(tensors), path)
        damage = mutations.damage_file if rng.random() < 0.2 else mutations.damage_tensors
        what = damage(rng, path)
        flag = f"--lora={path}{rng.choice(('', '', ':0.5', ':nan', ':inf', ':x'))}" if kind == "lora" else \
            f"--single-file={path}"
        return Case(["export", f"--from={originals / 'sd'}", flag, f"--out={folder / 'out'}"], what, folder / "out")
    if kind == "table":
        path = folder / "runs.csv"
        shutil.copy(originals / "metrics.csv", path)
        cells = [line.split(",") for line in path.read_text().splitlines()]
        row, column = rng.randrange(len(cells)), rng.randrange(5)
        cells[row][column] = rng.choice(WORDS[:-1]).encode("utf-8", "replace").decode()
        mutations.write(path, "\n".join(map(",".join, cells)).encode())
        words = ["fit", f"--data={path}", f"--out={folder / 'out'}", "--draws=3", "--max-steps=5"]
        return Case(words, cells[row][column], folder / "out")
    flag, word = rng.choice(FLAGS), rng.choice(WORDS)
    words = ["sample", f"--from={originals / system}", *DRAWN, f"--out={folder / 'x.png'}", f"--{flag}={word}"]
    return Case(words, "", None if flag == "out" else folder / "x.png")


def _reading(rng: random.Random, source: Path, folder: Path, verbs: list[str], what: str) -> Case:
    """One of the verbs that read a folder."""
    verb, out = rng.choice(verbs), folder / "out"
    if verb == "sample":
        return Case(["sample", f"--from={source}", *DRAWN, f"--out={folder / 'x.png'}"], what, folder / "x.png")
    words = {"inspect": [], "import": [f"--workdir={out}"], "export": [f"--out={out}", "--dtype=float16"]}[verb]
    return Case([verb, f"--from={source}", *words], what, out if words else None)


def _training(rng: random.Random, originals: Path, folder: Path) -> Case:
    """A step of training with damaged images, a damaged config file or a word in one of its keys."""
    images, page = folder / "images", folder / "train.py"
    shutil.copytree(originals / "images", images)
    shutil.copy(originals / "train.py", page)
    words = ["train", f"--config={page}", f"--workdir={folder / 'out'}", f"--config.data.source={images}"]
    how = rng.choice(("rows", "file", "page", "key", "key", "key"))
    if how == "rows":
        what = mutations.damage_lines(rng, images / "metadata.jsonl")
    elif how == "key":
        what = f"{rng.choice(config_keys(str(page)))}={rng.choice(WORDS)}"
        words.append(f"--config.{what}")
    else:
        what = mutations.damage_file(rng, page if how == "page" else rng.choice(sorted(images.iterdir())))
    return Case(words, what, folder / "out", begun=True)


def _run(rng: random.Random, originals: Path, folder: Path) -> Case:
    """A verb on a run with one damaged file."""
    run, out = folder / "run", folder / "out"
    shutil.copytree(originals / "run", run)
    path = rng.choice(sorted(path for path in run.rglob("*") if path.is_file()))
    readable = path.suffix == ".json" or path.name in ("_METADATA", "_CHECKPOINT_METADATA", "_sharding")
    damage = {True: mutations.damage_json, False: mutations.damage_file}[readable and rng.random() < 0.7]
    if path.name == "metrics.jsonl" and rng.random() < 0.7:
        damage = mutations.damage_lines
    what = damage(rng, path)
    words = rng.choice([["sample", f"--workdir={run}", *DRAWN[:2], f"--out={out}.png"],
                        ["evaluate", f"--workdir={run}", f"--out={out}.json"],
                        ["export", f"--workdir={run}", f"--out={out}"], ["status", str(run)],
                        ["train", f"--config={originals / 'train.py'}", f"--workdir={run}", "--extend",
                         "--config.total_images=8"]])  # fmt: skip
    made = next((Path(word[6:]) for word in words if word.startswith("--out=")), None)
    return Case(words, what, made)


def _collection(rng: random.Random, originals: Path, folder: Path) -> Case:
    """What `lgm data` says of a damaged collection, or `lgm encode` makes of it."""
    source = originals / "collections" / rng.choice(sorted(os.listdir(originals / "collections")))
    shutil.copytree(source, folder / "images")
    path = next((folder / "images").glob("*.zip"), folder / "images")
    files = sorted(file for file in path.rglob("*") if file.is_file()) or [path]
    lines = [file for file in files if file.suffix == ".jsonl"]
    what = mutations.damage_lines(rng, lines[0]) if lines and rng.random() < 0.5 else mutations.damage_file(
        rng, rng.choice(files))  # fmt: skip
    if rng.random() < 0.6:
        return Case(["data", str(path), f"--sheet={folder / 'sheet.png'}"], what)
    return Case(["encode", f"--config={originals / 'train.py'}", f"--config.data.source={path}",
                 f"--out={folder / 'out'}"], what, folder / "out", begun=True)  # fmt: skip


def _flag(rng: random.Random, originals: Path, folder: Path) -> Case:
    """A verb that succeeds, with an odd word for one of its flags."""
    run, config, out = originals / "run", f"--config={originals / 'train.py'}", folder / "out"
    plain = {
        "evaluate": [f"--workdir={run}", f"--out={out}"], "export": [f"--workdir={run}", f"--out={out}"],
        "sample": [f"--workdir={run}", *DRAWN[:2], f"--out={out}.png"], "status": [str(run)],
        "data": [str(originals / "images")], "encode": [config, f"--out={out}"], "config": [config], "presets": [],
        "inspect": ["--preset=dit_s2"], "fit": [f"--data={originals / 'metrics.csv'}", f"--out={out}", "--draws=3",
                                                 "--max-steps=5"],
        "launch": ["--on=local", config, f"--workdir={out}", "--dry-run"],
        "sweep": [f"--config={ROOT / 'configs' / 'scaling' / 'smoke.py'}", f"--workdir={out}", "--list"],
        "import": [f"--from={originals / 'sd'}", f"--workdir={out}"],
        "plan": [config, "--topology=nowhere"], "train": [config, f"--workdir={out}", "--config.total_images=0"],
    }  # fmt: skip
    verb = rng.choice(sorted(plain))
    flags = verb_flags(verb)
    flag, word = rng.choice(flags) if flags else "--nothing", rng.choice(WORDS)
    words = [*plain[verb], f"{flag}={word}"] if rng.random() < 0.9 else [*plain[verb], word]
    return Case([verb, *words], "")


@functools.cache
def verb_flags(verb: str) -> list[str]:
    """The flags of a verb that take a word; not those that wait for other processes."""
    from lgm.arguments import parser

    (verbs,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    waiting = ("--coordinator", "--processes", "--process-id", "--patience", "--wait", "--elastic", "--report")
    return [action.option_strings[-1] for action in verbs.choices[verb]._actions
            if action.option_strings and action.nargs != 0 and action.option_strings[-1] not in waiting]


@functools.cache
def config_keys(page: str) -> list[str]:
    """Every key of a config, and sections as a whole."""
    from lgm.config import load, to_dict

    found: list[str] = []

    def walk(value, path):
        found.extend([path] if path else [])
        for key, inner in value.items() if isinstance(value, dict) else ():
            walk(inner, f"{path}.{key}" if path else key)

    walk(to_dict(load(page)), "")
    return found


VERBS = ("inspect", "import", "export", "sample")  # of folders
KINDS = {"config": 5, "weights": 3, "tokenizer": 4, "file": 3, "lora": 3, "single": 1, "table": 1, "words": 3,
         "train": 2, "run": 3, "collection": 3, "flag": 4}


def run(case: Case, log: Path) -> str | None:
    """Run a case in a child; what is wrong with how it went, or None."""
    child = os.fork()
    if child == 0:
        _in_child(case.words, log)
    deadline = time.monotonic() + 4 * PATIENCE
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hangs"
        time.sleep(0.02)
    printed = log.read_text(errors="replace")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "takes too long" if number == signal.SIGXCPU else f"dies of signal {number}"
    if used.ru_maxrss << 10 > MEMORY:
        return f"takes {used.ru_maxrss >> 10} MiB"
    return judge(case, os.WEXITSTATUS(status), printed)


def judge(case: Case, code: int, printed: str) -> str | None:
    """What is wrong with an exit code and what was printed, or None."""
    if "Traceback" in printed or "panicked" in printed or code == 70:
        return "traceback"
    if code == 0:
        if case.out is not None and not case.out.exists():
            return "exit 0 without a result"
        if case.out is not None and case.out.suffix == ".png" and np.ptp(np.asarray(Image.open(case.out))) == 0:
            return "a constant picture with exit 0"
        return None
    lines = [line for line in printed.splitlines() if line.startswith("lgm ")]
    if len(lines) != 1 or len(lines[0]) > 2000:
        return f"exit {code} with {len(lines)} lines"
    if case.out is not None and case.out.exists() and not case.begun:
        return f"exit {code} and something half written"
    return None


def _in_child(words: list[str], log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.chdir(log.parent)  # where a word that is taken for a path leaves its file
    resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (3 * MEMORY, 3 * MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    code = 70
    try:
        from lgm.cli import main

        code = main(words)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def warm(originals: Path) -> None:
    """Import and trace what most children need, once; no device is opened before the fork."""
    import importlib

    for name in ("jax", "lgm.cli", "lgm.verbs.sample", "lgm.verbs.export",
                 "lgm.train.main", "lgm.scaling.fit", "lgm.models.listing"):  # fmt: skip
        importlib.import_module(name)
    from lgm.systems.folders import load_pipeline

    for system in SYSTEMS:
        load_pipeline(originals / system)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1500)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only these (default: all)")
    parser.add_argument("--verb", choices=VERBS, action="append", help="only these on folders (default: all)")
    parser.add_argument("--case", type=int, help="only the case of this number, with what it prints")
    parser.add_argument("--keep", help="a folder to leave the files in")
    parser.add_argument("--originals", help="a folder with whole originals, made where it is not there")
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "lgm-fuzz-xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    work = Path(arguments.keep or tempfile.mkdtemp(prefix="lgm-fuzz."))
    originals = Path(arguments.originals or work / "originals")
    if not originals.exists():  # in a process of its own: torch's threads do not survive a fork
        subprocess.run([sys.executable, __file__, "--originals", str(originals)], check=True,
                       env={**os.environ, "LGM_FUZZ_MAKES": "1"})
    sys.path.insert(0, str(ROOT))
    warm(originals)
    numbers = range(arguments.first, arguments.first + arguments.cases)
    defects = done = 0
    start = time.monotonic()
    for number in numbers if arguments.case is None else [arguments.case]:
        if time.monotonic() - start > arguments.seconds:
            break
        rng = random.Random(f"{arguments.seed} {number}")
        kinds = arguments.kind or list(KINDS)
        kind = rng.choices(kinds, [KINDS[name] for name in kinds])[0]
        folder = work / f"case{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        case = make_case(kind, rng, originals, folder, arguments.verb or list(VERBS))
        wrong = run(case, folder / "log")
        done += 1
        if arguments.case is not None:
            print(case.words, case.what, (folder / "log").read_text(errors="replace"), sep="\n")
        if wrong:
            defects += 1
            again = " ".join([f"--kind={name}" for name in arguments.kind or ()] +
                             [f"--verb={name}" for name in arguments.verb or ()])
            words = ascii(" ".join(case.words))[:300]
            print(f"case {number} ({kind}): {wrong}; {ascii(case.what)[:160]}; lgm {words}\n"
                  f"  again: python tools/fuzz.py --seed={arguments.seed} --case={number} {again}", flush=True)
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{done} cases, {defects} defects, {time.monotonic() - start:.0f} s")
    if not arguments.keep:
        shutil.rmtree(work, ignore_errors=True)
    return 1 if defects else 0


if __name__ == "__main__":
    if os.environ.get("LGM_FUZZ_MAKES"):
        make_originals(Path(sys.argv[-1]))
    else:
        sys.exit(main())
