"""Every template, rendered for each config in configs/, is what it was: a change in one shows in a diff.

After a change that is meant: LGM_UPDATE_GOLDEN=1 pytest tests/launching/test_golden.py
"""

import os
from pathlib import Path

import jobs
import pytest

from lgm.launching.launch import dry_run

GOLDEN = Path(__file__).parent / "golden"
CASES = [(config, engine) for config in jobs.CONFIGS for engine in jobs.ENGINES]


def place(config, engine):
    return GOLDEN / engine / (config.removeprefix("configs/").removesuffix(".py").replace("/", "-") + ".txt")


@pytest.mark.parametrize(("config", "engine"), CASES)
def test_a_rendered_job_is_what_it_was(config, engine, monkeypatch):
    values, sweep = jobs.read(config)
    runs, at_once = ((0, 1, 2, 5), 2) if sweep else (None, None)
    text = dry_run(jobs.job(engine, values, monkeypatch, runs=runs, at_once=at_once)) + "\n"
    path = place(config, engine)
    if os.environ.get("LGM_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.is_file() and text == path.read_text(), f"{path}; if meant: LGM_UPDATE_GOLDEN=1 pytest {__file__}"


def test_nothing_golden_is_left_over():
    assert sorted(GOLDEN.rglob("*.txt")) == sorted(place(*case) for case in CASES)
