"""Files, locks, checkpoints, metrics, caches and image folders in gs:// and s3://, on servers of the protocols."""

import dataclasses
import io
import json
import tarfile
import zipfile
from pathlib import Path

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stores import forget, store  # noqa: F401

from lgm import config, files
from lgm.cli import main
from lgm.config.reading import read_config_file
from lgm.data import open_images, read_cache, write_index, write_shard
from lgm.interop.lora_files import lora_of
from lgm.launching.status import of_run
from lgm.parsing import ConfigError
from lgm.pictures import read_image, read_noise
from lgm.planning.command import _finish as write_plan
from lgm.scaling.fit import planned_pod
from lgm.train import lock
from lgm.train.checkpoint import Checkpoints
from lgm.train.lock import NAME, Lock, hold
from lgm.train.logs import MetricLog
from lgm.train.saved import newest_checkpoint

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
    shard, table = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as file:
        for name, content in (("1.png", picture.getvalue()), ("1.txt", b"red")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    pq.write_table(pa.table({"image": [picture.getvalue()], "text": ["red"]}), table)
    for name, content in (("1.tar", shard.getvalue()), ("1.parquet", table.getvalue())):
        files.write_atomically(files.place(f"{store}/shards-{name}/{name}"), content)
        images = open_images(f"{store}/shards-{name}", resolution=8)
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


def test_configs_plans_arrays_and_pictures(store, tiny_config, tmp_path):  # noqa: F811
    place = files.place(f"{store}/inputs")
    files.write_atomically(place / "tiny.py", Path(tiny_config).read_bytes())
    tiny = config.load(tiny_config)
    assert config.load(f"{store}/inputs/tiny.py", [("seed", "3")]) == dataclasses.replace(tiny, seed=3)
    values = json.dumps(config.to_dict(tiny)).encode()
    files.write_atomically(place / "config.json", values)
    assert config.load(f"{store}/inputs/config.json") == config.read(place) == tiny
    files.write_atomically(place / "sized.py", b"def get_config(arg):\n    return {'name': arg}\n")
    assert read_config_file(f"{store}/inputs/sized.py:xl") == {"name": "xl"}
    with pytest.raises(ConfigError, match="absent.py is not a config file"):
        read_config_file(f"{store}/inputs/absent.py:xl")
    plan = {"chip": "v5e", "chips": 16, "mfu": 0.4, "fits": True}
    write_plan("", {"best": plan}, "", f"{store}/inputs/plan.json")
    assert planned_pod(f"{store}/inputs/plan.json").chips == 16
    noise, picture = io.BytesIO(), io.BytesIO()
    np.save(noise, np.ones((1, 2, 2, 4), np.float32))
    Image.new("RGB", (8, 8), (255, 0, 0)).save(picture, "PNG")
    files.write_atomically(place / "noise.npy", noise.getvalue())
    files.write_atomically(place / "start.png", picture.getvalue())
    assert read_noise(f"{store}/inputs/noise.npy").shape == (1, 2, 2, 4)
    assert read_image(f"{store}/inputs/start.png")[0, 0].tolist() == [1, 0, 0]
    for text in (f"{store}/inputs/start.png", f"{store}/inputs/start.png:0.5"):
        with pytest.raises(ValueError, match="start.png"):  # found, and no LoRA
            lora_of(text)


def test_a_bucket_that_is_not_there_is_one_line(store, capfd):  # noqa: F811
    address = f"{store}-that-is-not-there/run"
    assert main(["status", address]) == 2
    err = [line for line in capfd.readouterr().err.splitlines() if line.startswith("lgm ")]  # the emulator prints, too
    assert len(err) == 1 and address in err[0]
    with pytest.raises(ConfigError, match=f"{address} cannot be written"), hold(files.place(address)):
        pass


def test_a_store_that_does_not_answer_is_one_line(monkeypatch, capfd):
    settings = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    forget("s3")
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
    try:
        assert main(["status", "s3://bucket/run"]) == 2
    finally:
        forget("s3")
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1 and "127.0.0.1:9" in err
    assert err.startswith("lgm status: a store cannot be used: ")
