"""Going on with a run otherwise: to more images, at another rate, with other pictures; what it is stays what it is."""

import datetime
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lgm import config as schema
from lgm.config import Config
from lgm.parsing import ConfigError, differences
from lgm.train.saved import newest_checkpoint

EXTENDED = "extended"  # the key of config.json that tells what a run was before each extension
EXTENDABLE = ("total_images", "optimizer.lr", "optimizer.schedule", "optimizer.warmup_images", "optimizer.decay_images",
              "optimizer.final", "log", "evaluation", "sampling")


def may_extend(key: str) -> bool:
    """Whether a run can go on with another value of a key."""
    return any(key == known or key.startswith(f"{known}.") for known in EXTENDABLE)


def check_extension(config: Config, theirs: Mapping[str, Any], workdir: Path) -> None:
    """Raise ConfigError, one line, where a run of config `theirs` cannot go on as `config`."""
    for key, mine, other in _changes(config, theirs):
        if not may_extend(key):
            raise ConfigError(f"--workdir={workdir} holds a run with config.{key}={other!r}, not {mine!r}; --extend "
                              f"may change {', '.join(EXTENDABLE)}")
    trained = (newest_checkpoint(workdir) or 0) * config.batch_size
    if config.total_images < trained:
        raise ConfigError(f"config.total_images={config.total_images}: --workdir={workdir} has been trained on "
                          f"{trained}; --extend goes on to more")


def recorded(values: dict[str, Any], theirs: Any, workdir: Path) -> dict[str, Any]:
    """The values of config.json with its record of extensions: one entry more where a trained run changes now."""
    theirs = dict(theirs) if isinstance(theirs, dict) else {}
    history = list(theirs.pop(EXTENDED, []))
    was = {key: other for key, _, other in _changes(values, theirs) if may_extend(key)}
    if theirs and was and (step := newest_checkpoint(workdir)):
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        history.append({"images": step * values["batch_size"], "since": since, "was": was})
    return values | ({EXTENDED: history} if history else {})


def _changes(config: Config | dict, theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key, ours, theirs) of every value in which two configs differ, but for where a step is computed."""
    ours = json.loads(json.dumps(config if isinstance(config, dict) else schema.to_dict(config)))
    return differences(ours, theirs, schema.PLACING, may_extend)

