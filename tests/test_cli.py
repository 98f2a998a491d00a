"""Bad input: one clear line on stderr, a non-zero exit, nothing half-written."""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import zipfile

import pytest
from PIL import Image

from lgm.arguments import EXAMPLES, parser
from lgm.cli import main


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    return buffer.getvalue()


def image_folder(path, images=("a.png", "b.png"), listed=("a.png", "b.png"), content=None):
    path.mkdir()
    for name in images:
        (path / name).write_bytes(png() if content is None else content)
    rows = [json.dumps({"file_name": name, "text": "a red square"}) for name in listed]
    (path / "metadata.jsonl").write_text("\n".join(rows))
    return path


def refused(capsys, arguments) -> str:
    """The one line with which a command is refused."""
    assert main(arguments) != 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"lgm {arguments[0]}: "), lines
    return lines[0]


@pytest.fixture
def refuse_training(tiny_config, tmp_path, capsys):
    """Refused training: the error's line, after a check that no folder was made."""

    def check(*overrides, config=tiny_config):
        workdir = tmp_path / "workdir"
        line = refused(capsys, ["train", f"--config={config}", f"--workdir={workdir}", *overrides])
        assert not workdir.exists()
        return line

    return check


@pytest.mark.parametrize(("override", "parts"), [
    ("--config.optimizer.lrr=1", ["config.optimizer.lrr", "did you mean 'lr'"]),
    ("--config.model.widht=64", ["config.model.widht", "did you mean 'width'"]),
    ("--config.batch_size=many", ["config.batch_size='many'", "int"]),
    ("--config.optimizer.schedule=cosin", ["config.optimizer.schedule='cosin'", "'cosine'"]),
    ("--config.model.heads=5", ["config.model", "heads=5", "width=32"]),
    ("--config.model.family=mmditt", ["config.model.family='mmditt'", "mmdit"]),
    ("--config.model.text_dim=48", ["config.model.text_dim=48", "config.text.encoder.width=32"]),
    ("--config.process.name=rectified", ["config.process", "'rectified'", "rectified_flow"]),
    ("--config.loss.density.men=0", ["config.loss.density", "'men'", "mean"]),
    ("--config.loss.target=flw", ["config.loss.target='flw'", "'flow'"]),
    ("--config.sampling.solver=eulr", ["'eulr'", "did you mean 'euler'"]),
    ("--config.total_images=4", ["config.total_images=4", "config.batch_size=8"]),
    ("--config.batch_size=100000", ["config.batch_size=100000", "images"]),
    ("--config.text.long_captions=shorten", ["config.text.long_captions='shorten'", "'refuse'"]),
    ("--config.text.encoder.vocab_size=10", ["config.text.encoder.vocab_size=10", "4096"]),
    ("--config.data.source=/nowhere", ["config.data.source='/nowhere'", "emoji64"]),
    ("--config.autoencoder=/nowhere", ["config.autoencoder='/nowhere'", "emoji64"]),
    ("--config.mesh.fsdp=3", ["config.mesh", "fsdp=3", "1 devices"]),
    ("--workdirr=x", ["--workdirr=x", "did you mean '--workdir'"]),
])
def test_a_bad_value_is_one_line_that_names_it(refuse_training, override, parts):
    line = refuse_training(override)
    for part in parts:
        assert part in line


def test_captions_that_are_too_long_are_refused_where_that_is_asked_for(refuse_training):
    line = refuse_training("--config.text.encoder.max_length=5", "--config.text.long_captions=refuse")
    assert "tokens, more than the 5 of config.text.encoder.max_length" in line


def test_images_that_cannot_be_read_are_named(refuse_training, tmp_path):
    everything = ["--config.data.where={}", "--config.data.heldout_where={}"]
    source = lambda path: [f"--config.data.source={path}", *everything]
    missing = image_folder(tmp_path / "missing", listed=("a.png", "b.png", "c.png"))
    assert "c.png" in refuse_training(*source(missing))
    truncated = image_folder(tmp_path / "truncated", content=png()[:60])
    assert "a.png" in refuse_training(*source(truncated), "--config.batch_size=2")
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("metadata.jsonl", "{}")
    broken.write_bytes(broken.read_bytes()[:-30])
    assert "broken.zip" in refuse_training(*source(broken))


def test_a_batch_that_does_not_divide_over_devices_is_refused(tiny_config, tmp_path):
    command = [sys.executable, "-m", "lgm.cli", "train", f"--config={tiny_config}", f"--workdir={tmp_path / 'w'}",
               "--config.batch_size=9"]
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode != 0 and not (tmp_path / "w").exists()
    assert len(result.stderr.splitlines()) == 1 and "config.batch_size=9" in result.stderr


def test_the_folder_of_another_config_is_refused_and_left_alone(tiny_config, tiny_run, capsys):
    before = (tiny_run / "config.json").read_bytes()
    line = refused(capsys, ["train", f"--config={tiny_config}", f"--workdir={tiny_run}", "--config.optimizer.lr=0.5"])
    assert "config.optimizer.lr=0.003" in line and "0.5" in line
    assert (tiny_run / "config.json").read_bytes() == before


@pytest.mark.parametrize(("arguments", "part"), [
    (["--prompt= "], "--prompt is empty"),
    (["--prompt=face", "--solver=eulr"], "did you mean 'euler'"),
    (["--prompt=face", "--steps=0"], "--steps=0"),
])
def test_bad_sampling_arguments_write_nothing(tiny_run, tmp_path, capsys, arguments, part):
    out = tmp_path / "x.png"
    assert part in refused(capsys, ["sample", f"--workdir={tiny_run}", f"--out={out}", *arguments])
    assert not out.exists()


def test_a_name_that_is_a_whole_text_is_cut(tmp_path, capsys):
    line = refused(capsys, ["sample", f"--workdir={'x' * 5000}", "--prompt=a", f"--out={tmp_path / 'a.png'}"])
    assert len(line) < 1100 and "xxx ... xxx" in line


def test_an_absent_run_or_checkpoint_is_named(tiny_run, tmp_path, capsys):
    for verb, rest in (("sample", ["--prompt=face", "--out=x.png"]), ("evaluate", ["--out=x.json"])):
        assert "config.json" in refused(capsys, [verb, f"--workdir={tmp_path}", *rest])
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_bytes((tiny_run / "config.json").read_bytes())
    assert "checkpoints" in refused(capsys, ["sample", f"--workdir={empty}", "--prompt=face", "--out=x.png"])


@pytest.mark.parametrize("verb", EXAMPLES)
def test_help_shows_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0 and f"examples:\n  lgm {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("line, said", [
    ("trian --config=a.py", "lgm: there is no verb 'trian'; did you mean 'train'?; see lgm --help"),
    ("sample --promt=a --prompt=a --out=b --workdir=c",
     "lgm sample: unknown argument '--promt=a'; did you mean '--prompt'?"),
    ("sample stray --prompt=a --out=b --workdir=c", "lgm sample: unknown argument 'stray'; see --help"),
    ("sample --config.seed=1 --prompt=a --out=b --workdir=c",
     "lgm sample: unknown argument '--config.seed=1'; lgm sample takes no --config.KEY=VALUE"),
    ("train --config=a.py --workdir=b --config.seed 3",
     "lgm train: unknown argument '--config.seed'; write --config.KEY=VALUE"),
])  # fmt: skip
def test_a_misspelt_word_is_one_line_that_says_what_was_meant(line, said, capsys):
    with contextlib.suppress(SystemExit):
        assert main(line.split()) == 2
    assert capsys.readouterr().err == said + "\n"


def test_nothing_said_prints_the_help(capsys):
    assert main([]) == 2
    assert "usage: lgm" in capsys.readouterr().err


def test_the_package_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "lgm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lgm ")


def test_every_verb_is_there():
    choices = next(action.choices for action in parser()._actions if action.dest == "verb")
    assert set(EXAMPLES) <= set(choices)
    for sub in choices.values():
        module, _, function = sub.get_default("run").partition(":")
        assert callable(getattr(importlib.import_module(f"lgm.verbs.{module}"), function))


@pytest.mark.parametrize("words", [["--debug"], []])
def test_a_traceback_is_printed_where_it_is_asked_for(words, tmp_path, capsys, monkeypatch):
    arguments = ["train", f"--config={tmp_path}/absent.py", f"--workdir={tmp_path}/run"]
    if not words:
        monkeypatch.setenv("LGM_DEBUG", "1")
    assert main([*arguments, *words]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].startswith("Traceback") and printed[-1].startswith("lgm train: --config=")
    monkeypatch.setenv("LGM_DEBUG", "0")
    assert refused(capsys, arguments) == printed[-1]


def test_what_should_not_happen_is_one_line_too(monkeypatch, capsys):
    from lgm.verbs import info

    monkeypatch.setattr(info, "presets", lambda arguments, overrides: {}["absent"])
    assert main(["presets"]) == 70
    assert capsys.readouterr().err == "lgm presets: KeyError: 'absent'; --debug prints where\n"


@pytest.mark.parametrize("words", [["config", "--site"], ["status", "nowhere"]])
def test_where_no_one_reads_a_command_ends_without_a_word(words):
    """As behind `| head`: what it had to say, or its error, is what SIGPIPE would have cut."""
    end, written = os.pipe()
    os.close(end)
    done = subprocess.run([sys.executable, "-m", "lgm.cli", *words], stdout=written, stderr=written)
    os.close(written)
    assert done.returncode == 141
