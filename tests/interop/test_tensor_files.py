"""Safetensors in and out, against the safetensors library, and every broken file named in one line."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from lgm.interop.keymap import Rule, linear, to_theirs
from lgm.interop.tensor_files import load, open_weights, save


def tensors():
    rng = np.random.default_rng(0)
    new = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return {
        "a.weight": new(5, 3),
        "b.weight": new(7, 2).astype(ml_dtypes.bfloat16),
        "c.weight": new(2, 3, 1, 4)[:, ::-1].astype(np.float16),
        "steps": np.asarray(7, np.int64),
        "empty": np.zeros((0, 4), np.float32),
    }


@pytest.mark.parametrize("shard_bytes", [5 << 30, 40])
def test_what_is_written_is_read_back_and_by_the_safetensors_library(tmp_path, shard_bytes):
    save(tensors().items(), tmp_path, "model", shard_bytes)
    assert len(list(tmp_path.iterdir())) == (1 if shard_bytes > 40 else 5)
    weights = open_weights(tmp_path)
    assert set(weights.names) == set(tensors())
    reference = {}
    for file in tmp_path.glob("*.safetensors"):
        reference |= safetensors.torch.load_file(file)
    for name, value in tensors().items():
        ours = weights.get(name)
        assert ours.dtype == value.dtype and ours.shape == value.shape and ours.tobytes() == value.tobytes()
        raw = reference[name].contiguous()
        assert tuple(raw.shape) == value.shape
        np.testing.assert_array_equal(raw.to(torch.float64).numpy(), value.astype(np.float64))


def test_files_of_the_safetensors_library_are_read(tmp_path):
    safetensors.numpy.save_file({"x": np.arange(6).reshape(2, 3)}, tmp_path / "x.safetensors", {"format": "np"})
    np.testing.assert_array_equal(open_weights(tmp_path / "x.safetensors").get("x"), np.arange(6).reshape(2, 3))


def test_an_index_lists_every_tensor_and_the_size(tmp_path):
    save(tensors().items(), tmp_path, "model", 40)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors().values())


def test_variants_count_only_where_there_is_nothing_else(tmp_path):
    save([("x", np.zeros(1, np.float16))], tmp_path, "model.fp16")
    assert open_weights(tmp_path).get("x").dtype == np.float16
    save([("x", np.zeros(1, np.float32))], tmp_path, "model")
    assert open_weights(tmp_path).get("x").dtype == np.float32
    save([("x", np.zeros(1, np.float32))], tmp_path, "other")
    with pytest.raises(ValueError, match="several sets of weights"):
        open_weights(tmp_path)


@pytest.mark.parametrize("shard", ["model.fp16-0000{}-of-00002", "model-0000{}-of-00002.fp16"])
def test_shards_of_a_variant_are_found_by_its_index(tmp_path, shard):
    """As transformers and newer diffusers name them, and as older diffusers did."""
    for number, name in enumerate("xy", 1):
        save([(name, np.full(2, number, np.float16))], tmp_path, shard.format(number))
    files = {name: f"{shard.format(number)}.safetensors" for number, name in enumerate("xy", 1)}
    (tmp_path / "model.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": files}))
    np.testing.assert_array_equal(open_weights(tmp_path).get("y"), np.full(2, 2, np.float16))
    save([("x", np.zeros(1, np.float32))], tmp_path, "model")
    assert open_weights(tmp_path).get("x").dtype == np.float32


def test_tensors_can_be_renamed_and_dropped(tmp_path):
    save(tensors().items(), tmp_path, "model")
    weights = open_weights(tmp_path).renamed(lambda name: None if name == "steps" else f"text.{name}")
    assert set(weights.names) == {f"text.{name}" for name in tensors() if name != "steps"}
    np.testing.assert_array_equal(weights.get("text.a.weight"), tensors()["a.weight"])
    with pytest.raises(ValueError, match="has one tensor twice, as 'a.weight' and as 'b.weight'; keep one"):
        open_weights(tmp_path).renamed(lambda name: name.replace("b.", "a."))


RULES = linear("blocks/mlp", "h.{layer}.mlp") + [Rule("scale", "scale")]


def params():
    keys = jax.random.split(jax.random.key(0), 3)
    normal = jax.random.normal
    return {"blocks": {"mlp": {"kernel": normal(keys[0], (2, 4, 6)), "bias": normal(keys[1], (2, 6))}},
            "scale": normal(keys[2], (4,))}  # fmt: skip


def abstract():
    return jax.eval_shape(params)


def test_parameters_load_into_dtype_and_sharding(tmp_path):
    save(to_theirs(RULES, params()).items(), tmp_path, "model")
    jax.tree.map(np.testing.assert_array_equal, load(RULES, abstract(), tmp_path), params())
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for shardings in (device, jax.tree.map(lambda _: device, abstract())):
        loaded = load(RULES, abstract(), tmp_path, dtype=jnp.bfloat16, shardings=shardings)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
        cast = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params())
        jax.tree.map(np.testing.assert_array_equal, loaded, cast)


def test_a_misfit_names_the_file(tmp_path):
    save({"scale": np.zeros(4, np.float32)}.items(), tmp_path, "model")
    with pytest.raises(ValueError, match=r"model.safetensors: the checkpoint lacks 'h.0.mlp.weight' and 3 more"):
        load(RULES, abstract(), tmp_path)


def broken(name):
    """The bytes of a file that is broken in the named way."""
    whole = safetensors.numpy.save({"x": np.arange(8, dtype=np.float32)})
    length = int.from_bytes(whole[:8], "little")
    return {
        "empty": b"",
        "cut in the header": whole[:20],
        "cut in the data": whole[:-1],
        "too long": whole + b"x",
        "random": bytes(np.random.default_rng(0).integers(0, 256, 200, np.uint8)),
        "no json": whole[:8] + b"?" * length + whole[8 + length :],
        "unknown dtype": whole.replace(b'"F32"', b'"F99"'),
        "wrong range": whole.replace(b"[0,32]", b"[0,31]"),
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }[name]


@pytest.mark.parametrize(
    "name, message",
    [
        ("empty", "cut short"),
        ("cut in the header", "cut short"),
        ("cut in the data", "header says"),
        ("too long", "header says"),
        ("random", "no safetensors file"),
        ("no json", "corrupt safetensors header"),
        ("unknown dtype", "corrupt safetensors header"),
        ("wrong range", "corrupt safetensors header"),
        ("lfs", "git-lfs pointer"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, name, message):
    (tmp_path / "x.safetensors").write_bytes(broken(name))
    with pytest.raises(ValueError, match=message) as error:
        open_weights(tmp_path)
    assert "x.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_a_broken_set_of_shards_is_named(tmp_path):
    save(tensors().items(), tmp_path, "model", 40)
    index = tmp_path / "model.safetensors.index.json"
    whole = index.read_text()
    index.write_text(whole.replace('"empty"', '"absent"'))
    with pytest.raises(ValueError, match="promises 'absent'"):
        open_weights(tmp_path)
    index.write_text(whole.replace("model-00001", "../model-00001"))
    with pytest.raises(ValueError, match="no index of safetensors shards"):
        open_weights(tmp_path)
    index.write_text(whole)
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(ValueError, match="model-00002-of-00004.safetensors, which is not beside it"):
        open_weights(tmp_path)


def test_pickles_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no .safetensors file"):
        open_weights(tmp_path)
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="only pickled weights"):
        open_weights(tmp_path)
    for name in ("pytorch_model.bin", "v1-5.ckpt", "model.pt"):
        with pytest.raises(ValueError, match="is a pickle"):
            open_weights(tmp_path / name)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    def failing():
        yield "a", np.zeros(100, np.float32)
        yield "b", np.zeros(100, np.float32)
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError):
        save(failing(), tmp_path, "model", 100)
    with pytest.raises(ValueError, match="complex64"):
        save([("x", np.zeros(1, np.complex64))], tmp_path, "model")
    assert list(tmp_path.iterdir()) == []
