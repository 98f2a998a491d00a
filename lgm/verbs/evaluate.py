"""`lgm evaluate`: what a run, a folder of weights or a folder of pictures is measured by, as JSON with its protocol."""

import io
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from lgm.evaluate.drawers import Drawer, hash_of, of_pipeline, of_system
from lgm.evaluate.measuring import check_metrics, evaluate, evaluate_pictures, statistics_of
from lgm.evaluate.protocol import OF_RUNS, Evaluation, Protocol
from lgm.evaluate.references import Pictures, common_size, is_statistics, open_set
from lgm.evaluate.statistics import save_statistics
from lgm.exporting import is_exported, open_exported
from lgm.files import check_writable, place, write_atomically
from lgm.parsing import ConfigError
from lgm.systems.folders import load_pipeline
from lgm.train.opening import open_parts, over_all_devices
from lgm.verbs import curves
from lgm.verbs.measured import drawer_of, heldout_metrics, on_one_device, protocol_of
from lgm.verbs.sample import split_over_devices
from lgm.verbs.shared import finished, first


def run(arguments, overrides) -> int:
    """Measure by a protocol, changed by what the other flags say."""
    kind, *folders = arguments.what or ["run"]
    if kind == "images" and len(folders) == 1:
        return _images(arguments, folders[0])
    if kind == "curves" and not folders:
        return curves.run(arguments)
    if kind != "run":
        raise ConfigError(f"{' '.join(arguments.what)!r} is nothing to evaluate; write `images FOLDER`, `curves`, or "
                          "nothing and --workdir=RUN or --from=FOLDER")
    if arguments.statistics is not None:
        raise ConfigError(f"--statistics={arguments.statistics} goes with `lgm evaluate images FOLDER`")
    if arguments.vary:
        raise ConfigError(f"--vary={arguments.vary[0]} is for `lgm evaluate curves`; say it of a protocol's field")
    if (arguments.workdir is None) == (arguments.folder is None) or len(arguments.workdir or ()) > 1:
        raise ConfigError("give either --workdir=RUN or --from=FOLDER, whose images are drawn and measured")
    (workdir,) = arguments.workdir or (None,)
    protocol = protocol_of(arguments, {"metrics": ["heldout"]} if arguments.folder is None else None)
    out = _out(arguments, workdir)
    keep = None if arguments.pictures is None else _keeper(arguments.pictures, len(protocol.seeds))
    if arguments.folder is not None:
        check_metrics(protocol, {})
        result = evaluate(protocol, _open_folder(arguments.folder, protocol, arguments.split), keep=keep)
    else:
        result = of_run(workdir, protocol, keep, arguments.split)
    return _said(result, out)


def of_run(workdir: str, protocol: Protocol, keep=None, split: bool = False) -> Evaluation:
    """A run's evaluation; see `lgm.evaluate.measuring`."""
    check_metrics(protocol, dict.fromkeys(OF_RUNS))
    system, frozen, start = open_parts(workdir, over_all_devices() if split else on_one_device())
    drawer, params = drawer_of(workdir, system, frozen, start, protocol)
    return evaluate(protocol, drawer, system.config.data, heldout_metrics(system, params, frozen), keep)


def _open_folder(folder: str, protocol: Protocol, split: bool) -> Drawer:
    """What a folder of weights draws with, of diffusers or of `lgm export`."""
    if is_exported(folder):
        layout = over_all_devices() if split else on_one_device()
        system, params, frozen = open_exported(folder, layout)
        return of_system(system, params, frozen, protocol, {"kind": "folder", "hash": hash_of((params, frozen))})
    split = split and jax.device_count() > 1
    pipeline, params = load_pipeline(folder, shard=split_over_devices() if split else None)
    return of_pipeline(pipeline, params, protocol, split)


def _images(arguments, folder: str) -> int:
    """Measure pictures that were made elsewhere."""
    for flag, value in (("--workdir", arguments.workdir), ("--from", arguments.folder), ("--count", arguments.count),
                        ("--weights", arguments.weights), ("--pictures", arguments.pictures),
                        ("--split", arguments.split or None)):
        if value is not None:
            raise ConfigError(f"{flag} is for images that are drawn; `lgm evaluate images` measures those of {folder}")
    protocol = protocol_of(arguments, {"metrics": ["frechet", "kernel"], "features": {"name": "efficientnet_lite0"}})
    kept = None if arguments.statistics is None else place(arguments.statistics, "--statistics")
    if kept is not None and not is_statistics(str(kept)):
        raise ConfigError(f"--statistics={kept} should end in .safetensors")
    if kept is not None:
        _check_file(kept, "--statistics")
    if protocol.reference.source == "heldout" and kept is None:
        raise ConfigError("give --reference=FOLDER, a data set or a file of statistics, which the pictures are held to")
    out = None if kept is not None else _out(arguments, None)
    images = open_set(folder, {}, None, None)
    pictures = Pictures(images, protocol.size or common_size(images), protocol.resize)
    if kept is not None:
        found = statistics_of(protocol, pictures)
        if first():
            save_statistics(kept, found)
            print(f"{len(pictures):,} pictures' statistics of {found.dim} features of {found.name}; see {kept}")
        return finished()
    return _said(evaluate_pictures(protocol, pictures, "pictures", images.captions), out)


def _out(arguments, workdir: str | None) -> Path:
    if arguments.out is None and workdir is None:
        raise ConfigError("give --out=FILE.json, where the evaluation is written")
    out = place(workdir, "--workdir") / "evaluation.json" if arguments.out is None else place(arguments.out, "--out")
    _check_file(out, "--out")
    return out


def _check_file(path: Path, flag: str) -> None:
    """Raise ConfigError, one line, where no file can be written, before what would be in it is computed."""
    if path.is_dir():
        raise ConfigError(f"{flag}={path} is a folder; give a file's name")
    check_writable(path, flag)


def _keeper(folder: str, seeds: int):
    """Writes images as FOLDER/000012.png, of several seeds FOLDER/seed-3-000012.png."""
    path = place(folder, "--pictures")
    if first() and path.exists() and (not path.is_dir() or any(path.iterdir())):  # others may find what it has written
        raise ConfigError(f"--pictures={folder} is there already and not empty; give the name of a new folder")
    if first():
        check_writable(path, "--pictures")

    def keep(seed: int, number: int, image: np.ndarray) -> None:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        write_atomically(path / f"{f'seed-{seed}-' * (seeds > 1)}{number:06d}.png", buffer.getvalue())

    return keep


def _said(result: Evaluation, out: Path) -> int:
    if first():
        result.write(out)
        print(f"{in_words(result)}; see {out}")
    return finished()


def in_words(result: Evaluation) -> str:
    """The metrics in a line, with what their intervals reach to."""
    shown = {name: value for name, value in result.metrics.items() if isinstance(value, float)
             and not name.endswith(("_error", "_deviation", "_bias")) and "_t0." not in name}
    around = {name: f" ({part['low']:.4g} to {part['high']:.4g})" for name, part in result.intervals.items()}
    errors = {name: f" +- {result.metrics[f'{name}_error']:.2g}" for name in shown if f"{name}_error" in result.metrics}
    of = f"{result.drawn['images']:,} images: " if result.drawn else ""
    return of + ", ".join(f"{name.replace('_', ' ')} {value:.4g}{(errors | around).get(name, '')}"
                          for name, value in shown.items())
