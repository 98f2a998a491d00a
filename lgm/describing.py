"""What a config may say: every key with its type, its default and what its section is for, and a file's values."""

import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from lgm import config as schema
from lgm.config.combinations import encoders
from lgm.models import families, family, family_of
from lgm.models.lora import LoRAConfig
from lgm.parsing import as_dict, describe

WIDTH = 110
# keys whose records depend on what is chosen, with what they may be
CHOSEN = {"model": (*(found.name for found in families("denoiser")), "autoencoder"), "text.encoder": encoders()}
RECORDS = {"loss": schema.DenoisingLoss, "text": schema.Text, "lora": LoRAConfig, "loss.teacher": schema.Teacher,
           "data.tags": schema.Tags}


@dataclasses.dataclass(frozen=True)
class Key:
    """One key: `path` without "config.", its type in words, its default (None where it must be given) as Python."""

    path: str
    type: str
    default: str | None


def sections() -> Iterator[tuple[str, str, list[Key]]]:
    """(title, what it is, keys) of every record that a config may hold, the top first."""
    yield from _section("", schema.Config)
    title, about, keys = next(_section("loss", schema.AutoencoderLoss))
    yield f"{title} with model.family='autoencoder'", about, keys
    for path, names in CHOSEN.items():
        for name in names:
            title, about, keys = next(_section(path, family(name).config))
            yield f"{title} with {path}.family={name!r}", about, keys


def _section(path: str, record: type) -> Iterator[tuple[str, str, list[Key]]]:
    hints, keys, below = typing.get_type_hints(record), [], []
    for field in dataclasses.fields(record):
        place = f"{path}.{field.name}".lstrip(".")
        kind = RECORDS.get(place) or hints[field.name]
        if dataclasses.is_dataclass(kind):
            below.append((place, kind))
        if not dataclasses.is_dataclass(kind) or place in RECORDS:
            kind = "anything" if hints[field.name] is Any else describe(hints[field.name])
            default = _default(field)
            keys.append(Key(place, "a section" if place in CHOSEN or place in RECORDS else kind,
                            None if default is ... else repr(default)))
    yield f"config.{path}".rstrip("."), inspect.cleandoc(record.__doc__ or ""), keys
    for place, kind in below:
        yield from _section(place, kind)


def _default(field: dataclasses.Field) -> Any:
    """A field's default, Ellipsis where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return ... if field.default is dataclasses.MISSING else field.default


def everything() -> str:
    """All sections as text."""
    parts = []
    for title, about, keys in sections():
        lines = [title, *(textwrap.fill(part, WIDTH, initial_indent="  ", subsequent_indent="  ")
                          for part in about.split("\n\n"))]  # fmt: skip
        width = max((len(key.path) for key in keys), default=0)
        for key in keys:
            default = "must be given" if key.default is None else f"default {key.default}"
            lines.append(f"    --config.{key.path.ljust(width)}  {key.type}; {default}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def values_of(record: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value, default) of every key of a config; the default is Ellipsis where there is none."""
    for field in dataclasses.fields(record):
        place, value = f"{path}.{field.name}".lstrip("."), getattr(record, field.name)
        if place in CHOSEN and value is not None:
            yield f"{place}.family", family_of(value).name, ...
        if dataclasses.is_dataclass(value):
            yield from values_of(value, place)
        elif place == "loss.options":  # which stand beside the loss's name
            yield from ((f"loss.{name}", option, ...) for name, option in value.items())
        else:
            yield place, as_dict(record)[field.name] if place == "data.source" else value, _default(field)


def shown(config: schema.Config, diff: bool) -> str:
    """A config's values, a line a key, as its overrides would be written; with `diff` those alone that are not the
    defaults, which stand behind them."""
    lines = []
    for key, value, default in values_of(config):
        if not diff or value != default:
            note = f"  # default {default!r}" if diff and default is not ... else ""
            lines.append(f"--config.{key}={value!r}{note}")
    return "\n".join(lines)


def presets() -> str:
    """Every published shape by name, with what it says beside its family's defaults."""
    from lgm.models import listing

    lines = []
    for name, config in listing.presets().items():
        said = [f"{field.name}={getattr(config, field.name)!r}" for field in dataclasses.fields(config)
                if field.default is dataclasses.MISSING or getattr(config, field.name) != field.default]  # fmt: skip
        lines.append(f"{name}: {textwrap.shorten(', '.join(said), WIDTH, placeholder=' ...') or 'the defaults'}")
    return "\n".join(lines)
