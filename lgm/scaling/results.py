"""What finished runs leave in a sweep's folder, and the table `runs.csv` that `lgm fit` reads.

    workdir/runs/NAME/IMAGES/config.json    an ordinary training config: `lgm train --config=THIS` is the same run
    workdir/runs/NAME/IMAGES/result.json    its figures, written whole when it is done
    workdir/runs.csv                        one row a result, in the plan's order; a function of the plan alone
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

from lgm import config as schema
from lgm.config import Config
from lgm.files import read_json, write_atomically, write_json
from lgm.parsing import ConfigError
from lgm.scaling.sweep import Run

COLUMNS = ("family", "run", "architecture", "objective", "size", "seed", "learning_rate", "batch_size", "params",
           "non_embedding", "trainable", "images", "flops", "frozen_flops", "config", "loss", "vlb_bits")
FIGURES = ("v_loss", "vlb_bits", "kernel_distance", "frechet_distance")  # figures kept, with all that begin with these
AGAIN = "delete its folder to run it again"


def folder(workdir: Path, run: Run, config: Config) -> Path:
    """The folder of one run at one amount of data."""
    return workdir / "runs" / run.name / str(config.total_images)


def check(workdir: Path, run: Run) -> None:
    """Raise ConfigError, one line, where a folder holds the result or the checkpoints of another config."""
    for config in run.configs:
        path = folder(workdir, run, config) / "config.json"
        begun = any((path.parent / name).exists() for name in ("result.json", "checkpoints"))
        if path.is_file() and begun:
            found = schema.other_run(config, read_json(path, AGAIN))
            if found:
                key, mine, other = found
                raise ConfigError(f"{path.parent} holds a run with config.{key}={other!r}, not {mine!r}; give another "
                                  "--workdir, or the same config to go on with it")


def claim(workdir: Path, run: Run) -> None:
    """Write the run's configs."""
    for config in run.configs:
        write_json(folder(workdir, run, config) / "config.json", schema.to_dict(config))


def read(workdir: Path, run: Run, config: Config) -> dict[str, Any] | None:
    """A finished run's figures; None where it is not finished."""
    path = folder(workdir, run, config) / "result.json"
    return read_json(path, AGAIN) if path.is_file() else None


def write(workdir: Path, run: Run, config: Config, figures: dict[str, float], seconds: float = 0.0,
          diverged: str | None = None) -> None:
    """Record a finished run; `seconds` is what this sweep spent on it and stands in no table. `diverged` says why it
    was ended early: such a run has no figures."""
    result = {"config": schema.digest(config), "diverged": diverged, "figures": figures, "seconds": seconds}
    write_atomically(folder(workdir, run, config) / "result.json", (json.dumps(result, indent=1) + "\n").encode())


def finished(workdir: Path, run: Run) -> bool:
    """Whether every amount of data of a run has its result."""
    return all(read(workdir, run, config) is not None for config in run.configs)


def gather(workdir: Path, runs: list[Run]) -> tuple[int, int]:
    """Write `runs.csv` from all results there are; (rows, results still missing).

    A row has what a fit needs, the hash of the run's config (`lgm.config.digest`), `loss`, the error of v over log SNR,
    `vlb_bits`, the error in every stratum of log SNR and, with `evaluation.distance`, the distances of drawn images.
    Of a run that diverged it has the reason, as `diverged`, and no figures: `lgm fit` leaves the run out, and takes its
    learning rate for worse than one under which none diverged.
    """
    rows, missing, others = [], 0, []
    for run in runs:
        for config in run.configs:
            result = read(workdir, run, config)
            if result is None:
                missing += 1
            else:
                figures = result["figures"]
                others = others or [name for name in figures if name not in ("v_loss", "vlb_bits")]
                rows.append(_row(run, config, result))
    others += ["diverged"] * any("diverged" in row for row in rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *others], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(workdir / "runs.csv", text.getvalue().encode())
    return len(rows), missing


def _row(run: Run, config: Config, result: dict) -> dict[str, Any]:
    shape = run.shape
    row = {
        "family": run.family, "run": run.name, "architecture": run.architecture, "objective": run.objective,
        "size": run.size, "seed": run.seed, "learning_rate": repr(run.lr), "batch_size": config.batch_size,
        "params": shape.params, "non_embedding": shape.non_embedding, "trainable": shape.trainable,
        "images": config.total_images, "flops": repr(shape.flops * config.total_images),
        "frozen_flops": repr(shape.frozen * config.total_images), "config": result["config"],
    }
    if result["diverged"]:
        return row | {"diverged": result["diverged"]}
    return row | {"loss" if name == "v_loss" else name: repr(value) for name, value in result["figures"].items()}
