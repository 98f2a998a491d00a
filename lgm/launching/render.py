"""Templates to text. Every value is quoted where it is put in, for the shell or for YAML, by the file's kind: a
template cannot forget it."""

import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from lgm.files import shipped
from lgm.launching.site import SECRET
from lgm.parsing import ConfigError

PATTERNS = {  # what secrets look like, whatever they are called
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a token of Hugging Face": r"\bhf_[A-Za-z0-9]{20,}",
    "a token of GitHub": r"\b(ghp|gho|ghs|ghu|github_pat)_[A-Za-z0-9_]{20,}",
    "a key of AWS": r"\bAKIA[0-9A-Z]{16}\b",
    "a key of Google": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "a password in a URL": r"://[^/\s:@'\"]*:[^/\s@'\"]+@",
}


class Verbatim(str):
    """Text that goes in as it is: shell lines of the site, or what is quoted already."""

def folder() -> Path:
    """`launch/`, beside the package in a checkout, or where a wheel put it. Raises ConfigError where it is not."""
    if (place := shipped("launch")) is None:
        raise ConfigError("launch/, the templates of lgm launch, is neither in a checkout nor in the installation; "
                          "install lgm again")
    return place


def render(name: str, values: Mapping[str, Any], templates: str = "") -> str:
    """`launch/{name}` with `values`, quoted for YAML in a .yaml, for the shell elsewhere. Raises ConfigError, one line,
    for a name that the template has no value for."""
    places = [templates, str(folder())] if templates else [str(folder())]
    quote = yaml_quote if name.endswith(".yaml") else shell_quote
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(places), undefined=jinja2.StrictUndefined, finalize=quote, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
    )
    environment.filters |= {"verbatim": Verbatim, "words": lambda words: Verbatim(" ".join(map(quote, words)))}
    try:
        return environment.get_template(name).render(values)
    except jinja2.TemplateError as error:
        raise ConfigError(f"the template {name}: {type(error).__name__}: {error.message}") from None


def shell_quote(value: Any) -> str:
    """One word of a shell, whatever is in it."""
    if isinstance(value, Verbatim):
        return str(value)
    if "\0" in str(value):
        raise ConfigError(f"{str(value)!r} holds a zero byte, which no command line can")
    return shlex.quote(str(value))


def yaml_quote(value: Any) -> str:
    """One YAML scalar of the value's own type; text is always double-quoted."""
    if isinstance(value, Verbatim):
        return str(value)
    style = '"' if isinstance(value, str) else None
    text = yaml.safe_dump(value, default_style=style, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").rstrip("\n")


SAFE = re.compile(r"[A-Za-z0-9._/:,=@+\-]*")


def directive(value: Any, what: str = "a value", more: str = "") -> Verbatim:
    """A value for an #SBATCH line, which is no shell and has its own rules: only what needs no quoting there, and the
    characters `more`."""
    text = str(value).translate(dict.fromkeys(map(ord, more)))
    if not SAFE.fullmatch(text):
        bad = next(c for c in text if not SAFE.fullmatch(c))
        raise ConfigError(f"{what}={value!r} has {bad!r}, which an #SBATCH line cannot hold; use letters, digits and "
                          f"._/:,=@+-{more}")
    return Verbatim(value)


def refuse_secrets(text: str) -> None:
    """Raise ConfigError where `text` holds the value of a secret variable of this process, or what looks like one."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 8 and (value in text or json.dumps(value)[1:-1] in text):
            raise ConfigError(f"the value of ${name} would stand in the job; name {name} in the site's [secrets], and "
                              "keep its value out of the config and the site")
    for what, pattern in PATTERNS.items():
        if re.search(pattern, text):
            raise ConfigError(f"{what} would stand in the job; keep it out of the config and the site, and name a "
                              "variable for it in the site's [secrets]")
