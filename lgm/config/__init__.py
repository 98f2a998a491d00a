"""The one config schema: what a run is, parsed strictly from an ml_collections file into frozen dataclasses.

A config file has `get_config(arg=None) -> ConfigDict`. Everything it may say stands in `sections` with its default. An
unknown key, a wrong type or an impossible combination raises `ConfigError`, one line that names the key, the value and
what would do.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgm.config.combinations import check
from lgm.config.imports import load_imports
from lgm.config.reading import read_config_file
from lgm.config.sections import (
    EMA,
    AutoencoderLoss,
    Config,
    Data,
    DenoisingLoss,
    Evaluation,
    Log,
    Mesh,
    Mixed,
    Optimizer,
    Sampling,
    Tags,
    Teacher,
    Text,
)
from lgm.files import place, read_json
from lgm.models import FAMILIES, family, family_of
from lgm.parsing import ConfigError, as_dict, differences, parse

# where and in which pieces a step is computed and from where code comes, not what: a run may go on with others
PLACING = ("imports", "mesh", "attention", "accumulate", "optimizer.offload", "data.threads", "data.bad_share",
           "model.remat", "model.group", "model.unroll", "log.trackers", "text.long_captions")


def load(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """The config of a file `path.py` or `path.py:arg`, with `("optimizer.lr", "3e-4")` overrides applied."""
    return from_dict(_as_it_is(read_config_file(spec, overrides)))


def read(workdir: str | Path) -> Config:
    """The resolved config that a run left in its folder."""
    path = place(workdir, "--workdir") / "config.json"
    if not path.is_file():
        raise ConfigError(f"{path} is not there: {workdir} is no run's folder; give the --workdir of an `lgm train`")
    values = read_json(path, "it should be the config of a run")
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is no config of a run; it should hold an object")
    return from_dict(_as_it_is(values))


def _as_it_is(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config without its record of what it was before it was extended."""
    return {key: value for key, value in values.items() if key != "extended"}


def from_dict(values: Mapping[str, Any]) -> Config:
    """Parse a plain nested dict; every error is one line."""
    values = dict(values)
    load_imports(values)
    values["model"] = _parse_model(values.get("model"), "config.model")
    if isinstance(values.get("text"), Mapping):
        text = dict(values["text"])
        if text.get("encoder") is not None or not (text.get("folder") or text.get("classes")):
            text["encoder"] = _parse_model(text.get("encoder"), "config.text.encoder")
        values["text"] = text
    loss_class = AutoencoderLoss if family_of(values["model"]).role == "autoencoder" else DenoisingLoss
    values["loss"] = parse(loss_class, _with_options(loss_class, values.get("loss") or {}), "config.loss")
    config = parse(Config, values, "config")
    check(config)
    return config


def _with_options(cls: type, loss: Mapping[str, Any]) -> Mapping[str, Any]:
    """A loss's section with the options that stand beside its name under "options", unless it is the plain one."""
    fields = {field.name for field in dataclasses.fields(cls)}
    if not isinstance(loss, Mapping) or "options" not in fields or loss.get("name", "denoising") == "denoising":
        return loss
    own = {key: value for key, value in loss.items() if key in fields}
    beside = {key: value for key, value in loss.items() if key not in fields}
    return own | ({"options": {**loss.get("options", {}), **beside}} if beside else {})


def to_dict(config: Config) -> dict[str, Any]:
    """Plain JSON-ready values; `from_dict(to_dict(c)) == c`."""
    values = as_dict(config)
    values["model"] = {"family": config.family, **values["model"]}
    if config.text is not None and config.text.encoder is not None:
        values["text"]["encoder"] = {"family": family_of(config.text.encoder).name, **values["text"]["encoder"]}
    return values


def digest(config: Config) -> str:
    """A short hash of everything the config says."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:16]


def other_run(config: Config, theirs: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """(key, ours, theirs) of the first value in which a run's config.json says that it is not a run of `config`.

    None where they are the same but for `PLACING`: the run then goes on as `config`, on whatever mesh that has.
    """
    ours = json.loads(json.dumps(to_dict(config)))
    return next(differences(ours, theirs, PLACING), None)


def _parse_model(values, path: str):
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}={values!r}: give a dict(family=..., ...); families: {', '.join(FAMILIES)}")
    options = dict(values)
    name = options.pop("family", None)
    try:
        return parse(family(str(name)).config, options, path)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}.family={name!r}: {error}") from None


__all__ = ["EMA", "AutoencoderLoss", "Config", "ConfigError", "Data", "DenoisingLoss", "Evaluation", "Log", "Mesh",
           "Mixed", "Optimizer", "Sampling", "Tags", "Teacher", "Text", "digest", "from_dict", "load", "other_run",
           "read", "to_dict"]  # fmt: skip
