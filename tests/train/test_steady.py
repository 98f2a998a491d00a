"""A loop in its steady state compiles its step once and moves nothing between host and device unasked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm import config as schema
from lgm.train import loop
from lgm.train.placing import layout_of
from lgm.train.steady import Recompiled, compilations, compiled_ahead, compiled_once


@pytest.fixture
def step():
    return compiled_once(jax.jit(lambda state, frozen, batch: (state + batch["x"].sum() + frozen, {})))


def batch(size=3):
    return {"x": jax.device_put(np.ones(size, np.float32))}


def test_an_argument_on_the_host_is_refused_once_the_step_runs(step):
    state, frozen = jax.device_put(np.float32(1)), jax.device_put(np.float32(2))
    state, _ = step(state, np.float32(2), {"x": np.ones(3, np.float32)})  # before: whatever it takes to compile
    state, _ = step(state, frozen, batch())
    assert float(state) == 11.0
    for given in ((state, frozen, {"x": np.ones(3, np.float32)}), (state, np.float32(2), batch())):
        with pytest.raises(RuntimeError, match="Disallowed host-to-device transfer"):
            step(*given)


def test_a_second_compilation_is_told_but_for_a_batch_of_other_shapes(step):
    state, frozen = jax.device_put(np.float32(1)), jax.device_put(np.float32(2))
    before = compilations()
    for size in (3, 4, 3, 4):
        state, _ = step(state, frozen, batch(size))
    assert compilations() > before
    with pytest.raises(Recompiled, match="compiled again"):
        step(state, jnp.arange(2.0), batch())


def test_a_step_that_is_compiled_ahead_takes_its_batch_and_others():
    plain = jax.jit(lambda state, frozen, batch: (state + batch["x"].sum() + frozen, {}))
    state, frozen = jax.device_put(np.float32(1)), jax.device_put(np.float32(2))
    step = compiled_once(compiled_ahead(plain, jax.ShapeDtypeStruct((), np.float32), frozen, batch()))
    before = compilations()
    for size in (3, 3):
        state, _ = step(state, frozen, batch(size))
    assert float(state) == 11.0 and compilations() == before
    assert float(step(state, frozen, batch(4))[0]) == 17.0


class Ones:
    """Batches without end."""

    def __next__(self):
        return {"x": np.ones((8, 4), np.float32)}

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def run(config, folder):
    """The loop of `lgm train` over a task of four numbers; the compilations of each of its steps but the first."""

    def loss(params, frozen, batch, key):
        value = jnp.mean(jnp.square(batch["x"] - params["kernel"] - frozen["shift"]))
        return value, {"size": jnp.sum(params["kernel"])}

    task = loop.Task(
        init=lambda key: {"kernel": jax.random.normal(key, (4,))}, logical_axes={"kernel": (None,)}, loss=loss,
        frozen={"shift": jax.device_put(np.float32(0.5))}, batches=Ones(), flops=1.0, executed_flops=1.0,
        heldout=lambda params: {"heldout": float(params["kernel"].sum())}, pictures=None,
    )  # fmt: skip
    counts = []

    def counting(step):
        def call(*arguments):
            before = compilations()
            result = step(*arguments)
            counts.append(compilations() - before)
            return result

        return compiled_once(call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compiled_once", counting)
        loop.train(config, folder, lambda *_: task, layout_of(config), quiet=True)
    return counts


@pytest.fixture
def config(tiny_config):
    return schema.load(tiny_config, [("sampling.count", "0")])


def test_a_run_and_its_resume_compile_their_step_once(config, tmp_path, monkeypatch):
    class StopAtSeven(loop._Run):
        def _due(self, step, every_images):
            if step == 7:
                self.stop = lambda: True
            return super()._due(step, every_images)

    with monkeypatch.context() as patch, pytest.raises(loop.Preempted):
        patch.setattr(loop, "_Run", StopAtSeven)
        run(config, tmp_path)
    counts = run(config, tmp_path)
    assert len(counts) == 5 and counts[0] > 0 and not any(counts[1:])


def test_what_is_planted_in_a_run_ends_it(config, tmp_path, monkeypatch):
    put, step = loop.put_batch, iter(range(99))
    monkeypatch.setattr(loop, "put_batch", lambda layout, batch: put(layout, batch) if next(step) != 3 else batch)
    with pytest.raises(RuntimeError, match="Disallowed host-to-device transfer"):
        run(config, tmp_path / "host")
    assert next(step) == 4
    # the same shape and dtype, as a number of Python's would give it: another program, where one is looked up
    monkeypatch.setattr(loop, "compiled_ahead", lambda step, *_: step)
    weak, step = jax.jit(lambda: jax.lax.broadcast(1.0, (8, 4))), iter(range(99))
    monkeypatch.setattr(loop, "put_batch",
                        lambda layout, batch: put(layout, batch) if next(step) != 3 else {"x": weak()})
    with pytest.raises(Recompiled, match="compiled again"):
        run(config, tmp_path / "weak")
    assert next(step) == 4


def test_the_loop_itself_is_guarded_but_not_its_measurements(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop._Run, "_log", lambda self, step, metrics: metrics["loss"] * 2.0)
    with pytest.raises(RuntimeError, match="Disallowed host-to-device transfer"):
        run(config, tmp_path / "log")
    measure = loop._Run.measure
    monkeypatch.undo()
    monkeypatch.setattr(loop._Run, "measure", lambda self, state, step: (state.step * 2, measure(self, state, step)))
    run(config, tmp_path / "measured")
