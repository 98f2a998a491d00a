"""Trains two steps on one mesh of 8 fake CPU devices, saves, restores on each of several others and prints, as JSON,
whether every bit of the state came back, where it then lies, and how far the next step is from that of the first mesh.
"""

import json
import sys
import tempfile

import equality  # fixes the number of devices
import jax
import numpy as np

from lgm.parallel import put_batch
from lgm.train.checkpoint import Checkpoints


def abstract(state, places):
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, places)


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def main(family: str, first: dict, others: list[dict]) -> None:
    config = equality.config_of(family, **first)
    layout, places, step = equality.trainer(config)
    state = jax.device_put(equality.start_of(config), places)
    for seed in range(2):
        state, _ = step(state, {}, put_batch(layout, equality.batch_of(seed)))
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder)
        checkpoints.save(2, state, {"next": 2})
        checkpoints.wait()
        saved = bits(state)
        state, metrics = step(state, {}, put_batch(layout, equality.batch_of(2)))
        then, loss = jax.tree.map(np.asarray, state.params), float(metrics["loss"])
        for other in others:
            devices = jax.devices()[: other.pop("devices", 8)]
            layout, places, step = equality.trainer(equality.config_of(family, **other), devices)
            state, data = checkpoints.restore(abstract(state, places))
            row = {"bits": bits(state) == saved, "data": data,
                   "placed": all(leaf.sharding.is_equivalent_to(place, leaf.ndim) and
                                 leaf.sharding.memory_kind == place.memory_kind for leaf, place in
                                 zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True))}  # fmt: skip
            state, metrics = step(state, {}, put_batch(layout, equality.batch_of(2)))
            row |= {"loss": abs(float(metrics["loss"]) / loss - 1),
                    "params": equality.apart(jax.tree.map(np.asarray, state.params), then)}  # fmt: skip
            print(json.dumps(row), flush=True)
        checkpoints.close()


if __name__ == "__main__":
    main(sys.argv[1], *json.loads(sys.argv[2]))
