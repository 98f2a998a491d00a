"""Weights alone out of a checkpoint: the right ones, where they are wanted, and one line for what is not there."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lgm.parsing import ConfigError
from lgm.train.checkpoint import Checkpoints
from lgm.train.restoring import restore_weights
from lgm.train.state import TrainState

SHAPES = {"denoiser": {"in": {"kernel": (3, 5)}, "bias": (5,)}, "text": {"table": (7, 2)}}


def numbered(start):
    rows = iter(range(start, start + 10))
    return jax.tree.map(lambda shape: next(rows) + jnp.arange(float(np.prod(shape))).reshape(shape), SHAPES,
                        is_leaf=lambda node: isinstance(node, tuple))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Checkpoints of steps 3 and 5; weights are told by their first entry."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder)
    for step in (3, 5):
        params = numbered(10 * step)
        state = TrainState(jnp.int32(step), params, optax.adam(1e-3).init(params), numbered(100 * step))
        checkpoints.save(step, state, {})
    checkpoints.wait()
    checkpoints.close()
    return folder


def abstract():
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), numbered(0))


@pytest.mark.parametrize(("kind", "start"), [("ema", 500), ("raw", 50)])
def test_the_newest_weights_of_the_kind_that_is_asked_for(run, kind, start):
    found, step = restore_weights(run, abstract(), kind)
    assert step == 5
    jax.tree.map(np.testing.assert_array_equal, found, numbered(start))


def test_a_checkpoint_that_is_damaged_is_passed_over_with_a_line(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for file in (folder / "checkpoints" / "5" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    found, step = restore_weights(folder, abstract(), "raw")
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, found, numbered(30))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(str(folder))]
    assert "5 cannot be read" in line and "going on with the one before, of step 3" in line


def test_what_is_not_there_is_one_line(run, tmp_path):
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        restore_weights(tmp_path, abstract())
    other = abstract() | {"more": jax.ShapeDtypeStruct((2,), jnp.float32)}
    with pytest.raises(ConfigError, match="has no more; its run is of another model"):
        restore_weights(run, other)
    other = abstract()
    other["text"]["table"] = jax.ShapeDtypeStruct((7, 3), jnp.float32)
    with pytest.raises(ConfigError, match="cannot be read"):
        restore_weights(run, other)
