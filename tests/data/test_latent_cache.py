import ml_dtypes
import numpy as np
import pytest

from lgm.data import batches, read_cache, write_index, write_shard
from lgm.data.cache import has_shard

MADE_OF = {"autoencoder": "abc", "images": "123"}


def fill(folder, dtype=np.float32, made_of=MADE_OF, rows=(4, 3, 5)):
    latent = np.random.default_rng(0).normal(size=(sum(rows), 2, 2, 3)).astype(dtype)
    start = 0
    for number, count in enumerate(rows):
        part = slice(start, start + count)
        write_shard(folder, number, {"latent": latent[part], "ids": np.arange(start, start + count)}, made_of)
        start += count
    return latent


def refused(folder, made_of=MADE_OF):
    with pytest.raises(ValueError) as caught:
        read_cache(folder, made_of)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_is_read_is_what_was_written(tmp_path, dtype):
    latent = fill(tmp_path, dtype)
    write_index(tmp_path, 3, MADE_OF)
    cache = read_cache(tmp_path, MADE_OF)
    assert len(cache["latent"]) == 12 and cache["latent"].shape == (12, 2, 2, 3)
    rows = np.array([11, 0, 4, 4, 3, 7])
    got = cache["latent"][rows]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, latent[rows].astype(np.float32))
    np.testing.assert_array_equal(np.asarray(cache["latent"]), latent.astype(np.float32))
    np.testing.assert_array_equal(np.asarray(cache["ids"]), np.arange(12))
    with pytest.raises(IndexError):
        cache["latent"][np.array([12])]


def test_batches_from_disk_are_the_batches_from_memory(tmp_path):
    latent = fill(tmp_path)
    write_index(tmp_path, 3, MADE_OF)
    from_disk = batches(read_cache(tmp_path, MADE_OF), batch_size=5, seed=0)
    from_memory = batches({"latent": latent}, batch_size=5, seed=0)
    for _ in range(4):
        np.testing.assert_array_equal(next(from_disk)["latent"], next(from_memory)["latent"])


def test_a_cache_of_another_autoencoder_or_of_other_images_is_refused(tmp_path):
    fill(tmp_path)
    write_index(tmp_path, 3, MADE_OF)
    assert "made with autoencoder=abc, not def" in refused(tmp_path, {**MADE_OF, "autoencoder": "def"})
    assert "made with images=123, not 456" in refused(tmp_path, {**MADE_OF, "images": "456"})


def test_one_unfinished_or_absent_is_refused(tmp_path):
    assert "is not there" in refused(tmp_path / "absent")
    fill(tmp_path)
    assert "is unfinished" in refused(tmp_path)
    with pytest.raises(ValueError, match="shard-00003.safetensors is not there"):
        write_index(tmp_path, 4, MADE_OF)
    write_index(tmp_path, 3, MADE_OF)
    write_shard(tmp_path, 1, {"latent": np.zeros((3, 2, 2, 3), np.float32)}, {"autoencoder": "def"})
    assert "is unfinished" in refused(tmp_path)  # encoding over a cache makes it incomplete until the new index
    with pytest.raises(ValueError, match="shard-00001.safetensors was made with autoencoder=def"):
        write_index(tmp_path, 3, MADE_OF)


def test_a_damaged_shard_or_index_is_named(tmp_path):
    fill(tmp_path)
    write_index(tmp_path, 3, MADE_OF)
    shard = tmp_path / "shard-00002.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-7])
    assert "shard-00002.safetensors is no whole shard" in refused(tmp_path)
    shard.write_bytes((tmp_path / "shard-00001.safetensors").read_bytes())
    assert "shard-00002.safetensors is not the shard that index.json counts" in refused(tmp_path)
    fill(tmp_path)
    write_index(tmp_path, 3, MADE_OF)
    content = bytearray(shard.read_bytes())
    content[-2] ^= 1  # in the last array's last row, which its header does not tell
    shard.write_bytes(content)
    for name, cached in read_cache(tmp_path, MADE_OF).items():
        np.asarray(cached[np.arange(11)])
        if name == "latent":
            for read in (np.asarray, lambda array: array[np.array([11])]):
                with pytest.raises(ValueError, match="shard-00002.safetensors is damaged: latent is not as it was wri"):
                    read(cached)
    (tmp_path / "index.json").write_text("[]")
    assert "is no cache's index" in refused(tmp_path)


def test_an_interrupted_encoding_knows_which_shards_it_has(tmp_path):
    fill(tmp_path, rows=(4, 3))
    assert has_shard(tmp_path, 1, 3, MADE_OF)
    assert not has_shard(tmp_path, 1, 4, MADE_OF)
    assert not has_shard(tmp_path, 1, 3, {"autoencoder": "def"})
    assert not has_shard(tmp_path, 2, 3, MADE_OF)
    assert not list(tmp_path.glob(".*"))  # nothing half-written stays


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="arrays of one length"):
        write_shard(tmp_path, 0, {"a": np.zeros(2), "b": np.zeros(3)}, MADE_OF)
    with pytest.raises(Exception, match="."):
        write_shard(tmp_path, 0, {"a": np.array(["text", "is no tensor"])}, MADE_OF)
    assert not list(tmp_path.iterdir())
