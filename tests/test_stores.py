"""Files, locks, checkpoints, metrics, caches and image folders in gs:// and s3://, on servers of the protocols."""

import io
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from stores import store  # noqa: F401

from lgm import files
from lgm.data import open_images, read_cache, write_index, write_shard
from lgm.launching.status import of_run
from lgm.parsing import ConfigError
from lgm.train import lock
from lgm.train.checkpoint import Checkpoints
from lgm.train.lock import NAME, Lock, hold
from lgm.train.logs import MetricLog
from lgm.train.steps import newest_checkpoint

pytestmark = pytest.mark.slow


def state(step):
    return {"step": jnp.int32(step), "w": jax.random.normal(jax.random.key(step), (30, 40))}


def test_files_and_folders(store, tmp_path):  # noqa: F811
    place = files.place(f"{store}/files//a/")
    assert str(place) == f"{store}/files/a" and files.is_remote(place) and not place.exists()
    assert files.folders(place) == [] and list(files.below(place)) == []
    files.write_atomically(place / "x" / "config.json", b"[1]")
    files.write_atomically(place / "x" / "config.json", b"[2]")
    assert files.read_json(place / "x" / "config.json") == [2] and place.is_dir() and not place.is_file()
    files.write_folder(place / "y", lambda folder: (folder / "data").write_bytes(b"d"))
    assert [path.name for path in files.folders(place)] == ["x", "y"]
    files.copy(place, tmp_path / "copy")
    files.copy(tmp_path / "copy", files.place(f"{store}/files/b"))
    files.copy(files.place(f"{store}/files/b"), files.place(f"{store}/files/c"))
    assert [str(path)[len(store) :] for path in files.below(files.place(f"{store}/files/c"))] == \
        ["/files/c/x/config.json", "/files/c/y/data"]
    assert (files.local(f"{store}/files/a") / "y" / "data").read_bytes() == b"d"
    assert files.local(f"{store}/files/a/y/data").read_bytes() == b"d"
    files.write_atomically(place / "y" / "data", b"ee")
    assert (files.local(f"{store}/files/a") / "y" / "data").read_bytes() == b"ee"
    assert not files.local(f"{store}/files/nothing").exists()
    files.remove(place)
    assert not place.exists() and files.place(f"{store}/files/b").exists()
    with pytest.raises(ConfigError, match="cannot be read"):
        files.read_json(place / "x" / "config.json")


def test_a_lock(store, monkeypatch):  # noqa: F811
    monkeypatch.setattr(lock, "SILENCE", 0.3)
    place = files.place(f"{store}/locked")
    with hold(place), pytest.raises(ConfigError, match="is held by process"), hold(place):
        pass
    assert not (place / NAME).exists()
    for dead in (Lock(place / NAME).mine | {"started": "5"}, {"machine": "another"}):
        files.write_atomically(place / NAME, json.dumps(dead).encode())
        with hold(place) as held:
            assert json.loads((place / NAME).read_bytes())["id"] == held.mine["id"]
        assert list(files.below(place)) == []


def test_checkpoints(store, capfd):  # noqa: F811
    place = files.place(f"{store}/run")
    checkpoints = Checkpoints(place, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"position": step})
    checkpoints.close()
    checkpoints = Checkpoints(place, keep=2)
    assert checkpoints.steps() == [3, 2] and newest_checkpoint(place) == 3
    abstract = jax.eval_shape(lambda: state(0))
    found, data = checkpoints.restore(abstract)
    assert data == {"position": 3} and np.asarray(found["w"]).tobytes() == np.asarray(state(3)["w"]).tobytes()
    checkpoints.close()
    for path in list(files.below(place / "checkpoints" / "3" / "state")):
        path.unlink()
    capfd.readouterr()
    checkpoints = Checkpoints(place, keep=2)
    found, data = checkpoints.restore(abstract, repair=True)
    err = capfd.readouterr().err
    assert data == {"position": 2} and checkpoints.latest() == 2
    said = [line for line in err.splitlines() if line.startswith(str(place))]  # the emulator prints here too
    assert len(said) == 1 and said[0].startswith(f"{place}/checkpoints/3 cannot be read (")
    checkpoints.save(3, state(3), {"position": 3})
    checkpoints.close()
    assert newest_checkpoint(place) == 3


def test_metrics_and_events(store):  # noqa: F811
    place = files.place(f"{store}/metrics")
    log = MetricLog(place, step=0)
    log.write(1, 8, {"loss": 2.0})
    log.write(2, 16, {"loss": 1.0})
    log.image(2, "samples", np.zeros((4, 4, 3), np.uint8))
    log.close()
    log = MetricLog(place, step=1)
    log.write(2, 16, {"loss": 0.5})
    log.flush()
    assert of_run(place, None, "")["loss"] == 0.5
    log.close()
    rows = [json.loads(row) for row in (place / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [2.0, 0.5]
    assert any("tfevents" in path.name for path in files.folders(place))


def test_images_and_caches(store):  # noqa: F811
    place, archive, picture = files.place(f"{store}/images"), io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 10)).save(picture, "PNG")
    rows = b'{"file_name": "a/1.png", "text": "red"}\n'
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in (("metadata.jsonl", rows), ("a/1.png", picture.getvalue())):
            files.write_atomically(place / name, content)
            file.writestr(name, content)
    files.write_atomically(files.place(f"{store}/images.zip"), archive.getvalue())
    for source in (f"{store}/images", f"{store}/images.zip"):
        images = open_images(source, resolution=8)
        assert images.captions == ["red"] and images.image(0)[0, 0].tolist() == [200, 30, 10]
    files.write_atomically(place / "metadata.jsonl", rows.replace(b"1.png", b"2.png"))
    with pytest.raises(ValueError, match="names a/2.png, which is not there"):
        open_images(f"{store}/images", resolution=8)
    with pytest.raises(ValueError, match="is not there"):
        open_images(f"{store}/nothing", resolution=8)
    latents = np.arange(6, dtype=np.float32).reshape(3, 2)
    write_shard(f"{store}/cache", 0, {"latent": latents}, {"images": "x"})
    with pytest.raises(ValueError, match="unfinished"):
        read_cache(f"{store}/cache", {"images": "x"})
    write_index(f"{store}/cache", 1, {"images": "x"})
    assert np.array_equal(np.asarray(read_cache(f"{store}/cache", {"images": "x"})["latent"]), latents)
