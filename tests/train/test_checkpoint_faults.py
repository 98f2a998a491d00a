"""Checkpoints that are emptied, cut short, damaged or in no place for them: one line, and the one before is read."""

import errno
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm import files
from lgm.parsing import ConfigError
from lgm.train.checkpoint import Checkpoints
from lgm.train.logs import MetricLog
from lgm.train.loop import _room
from lgm.train.saved import newest_checkpoint


def state(step):
    return {"step": jnp.int32(step), "w": jax.random.normal(jax.random.key(step), (300, 40))}


ABSTRACT = jax.eval_shape(lambda: state(0))


def written(workdir, steps=(1, 2)):
    checkpoints = Checkpoints(workdir)
    for step in steps:
        checkpoints.save(step, state(step), {"position": step})
        checkpoints.wait()
    checkpoints.close()
    return workdir / "checkpoints"


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def half(folder):
    for path in sorted(path for path in folder.rglob("*") if path.is_file())[::2]:
        path.unlink()


def without_state(folder):
    shutil.rmtree(folder / "state")


def without_position(folder):
    shutil.rmtree(folder / "data")


def cut_short(folder):
    path = largest(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied_file(folder):
    largest(folder).write_bytes(b"")


def flipped_bit(folder):
    content = bytearray(largest(folder).read_bytes())
    content[len(content) // 2] ^= 4
    largest(folder).write_bytes(content)


def no_json(folder):
    for path in (folder / "data").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\0{")


def a_pipe(folder):
    path = largest(folder)
    path.unlink()
    os.mkfifo(path)


def a_device(folder):
    path = largest(folder)
    path.unlink()
    path.symlink_to("/dev/zero")


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("")


FAULTS = [empty, half, without_state, without_position, cut_short, emptied_file, flipped_bit, no_json, a_pipe, a_device,
          a_file]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_damaged_checkpoint_is_said_in_one_line_and_the_one_before_is_read(fault, tmp_path, capfd):
    place = written(tmp_path)
    fault(place / "2")
    capfd.readouterr()
    checkpoints = Checkpoints(tmp_path)
    found, data = checkpoints.restore(ABSTRACT, repair=True)
    out, err = capfd.readouterr()
    assert int(found["step"]) == data["position"] == checkpoints.latest() == newest_checkpoint(tmp_path) == 1
    assert np.asarray(found["w"]).tobytes() == np.asarray(state(1)["w"]).tobytes()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith(f"{place / '2'} cannot be read (") and err.endswith("going on from the one before\n")
    checkpoints.save(2, state(2), {"position": 2})  # the step can be written again
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    found, _ = checkpoints.restore(ABSTRACT)
    checkpoints.close()
    assert int(found["step"]) == 2 and capfd.readouterr().err == ""


def test_where_no_checkpoint_is_whole_there_is_one_line_each_and_an_error(tmp_path, capfd):
    place = written(tmp_path)
    flipped_bit(place / "1")
    empty(place / "2")
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ConfigError, match="holds no checkpoint that can be read; delete it to train from the start"):
        checkpoints.restore(ABSTRACT, repair=True)
    checkpoints.close()
    assert len(capfd.readouterr().err.splitlines()) == 2
    assert {"1", "2"} <= {path.name for path in place.iterdir()}  # nothing is moved where nothing can go on


def test_checkpoints_in_the_place_of_which_a_file_lies_are_refused(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        Checkpoints(tmp_path)


@pytest.mark.parametrize("name", ["lr[1e-3]", "a*b", "q?", "back\\slash", "sp ace", "ünï", "[", "{x}", "%41"])
def test_what_is_saved_under_any_name_can_be_read_again(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written(tmp_path / name, steps=(3,))
    assert (tmp_path / name / "checkpoints" / "3").is_dir()
    checkpoints = Checkpoints(tmp_path / name)
    found, _ = checkpoints.restore(ABSTRACT)
    checkpoints.close()
    assert np.asarray(found["w"]).tobytes() == np.asarray(state(3)["w"]).tobytes()


ROWS = ["7", "[1, 2]", "null", '"x"', "true", "{", "", '{"images": 8}', '{"step": "2", "images": 1}',
        '{"step": 1.5, "images": 1}', '{"step": null}', '{"step": [1]}', '{"step": true}', "[" * 50_000,
        "\udcff"]  # fmt: skip


def test_rows_that_are_none_of_ours_are_dropped_and_the_rest_is_kept(tmp_path):
    from lgm.launching.status import of_run

    good = ['{"step": 1, "images": 8, "loss": 2.0}', '{"step": 2, "images": 16, "loss": 1.0}']
    later = '{"step": 3, "images": 24, "loss": 0.5}'
    rows = [good[0], *ROWS, good[1], later]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(rows).encode(errors="surrogateescape"))
    assert of_run(tmp_path, None, "")["images"] == 24
    log = MetricLog(tmp_path, step=2)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == good


def test_metrics_in_the_place_of_which_a_folder_lies_are_refused(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        MetricLog(tmp_path, step=0)


FULL = """
import sys
sys.path.insert(0, sys.argv[2])
from test_checkpoint_faults import *
from lgm.cli import main
import lgm.train.main
def train(spec, workdir, *words):
    checkpoints = Checkpoints(workdir)
    try:
        for step in range(1, 100):
            big = {"step": jnp.int32(step), "w": jax.random.normal(jax.random.key(step), (300, 300))}
            big |= {f"w{i}": big["w"][i] for i in range(50)}  # many writes are under way when the first fails
            checkpoints.save(step, big, {"position": step})
        checkpoints.wait()
    finally:
        checkpoints.close()
lgm.train.main.train = train
sys.exit(main(["train", "--config=x.py", f"--workdir={sys.argv[1]}"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["64k", "1m"])
def test_a_full_disk_ends_in_one_line_and_leaves_what_was_whole(size, tmp_path):
    """A real small disk; that a checkpoint which cannot fit is not begun is shown without one below."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"only root may mount a small disk to fill: {mounted.stderr.decode().strip()}")
    try:
        done = subprocess.run([sys.executable, "-c", FULL, str(place / "run"), os.path.dirname(__file__)], text=True,
                              capture_output=True, timeout=200)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1 and "no space is left" in done.stderr, done.stderr[-3000:]
        if newest_checkpoint(place / "run") is not None:
            checkpoints = Checkpoints(place / "run")
            big = {"step": ABSTRACT["step"], "w": jax.ShapeDtypeStruct((300, 300), jnp.float32)}
            big |= {f"w{i}": jax.ShapeDtypeStruct((300,), jnp.float32) for i in range(50)}
            found, data = checkpoints.restore(big)
            checkpoints.close()
            assert int(found["step"]) == data["position"]
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert files.folders(place) == []


def test_a_checkpoint_that_cannot_fit_is_not_begun(tmp_path, monkeypatch, capfd):
    place = written(tmp_path, steps=(1,))
    free = sum(leaf.nbytes for leaf in jax.tree.leaves(state(2))) - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - free, free))
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(OSError, match=r"no space is left: 0\.\d MB are needed, 0\.0 MB are free.*before it are whole"):
        checkpoints.save(2, state(2), {"position": 2})
    checkpoints.close()
    assert {path.name for path in place.iterdir()} == {"1", "1.sums"} and capfd.readouterr().err == ""


def test_a_run_killed_before_its_first_checkpoint_begins_with_no_rows_of_that_start(tmp_path):
    for _ in range(2):
        log = MetricLog(tmp_path, step=0)
        log.write(0, 0, {"heldout_loss": 1.0})
        log.close()
    assert (tmp_path / "metrics.jsonl").read_text().count("heldout_loss") == 1


def test_where_no_space_is_left_the_line_names_the_folder(tmp_path):
    with pytest.raises(OSError, match=f"{tmp_path} cannot be written: no space is left"), _room(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(PermissionError), _room(tmp_path):
        raise PermissionError(errno.EACCES, "no")
