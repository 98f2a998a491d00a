"""What `lgm plan` does: plan or search, print, and write JSON."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lgm import config as schema
from lgm import files
from lgm.parsing import ConfigError
from lgm.planning import page


def run(spec: str, topology: str, overrides: Sequence[tuple[str, str]] = (), *, slices: int = 1, search: bool = False,
        limit: int = 10, jobs: int | None = None, quick: bool = False, json_path: str | None = None) -> int:
    """Plan a config on a topology; the exit code is 0 where something fits and 3 where nothing does.

    Raises ConfigError, one line, for what cannot be planned.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # whatever this machine has: the devices planned for are elsewhere
    from lgm.planning.plan import plan
    from lgm.planning.search import search as find
    from lgm.planning.search import what_fits
    from lgm.planning.topology import read_topology

    if limit < 1 or (jobs is not None and jobs < 1):
        raise ConfigError(f"--limit={limit} and --jobs={jobs} must be at least 1")
    if json_path not in (None, "-"):
        _check_file(files.place(json_path, "--json"))
    config, machine = schema.load(spec, overrides), read_topology(topology, slices)
    if not search:
        best = plan(config, machine, quick=quick)
        return _finish(best.reason, page.as_json(best), page.page(best), json_path)
    what = lambda p: f"{page.mesh(p)}, remat {p.remat}, {p.accumulate} pieces, group {p.group}"
    took = lambda p: f", {page.milliseconds(p)}" if p.times else ""
    say = lambda p: print(f"{what(p)}: {page.verdict(p).split(';')[0]}{took(p)}", file=sys.stderr, flush=True)
    found = find(config, machine, limit, jobs, say, quick)
    table = f"{page.ranking(found.plans)}\n{found.untried} more divide and were not compiled (--limit)"
    best = found.best
    values = {"best": best and page.as_json(best), "plans": [page.as_json(p) for p in found.plans],
              "untried": found.untried}
    if best is None:
        return _finish(what_fits(found.plans), values, table, json_path)
    return _finish("", values, f"{table}\n\n{page.page(best)}", json_path)


def _check_file(path: Path) -> None:
    """Refuse, before minutes of compiling, what cannot be written."""
    if files.is_remote(path):
        return  # a store makes folders of names, and says who may write when it is written to
    path = path.absolute()
    above = next(p for p in path.parents if p.exists())
    if path.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(f"--json={path} cannot be written; give a file, or - to print it")


def _finish(reason: str, values: dict, text: str, json_path: str | None) -> int:
    """Print and write; `reason` is why nothing fits."""
    body = json.dumps(values, indent=2)
    if json_path == "-":
        print(body)
    else:
        print(text)
    if json_path not in (None, "-"):
        files.write_atomically(json_path, (body + "\n").encode())
    if reason:
        print(f"lgm plan: {reason}", file=sys.stderr)
    return 3 if reason else 0
