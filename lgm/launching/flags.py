"""Variables that a kind of GPU wants, each with its reason: `launch/flags.toml`."""

import tomllib
from collections.abc import Mapping
from typing import Any

from lgm.launching.render import folder


def variables_of(kind: str, env: Mapping[str, str]) -> list[dict[str, Any]]:
    """[{"name", "value", "why": lines}] of a GPU kind, then the site's; XLA flags are one variable, the site's last."""
    table = tomllib.loads((folder() / "flags.toml").read_text())
    found = [variable(entry["name"], entry["value"], entry["why"]) for entry in table["variable"]
             if kind in entry["gpus"] and entry["name"] not in env]
    xla = [entry for entry in table["xla"] if kind in entry["gpus"]]
    own = {name: value for name, value in env.items() if name != "XLA_FLAGS"}
    if xla or "XLA_FLAGS" in env:
        words = [entry["flag"] for entry in xla] + ([env["XLA_FLAGS"]] if "XLA_FLAGS" in env else [])
        found.append(variable("XLA_FLAGS", " ".join(words), *(f"{entry['flag']}: {entry['why']}" for entry in xla)))
    return found + [variable(name, value) for name, value in own.items()]


def variable(name: str, value: str, *why: str) -> dict[str, str | tuple[str, ...]]:
    """One entry of a template's `variables`."""
    return {"name": name, "value": value, "why": why}
