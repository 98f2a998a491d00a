"""Names of files and folders: what is refused in one line, and files that are there whole or not at all."""

import json
import os
import stat
from pathlib import Path

import pytest

from lgm import files
from lgm.cli import main
from lgm.parsing import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
REFUSED = ["", " ", "hdfs:x", "hdfs://name/x", "http://host/x", "https:x", "file:///tmp/x", "ftp:x", "gs:", "gs:x",
           "gs:/x", "gs://", "gs:///x", "s3:", "s3:/x", "s3://", "S3://bucket/x", "abfs://bucket/x", "C:x", "a\0b",
           "a\udcffb", "\ud800"]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_a_name_that_is_no_place_is_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        files.place(name, "--workdir")
    assert str(error.value).startswith("--workdir=") and "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("verb", ["train", "status", "evaluate", "export", "sample", "fit", "import", "launch",
                                  "sweep", "plan"])
@pytest.mark.parametrize("name", ["", "hdfs://x/y", "gs:/x", "s3:", "a\udcffb"], ids=ascii)
def test_every_verb_refuses_such_a_name_and_makes_nothing(verb, name, tiny_config, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = {"status": [name], "sample": [f"--workdir={name}", "--prompt=x", "--out=x.png"],
             "train": [f"--workdir={name}", f"--config={tiny_config}"], "fit": [f"--data={name}", "--out=x"],
             "evaluate": [f"--workdir={name}", "--out=x.json"], "export": [f"--workdir={name}", "--out=x"],
             "import": [f"--from={name}", "--workdir=x"],
             "launch": ["--on=local", f"--config={tiny_config}", f"--workdir={name}"],
             "sweep": ["--config=" + str(CONFIGS / "scaling" / "smoke.py"), f"--workdir={name}"],
             "plan": [f"--config={tiny_config}", "--topology=v5e:2x2", f"--json={name}"]}[verb]
    assert main([verb, *words]) == 2
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith(f"lgm {verb}: ")
    assert os.listdir(tmp_path) == []


def test_a_launched_run_needs_a_folder_that_the_cluster_mounts(tiny_config, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["launch", "--on=local", f"--config={tiny_config}", "--workdir=gs://bucket/run"]) == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1 and "--workdir=gs://bucket/run" in err and os.listdir(tmp_path) == []


def test_a_store_without_its_package_is_refused_with_the_extra_to_install(monkeypatch):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    for name, extra in (("gs://bucket/x", "gcs"), ("s3://bucket/x", "s3")):
        with pytest.raises(ConfigError, match=rf"pip install 'lgm\[{extra}\]'"):
            files.place(name)


@pytest.mark.parametrize("name", ["lr[1e-3]", "a*b", "q?", "back\\slash", "sp ace", "ünï", "[", "./run:1"])
def test_other_names_are_local_paths_and_have_a_name_that_no_library_misreads(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path = files.place(name)
    files.write_atomically(path / "a" / "b.json", json.dumps([1]).encode())
    assert files.read_json(files.plain(path) / "a" / "b.json") == [1]
    assert not files.UNREADABLE.search(str(files.plain(path)))
    assert [p.name for p in files.below(path)] == ["b.json"]


def test_json_that_cannot_be_read_is_one_line(tmp_path):
    for name, content in (("deep", "[" * 100_000), ("cut", '{"a": '), ("bytes", b"\xff\xfe\x00")):
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(ConfigError, match="is not JSON"):
            files.read_json(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read"):
        files.read_json(tmp_path)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    def half(folder):
        (folder / "a").write_text("a")
        raise OSError("no more")

    with pytest.raises(OSError):
        files.write_folder(tmp_path / "x", half)
    assert list(tmp_path.iterdir()) == []
    files.write_folder(tmp_path / "x", lambda folder: (folder / "a").write_text("a"))
    files.copy(tmp_path / "x", tmp_path / "y")
    assert (tmp_path / "y" / "a").read_text() == "a"


def test_a_device_a_pipe_or_a_folder_is_not_replaced_by_a_file(tmp_path):
    """Whoever may write into /dev, as root may, would lose /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((Path("/dev/null"), "device"), (tmp_path / "pipe", "pipe"), (tmp_path, "folder")):
        with pytest.raises(ConfigError, match=f"{path} is a .*{what}.*; give a file's name"):
            files.write_atomically(path, b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    (tmp_path / "link").symlink_to("/dev/null")
    with pytest.raises(ConfigError, match="is a device"):
        files.write_atomically(tmp_path / "link", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]
