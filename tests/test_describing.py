"""`lgm config` and `lgm presets`: every key is told as the schema has it, and what is printed can be given back."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lgm import config as schema
from lgm import describing
from lgm.cli import main
from lgm.models import build
from lgm.models.listing import preset
from lgm.parsing import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = ("quickstart.py", "quickstart_unet.py", "autoencoder.py", "emoji.py:model=unet,process=edm", "pod.py:flux_dev")


def test_every_key_that_is_told_is_one_and_none_is_missing():
    told = [key.path for _, _, keys in describing.sections() for key in keys]
    for name in FILES:
        config = schema.load(str(CONFIGS / name))
        keys = {key for key, *_ in describing.values_of(config) if not key.endswith(".family")}
        options = {f"loss.{name}" for name in getattr(config.loss, "options", {})}
        assert keys - options <= set(told)
    assert all(about for _, about, _ in describing.sections())  # every section says what it is for


def test_the_default_that_is_told_is_what_a_config_gets(tiny_config):
    config = {key: value for key, value, _ in describing.values_of(schema.load(tiny_config))}
    defaults = {key.path: key.default for title, _, keys in describing.sections() if " with " not in title
                for key in keys}  # fmt: skip
    for key in ("optimizer.b2", "mesh.data", "log.keep", "sampling.interval"):
        assert defaults[key] == repr(config[key])
    assert defaults["total_images"] is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("diff", [False, True])
def test_what_is_printed_given_back_is_the_same_config(name, diff, capsys, tmp_path):
    words = [f"--config={CONFIGS / name}", *(["--diff"] if diff else [])]
    assert main(["config", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    overrides = [tuple(line.partition("  # default")[0].removeprefix("--config.").split("=", 1)) for line in lines]
    path = tmp_path / "empty.py"
    path.write_text("def get_config():\n    return {}\n")
    given = [(key, value) for key, value in overrides if value != "None"]
    assert schema.load(str(path), given) == schema.load(str(CONFIGS / name))


def test_overrides_are_shown_and_need_a_file(tiny_config, capsys):
    assert main(["config", f"--config={tiny_config}", "--diff", "--config.optimizer.lr=0.5"]) == 0
    assert "--config.optimizer.lr=0.5  # default 0.001" in capsys.readouterr().out.splitlines()
    assert main(["config", "--diff"]) == 2 and "give --config=FILE.py" in capsys.readouterr().err
    assert main(["config"]) == 0
    assert "--config.optimizer.lr " in capsys.readouterr().out


def test_every_preset_is_told_and_can_be_built(capsys):
    assert main(["presets"]) == 0
    names = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"unet/sdxl", "mmdit/sd35_large", "flux/flux_dev", "t5/t5_v1_1_xxl"} <= set(names)
    for name in names:
        build(preset(name))
    with pytest.raises((ConfigError, ValueError)):
        preset("nothing")


def test_examples_of_a_verb_are_lines_that_can_be_copied(capsys):
    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    text = capsys.readouterr().out
    lines = [line.strip() for line in text.partition("examples:\n")[2].splitlines()]
    assert len(lines) == 2 and all(shlex.split(line)[:2] == ["lgm", "sample"] for line in lines)


@pytest.mark.parametrize(("line", "follows"), [
    ("lgm tra", {"train"}), ("lgm launch --on=", {"slurm", "gke", "tpu-vm", "local"}),
    ("lgm config --d", {"--debug", "--diff"}),
])
def test_a_shell_is_told_what_may_follow(line, follows, tmp_path, capsys):
    """As the script that `lgm completion` prints asks for it."""
    assert main(["completion"]) == 0 and "complete -o nospace" in capsys.readouterr().out
    words = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
             "_ARGCOMPLETE_COMP_WORDBREAKS": " =:", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "told")}
    subprocess.run([sys.executable, "-m", "lgm.cli"], env=os.environ | words, check=True)
    assert {word.strip() for word in (tmp_path / "told").read_text().split("\013")} == follows


@pytest.mark.parametrize("value", ["1", "'x'", "[1]", "{'name': [1]}", "{'family': ['x']}", "{'x': {'y': 1}}"])
def test_no_key_takes_what_it_cannot_with_more_than_one_line(value):
    """Each key of every section, as a person may mistype it: a config, or one line that names the key."""
    for key in {key.path for _, _, keys in describing.sections() for key in keys}:
        try:
            schema.load(str(CONFIGS / "quickstart.py"), [(key, value)])
        except ConfigError as error:
            assert "\n" not in str(error) and f"config.{key.partition('.')[0]}" in str(error)
