"""Trackers beside TensorBoard: W&B and MLflow, where they are installed and `config.log.trackers` names them.

Each finds its account and server as it always does (WANDB_MODE, MLFLOW_TRACKING_URI and the like); a run that is
resumed goes on in the tracker's run that `workdir/trackers.json` names.
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from lgm import config as schema
from lgm import files
from lgm.config import Config
from lgm.parsing import ConfigError

NAME = "trackers.json"
LONGEST = 500  # letters of a parameter that MLflow takes
AT_ONCE = 100  # parameters in one of its calls


Ending = Literal["finished", "preempted", "interrupted", "failed"]


def ending(error: BaseException | None) -> Ending:
    """How a run ended: what was raised may say so itself, as `lgm.train.loop.Preempted` does."""
    if error is None:
        return "finished"
    return getattr(error, "ending", "interrupted" if isinstance(error, KeyboardInterrupt) else "failed")


class Tracker(Protocol):
    """What is told as a run goes on; `images` is the axis."""

    def write(self, images: int, values: dict[str, float]) -> None: ...

    def image(self, images: int, name: str, picture_HWC: np.ndarray) -> None: ...

    def close(self, end: Ending) -> None: ...


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, config: Config, workdir: Path, number: str | None):
        self.wandb = importlib.import_module("wandb")
        local = None if files.is_remote(workdir) else str(workdir)
        self.run = self.wandb.init(project=config.name, name=workdir.name, dir=local, id=number, resume="allow",
                                   config=schema.to_dict(config))
        self.number = self.run.id

    def write(self, images: int, values: dict[str, float]) -> None:
        self.run.log(values, step=images)

    def image(self, images: int, name: str, picture_HWC: np.ndarray) -> None:
        self.run.log({name: self.wandb.Image(picture_HWC)}, step=images)

    def close(self, end: Ending) -> None:
        if end == "preempted":
            self.run.mark_preempting()  # with an exit code that is not 0 it is "preempted" there, not "failed"
        self.run.finish(exit_code=int(end != "finished"))


class MLflow:
    """A run of MLflow, in the experiment of the config's name. One that was preempted or interrupted is KILLED there,
    which its tag lgm.state tells apart."""

    def __init__(self, config: Config, workdir: Path, number: str | None):
        mlflow = importlib.import_module("mlflow")
        self.client = mlflow.MlflowClient()
        if number is None:
            found = self.client.get_experiment_by_name(config.name)
            experiment = self.client.create_experiment(config.name) if found is None else found.experiment_id
            number = self.client.create_run(experiment, run_name=workdir.name).info.run_id
            entities = importlib.import_module("mlflow.entities")
            params = [entities.Param(key, value[:LONGEST]) for key, value in _flat(schema.to_dict(config))]
            for start in range(0, len(params), AT_ONCE):
                self.client.log_batch(number, params=params[start : start + AT_ONCE])
        else:
            self.client.update_run(number, status="RUNNING")
        self.client.set_tag(number, "lgm.state", "running")
        self.number = number

    def write(self, images: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.number, name, value, step=images)

    def image(self, images: int, name: str, picture_HWC: np.ndarray) -> None:
        self.client.log_image(self.number, picture_HWC, artifact_file=f"{name}/{images:09d}.png")

    def close(self, end: Ending) -> None:
        self.client.set_tag(self.number, "lgm.state", end)
        self.client.set_terminated(self.number, {"finished": "FINISHED", "failed": "FAILED"}.get(end, "KILLED"))


TRACKERS: dict[str, Callable[..., Any]] = {"wandb": Wandb, "mlflow": MLflow}


def check_installed(config: Config) -> None:
    """Raise ConfigError, one line, where a tracker of the config's is not installed."""
    for name in config.log.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"config.log.trackers has {name!r}, which is not installed here; pip install "
                              f"'lgm[{name}]', or leave it out")


def open_trackers(config: Config, workdir: Path) -> list[Tracker]:
    """Those that the config names; what they call the run is kept in its folder."""
    if not config.log.trackers:
        return []
    path = workdir / NAME
    numbers: dict[str, Any] = files.read_json(path, "remove it, to begin anew there") if path.is_file() else {}
    found = {name: TRACKERS[name](config, workdir, numbers.get(name)) for name in config.log.trackers}
    files.write_json(path, numbers | {name: tracker.number for name, tracker in found.items()})
    return list(found.values())


def _flat(values: Any, key: str = "") -> list[tuple[str, str]]:
    """(key with dots, value as text) of every value below."""
    if isinstance(values, dict) and values:
        return [pair for name, value in values.items() for pair in _flat(value, f"{key}.{name}" if key else str(name))]
    return [(key, str(values))]
