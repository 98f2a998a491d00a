"""Model cards: the README.md of an export, with the header that model hubs read.

A card says what is known and leaves out the rest: a licence and a base model stand in it where they were given, and no
path of the machine that it was made on does.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import yaml

from lgm import __version__, files
from lgm.config import Config
from lgm.data.sources import SHIPPED
from lgm.models import family_of
from lgm.parsing import ConfigError

CARD = "README.md"
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_MODEL = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_EVALUATIONS = ("evaluation*.json", "metrics.json")  # what `lgm evaluate` wrote into a run's folder


@dataclasses.dataclass(frozen=True)
class Stated:
    """What only its owner can say of an export: the id of its license, and the model that it was made from, as a hub
    names it."""

    license: str | None = None
    base_model: str | None = None

    def __post_init__(self):
        if self.license is not None and not _LICENSE.fullmatch(self.license):
            raise ConfigError(f"--license={self.license} is no license's id as hubs have them; give one as apache-2.0")
        if self.base_model is not None and not _MODEL.fullmatch(self.base_model):
            raise ConfigError(f"--base-model={self.base_model} is no name of a model; give OWNER/NAME")


def card(title: str, about: str, loading: str, stated: Stated, *, library: str, tags: Sequence[str],
         task: str | None = None, adapter: bool = False, sections: Mapping[str, str] = {}) -> str:
    """The text of a card: what it is `about`, how it is loaded, then the `sections` that say something.

    `library` and `task` are the hub's library_name and pipeline_tag; an `adapter` changes the base model.
    """
    header: dict[str, Any] = {"library_name": library} | ({} if task is None else {"pipeline_tag": task})
    if stated.license is not None:
        header["license"] = stated.license
    if stated.base_model is not None:
        header |= {"base_model": stated.base_model, "base_model_relation": "adapter" if adapter else "finetune"}
    header["tags"] = list(dict.fromkeys([*tags, "lgm"]))
    first = f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# {title}\n\n{about}\n"
    parts = [first, f"## Loading\n\n{loading}\n"]
    parts += [f"## {name}\n\n{text}\n" for name, text in sections.items() if text]
    versions = {"lgm": __version__, "jax": jax.__version__, "flax": flax.__version__}
    parts.append("## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in versions.items()) + "\n")
    return "\n".join(parts)


def run_sections(config: Config, workdir: str, images: int, weights: str) -> dict[str, str]:
    """What a card says of a run: how it was trained, on what, and what it was measured by."""
    if family_of(config.model).role == "autoencoder":
        return {"Training": _brief(config.model), "Data": _data(config)}
    return {"Training": _training(config, images, weights), "Data": _data(config),
            "Evaluation": "\n\n".join(_evaluations(workdir))}  # fmt: skip


def task_of(config: Any, captions: bool) -> str:
    """The hub's word for what a denoiser does."""
    spec = family_of(config).conditioning(config)
    return "text-to-image" if captions and not spec.classes else "unconditional-image-generation"


def _training(config: Config, images: int, weights: str) -> str:
    optimizer = config.optimizer
    rows = {
        "network": f"{config.family}, {_brief(config.model)}",
        "process": _said(config.process),
        "predicts": f"{config.loss.target}, loss {getattr(config.loss, 'name', 'denoising')}",
        "started from": _name(config.init_from) if config.init_from else "random weights",
        "LoRA": _brief(config.lora) if config.lora else "",
        "images seen": f"{images:,} in batches of {config.batch_size:,}",
        "optimizer": _brief(optimizer),
        "weights": "an exponential moving average" if weights == "ema" else "the last, as trained",
        "autoencoder": _name(config.autoencoder),
        "seed": str(config.seed),
    }
    return _table(("", ""), [(name, text) for name, text in rows.items() if text])


def _data(config: Config) -> str:
    data = config.data
    sources = data.source if isinstance(data.source, tuple) else (data.source,)
    named = [source if isinstance(source, str) else getattr(source, "source", getattr(source, "name", "")) for source
             in sources]  # fmt: skip
    height, width = data.size
    said = f"Images of {', '.join(f'`{_name(name)}`' for name in named)}"
    said += f" that match `{_said(data.where)}`" if data.where else ""
    said += f", at {height} x {width} pixels."
    return said + (" The images that come with lgm are under licences of their own, which its THIRD_PARTY.md lists."
                   if any(name in SHIPPED for name in named) else "")


def _evaluations(workdir: str) -> list[str]:
    """Each evaluation that lies in a run's folder: what was measured, then by what protocol."""
    folder, found = files.place(workdir, "--workdir"), []
    for path in sorted({path for pattern in _EVALUATIONS for path in folder.glob(pattern)}, key=str):
        try:
            values = json.loads(path.read_text())
            metrics = values.get("metrics", values)
            around = values.get("intervals", {})
            between = lambda name: f"{_number(around[name]['low'])} to {_number(around[name]['high'])}"  # noqa: B023
            rows = [(name, _number(value), between(name) if name in around else "") for name, value in metrics.items()
                    if not isinstance(value, list | dict)]  # fmt: skip
            rows += [(f"{name}.{key}", _number(value), "") for name, inner in metrics.items() if isinstance(inner, dict)
                     for key, value in inner.items() if not isinstance(value, list | dict)]  # fmt: skip
        except (ValueError, AttributeError, LookupError, TypeError):
            continue  # a file of another kind
        text = _table(("metric", "value", "interval"), rows)
        if "protocol" in values:
            rest = {name: value for name, value in values.items() if name not in ("metrics", "intervals", "made_on")}
            text += f"\n\nBy this protocol:\n\n```json\n{json.dumps(_stripped(rest), indent=1)}\n```"
        found.append(text)
    return found


def _stripped(value: Any) -> Any:
    """Plain values without the folders of this machine."""
    if isinstance(value, dict):
        return {key: _stripped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_stripped(inner) for inner in value]
    return _name(value) if isinstance(value, str) and value.startswith("/") else value


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _name(place: str) -> str:
    """The last part of a path, or a name."""
    return Path(place.rstrip("/")).name or place


def _brief(record: Any) -> str:
    """The fields of a record that are not as they are by default."""
    changed = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value != default:
            changed[field.name] = value
    return _said(changed) if changed else "as by default"


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_stripped(value)}" for key, value in values.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escape = lambda cell: " ".join(str(cell).split()).replace("|", "\\|")
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(escape, line)) + " |" for line in lines)
