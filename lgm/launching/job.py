"""A job: what is asked for, what is written and run for it, and how one speaks to it afterwards."""

import collections
import dataclasses
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lgm.launching.machines import Machines
from lgm.launching.render import refuse_secrets
from lgm.launching.site import Site
from lgm.parsing import ConfigError


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for. values: the config as plain values, overrides in it. runs: the numbers of the sweep's runs
    that are not finished, None for one training run. at_once: how many of them at most. partition and image go before
    the site's.
    """

    name: str
    values: dict[str, Any]
    workdir: str
    site: Site
    machines: Machines
    runs: tuple[int, ...] | None = None
    at_once: int | None = None
    partition: str | None = None
    image: str | None = None

    @property
    def label(self) -> str:
        """The name as clusters take names: lower case letters, digits and dashes, at most 40."""
        return slug(self.name)


@dataclasses.dataclass(frozen=True)
class Job:
    """files: text by path, written before anything is run. submit: the command. watch, cancel: lines that a person can
    run, {id} standing for the job's number. notes: more to print. remote: the run's folder in gs://, where it is that.
    None can be made that holds a secret.
    """

    files: dict[Path, str]
    submit: tuple[str, ...]
    watch: tuple[str, ...]
    cancel: str
    notes: tuple[str, ...] = ()
    remote: str = ""

    def __post_init__(self):
        for text in (*self.files.values(), *self.submit, *self.watch, self.cancel, *self.notes):
            refuse_secrets(text)


def slug(name: str) -> str:
    """`Emoji MMDiT/flow` as `emoji-mmdit-flow`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()  # without accents
    text = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:40].strip("-")
    if not text:
        raise ConfigError(f"config.name={name!r} has no letter or digit to name a job by")
    return text if text[0].isalpha() else f"run-{text}"[:40]


def command(python: str, request: Request, config: str, workdir: str) -> list[str]:
    """The words that run lgm; a sweep's run number follows them."""
    verb = "train" if request.runs is None else "sweep"
    words = [python, "-m", "lgm.cli", verb, f"--config={config}", f"--workdir={workdir}"]
    return words if request.runs is None else [*words, "--only"]


def gathering(words: list[str]) -> list[str]:
    """The words that write a sweep's table, from those that train a run of it."""
    return [*words[:-1], "--gather"]


def hand_over(job: Job, hint: str) -> str:
    """Submit a job to a cluster; what its program prints. Raises ConfigError, one line, where that is not here, with a
    hint on what would do, or refuses."""
    program = job.submit[0]
    if shutil.which(program) is None:
        raise ConfigError(f"{program} is not here; {hint}, or see the job with --dry-run")
    done = subprocess.run(job.submit, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"{program} refused the job: {done.stderr.strip()}")
    return done.stdout


def start_here(job: Job, log: Path) -> str:
    """Start a job's command in the background, in a session of its own; its process number."""
    with open(log, "ab") as file:
        return str(subprocess.Popen(job.submit, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                    start_new_session=True).pid)


def words_of(process: str) -> list[bytes]:
    """The command line of a process of this machine; nothing where there is none."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def counted(words: Iterable[str]) -> str:
    """`Running`, `Running`, `Queued` as `2 Running, 1 Queued`."""
    return ", ".join(f"{count} {word}" for word, count in collections.Counter(words).items())


def mounted(workdir: str, mount: str) -> str:
    """A run's folder where its bucket or claim is mounted. Raises ConfigError for one that is not below."""
    if ".." in workdir.split("/"):
        raise ConfigError(f"--workdir={workdir}: it is a place in what site's `work` keeps, and .. would leave that")
    return f"{mount}/{plain_path(workdir, '--workdir').lstrip('/')}"


def plain_path(path: str, flag: str) -> str:
    """A path that every scheduler takes as it is. Raises ConfigError for one with other characters than it may have."""
    if not re.fullmatch(r"[A-Za-z0-9._/+=@,-]+", path):
        raise ConfigError(f"{flag}={path!r}: a launched run's path may hold letters, digits and ._/+=@,- only")
    return path
