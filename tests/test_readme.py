"""README.md and the pages of docs/ say what is so: their Python runs as it stands, their commands are ones that there
are, and the files, flags, keys and extras that they name exist."""

import argparse
import re
import shlex
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgm import __version__
from lgm import config as schema
from lgm.arguments import EXAMPLES, parser
from lgm.cli import CONFIGURED
from lgm.parsing import ConfigError
from lgm.scaling import sweep

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))

import release  # noqa: E402

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), ROOT / "CONTRIBUTING.md"]
YOURS = ("runs/", "PAGE", "sweep.py", "/shared/")  # files that a reader has, not the repository


def commands(text):
    """The lines of a page's shell blocks, joined where they go on, without comments."""
    for block in re.findall(r"```sh[^\n]*\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                while words:
                    cut = words.index("&&") if "&&" in words else len(words)
                    yield words[:cut]
                    words = words[cut + 1:]


def check(words):
    """That a command is one: its verb, flags, config and keys, its script, or the extras that it installs."""
    words = words[: words.index(">")] if ">" in words else words
    if words[0] == "lgm":
        changes = [word for word in words[1:] if word.startswith("--config.")]
        try:
            given, rest = parser().parse_known_args([word for word in words[1:] if word not in changes])
        except SystemExit as error:
            assert error.code == 0, words
            return
        assert rest == [], (words, rest)
        assert not changes or given.verb in CONFIGURED, words
        place = getattr(given, "config", None)
        if place and not place.startswith(YOURS):
            path, _, arg = place.partition(":")
            spec = str(ROOT / path) + (f":{arg}" if arg else "")
            overrides = [tuple(word.removeprefix("--config.").split("=", 1)) for word in changes]
            load = sweep.load if "sweep" in (given.verb, getattr(given, "what", None)) else schema.load
            try:
                load(spec, overrides)
            except ConfigError as error:
                if not re.match("runs/.* is not there", str(error)):  # a finished run that a command goes on from
                    raise
    elif words[:2] in (["pip", "install"], ["python", "-m"]) or words[0] in (
            "pytest", "eval", "ruff", "mypy", "mkdocs", "mkdir", "git"):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for name in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
            assert set(name.split(",")) <= set(extras), words
    elif words[0].startswith("tools/"):
        assert (ROOT / words[0]).is_file(), words
    elif words[0] == "cp":
        assert (ROOT / words[1]).is_file(), words
    elif words[0] == "python":
        assert words[1] == "program/run.py" or (ROOT / words[1]).is_file(), words
    else:
        raise AssertionError(f"{shlex.join(words)} is no command that a page should have")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_of_a_page_is_one(page):
    for words in commands(page.read_text()):
        check(words)


@pytest.mark.parametrize("verb", EXAMPLES)
def test_every_example_of_a_verbs_help_is_one(verb):
    lines = EXAMPLES[verb].replace("\\\n", " ").splitlines()
    for line in lines:
        if line.strip().startswith("lgm"):
            check(shlex.split(line.partition(" > ")[0].replace("$SLURM_ARRAY_TASK_ID", "0")))


def test_every_flag_says_what_it_is_by_default():
    (verbs,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, verb in verbs.choices.items():
        assert "examples:" in verb.format_help()
        for action in verb._actions:
            assert action.help, (name, action.dest)
            silent = action.default in (None, False, argparse.SUPPRESS) or action.required
            assert silent or "default" in action.help, (name, action.option_strings)


def test_files_that_pages_link_to_are_there():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            assert "://" in target or (page.parent / target).exists(), (page.name, target)


def test_each_convention_names_a_check_that_there_is():
    page = (ROOT / "docs/conventions.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| convention")]
    for row in rows:
        checks = re.findall(r"`([^`]+)`", row.split("|")[3])
        assert checks or "by hand" in row, row
        for file, _, test in (check.partition("::") for check in checks):
            path = ROOT / file if file == ".ci/run" else ROOT / "tests" / file
            assert path.exists() and (not test or f"def {test}(" in path.read_text()), (file, test)
    assert len(rows) > 30


def test_the_version_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__ and re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_a_released_readme_has_the_repositorys_files_at_its_tag():
    text, address = (ROOT / "README.md").read_text(), "https://example.org/them/lgm"
    out = release.absolute(text, address + "/", "v1.2.3")
    assert "](tools/figures/quickstart.png)" in text and f"]({address}/raw/v1.2.3/tools/figures/quickstart.png)" in out
    assert f"]({address}/blob/v1.2.3/docs/photos.md)" in out and "](#few-steps)" in out
    for target in re.findall(r"\]\(([^)\s]+)", out):
        assert target.startswith(("https://", "#")), target
    assert out.replace(f"{address}/raw/v1.2.3/", "").replace(f"{address}/blob/v1.2.3/", "") == text


def test_a_release_says_one_version(tmp_path):
    (tmp_path / "lgm").mkdir()
    for name in ("pyproject.toml", "lgm/__init__.py"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {__version__}, 2026-01-01\n")
    assert release.disagreement(tmp_path) is None
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n")
    assert f'"## {__version__}"' in release.disagreement(tmp_path)
    (tmp_path / "lgm/__init__.py").write_text('__version__ = "9.9.9"\n')
    assert "lgm/__init__.py" in release.disagreement(tmp_path)


def test_the_python_of_the_readme_is_the_example_of_the_library():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    example = (ROOT / "docs/examples/library.py").read_text()
    assert example.partition('"""\n\nimport ')[2] == code.removeprefix("import ")


@pytest.mark.slow
def test_the_example_of_the_library_trains_and_ends_with_a_picture(tmp_path, monkeypatch, capsys):
    """With a fifth of its training steps."""
    monkeypatch.chdir(tmp_path)
    code = (ROOT / "docs/examples/library.py").read_text()
    assert "jax.random.key(1), 100)" in code
    exec(compile(code.replace("jax.random.key(1), 100)", "jax.random.key(1), 21)"), "library.py", "exec"), {})
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert np.asarray(Image.open("library.png")).std() > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["library", "processes"])
def test_a_notebook_runs_from_its_first_cell_to_its_last(name, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / f"docs/examples/{name}.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # kept without what it made
    for cell in notebook.cells:
        cell.source = cell.source.replace("jax.random.key(1), 100)", "jax.random.key(1), 5)")
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3",
                            resources={"metadata": {"path": str(tmp_path)}}).execute()  # fmt: skip
    images = [output for cell in notebook.cells for output in cell.get("outputs", ())
              if "image/png" in output.get("data", {})]  # fmt: skip
    assert len(images) >= 1
