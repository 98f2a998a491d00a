"""Trains a whole system, with frozen text encoders and the autoencoder in the step, for three steps on one of 8 fake
CPU devices and on meshes of all, and prints, as JSON, how far loss and parameters are apart."""

import dataclasses
import json
import sys
from pathlib import Path

import equality  # fixes the number of devices
import jax
import numpy as np

from lgm import config as schema
from lgm.importing import config_of
from lgm.parallel import put_batch
from lgm.train.denoise import make_task
from lgm.train.optimizer import build_optimizer
from lgm.train.placing import layout_of, placed_step, state_shardings
from lgm.train.state import init_state

IMAGES = dict(where=dict(subcategory="face-hat"), heldout_where=dict(subcategory="face-glasses"), latents="step")


def config_in(folder: str, optimizer: dict, mesh: dict) -> schema.Config:
    values = config_of(folder, "system")
    values |= {"batch_size": 8, "total_images": 800, "mesh": mesh, "optimizer": optimizer,
               "data": values["data"] | IMAGES, "evaluation": dict(max_images=0), "sampling": dict(count=0)}
    return schema.from_dict(values)


def three_steps(config: schema.Config, devices=None) -> tuple[list[float], dict, dict[str, list]]:
    """(losses, parameters after the third, what of the frozen is split) from the folder's weights."""
    layout = layout_of(config, devices)
    task = make_task(config, layout, Path("unused"))
    optimizer = build_optimizer(config)
    abstract = jax.eval_shape(lambda: init_state(task.init(jax.random.key(0)), optimizer))
    places = state_shardings(layout, abstract, task.logical_axes, config)
    state = jax.jit(lambda params: init_state(params, optimizer), out_shardings=places)(task.start(places.params))
    step, values = placed_step(config, task.loss, task.draw, optimizer, layout, places), []
    for _ in range(3):
        batch = put_batch(layout, next(task.batches))
        assert "image" in batch and "latent" not in batch
        state, metrics = step(state, task.frozen, batch)
        values.append(float(metrics["loss"]))
    share = lambda leaf: leaf.sharding.shard_shape(leaf.shape) != leaf.shape
    split = {name: sum(map(share, jax.tree.leaves(part))) for name, part in task.frozen.items()}
    return values, jax.tree.map(np.asarray, state.params), split


def main(folder: str, cases: list[dict]) -> None:
    alone = {}
    for case in cases:
        config = config_in(folder, case["optimizer"], case["mesh"])
        name = json.dumps(case["optimizer"])
        if name not in alone:
            one = dataclasses.replace(config, mesh=schema.Mesh())
            alone[name] = three_steps(one, jax.devices()[:1])
        values, params, _ = alone[name]
        found, found_params, split = three_steps(config)
        row = {"loss": max(abs(a / b - 1) for a, b in zip(found, values, strict=True)), "losses": values,
               "params": equality.apart(found_params, params), "split": split}  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
