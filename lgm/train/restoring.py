"""Weights alone out of a run's checkpoint, straight into the places where they are wanted.

A train state is four times its weights: parameters, two moments, their average. Who only draws, measures, exports or
starts from a run reads one of the four, a few parameters at a time, and of a parameter that is split over devices each
process reads its own parts.
"""

import functools
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils

from lgm.files import is_remote, local, place, plain
from lgm.interop.tensor_files import in_groups
from lgm.parsing import ConfigError
from lgm.train.checkpoint import first_line, quiet
from lgm.train.saved import complete_steps
from lgm.train.seal import check_seal

PART = 0.1  # of all bytes that are under way at a time, or one parameter


def restore_weights(workdir: str | Path, abstract: Any, weights: str = "ema", places: Any = None,
                    step: int | None = None) -> tuple[Any, int]:
    """("ema" or "raw" weights of a run's newest checkpoint, or of that of a `step`, and its step).

    `abstract` is the tree of their shapes and types, nested dicts; `places` is a tree of shardings, one for all, or
    None for one device of this process. Of several processes all must ask. Besides the weights a tenth of them, or one
    parameter, is under way at a time. A checkpoint that cannot be read is passed over, with a line that says so. Raises
    ConfigError, one line, where there is none, or one of other weights.
    """
    quiet()
    folder = place(workdir) / "checkpoints"
    steps = complete_steps(folder)
    if not steps:
        raise ConfigError(f"{folder} holds no checkpoint; train first, or give another --workdir")
    if step is not None:
        if step not in steps:
            raise ConfigError(f"{folder} has no checkpoint of step {step}; there are those of steps "
                              f"{', '.join(map(str, sorted(steps)))}")
        steps = [step]
    if places is None or isinstance(places, jax.sharding.Sharding):
        one = places or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = jax.tree.map(lambda _: one, abstract)
    name = {"ema": "ema", "raw": "params"}[weights]
    wanted = jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), abstract, places)
    for number, step in enumerate(steps, 1):
        try:
            found = _restored(folder / str(step), name, wanted)
        except ConfigError as error:
            if number == len(steps):
                raise
            print(f"{error}; going on with the one before, of step {steps[number]}", file=sys.stderr, flush=True)
        else:
            break
    if len(set(np.ravel(multihost_utils.process_allgather(np.int32(step))).tolist())) > 1:
        raise ConfigError(f"{folder}: a checkpoint can be read by some processes only; delete those after step {step}")
    return found, step


def _restored(path: Path, name: str, wanted: Any) -> Any:
    leaves, structure = jax.tree_util.tree_flatten_with_path(wanted)
    found: list[jax.Array] = []
    try:
        if not is_remote(path) and jax.process_index() == 0:
            check_seal(path)
        here = local(path) if str(path).startswith("s3://") else plain(path)  # Orbax has no driver for s3://
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            for group in in_groups(leaves, _bytes_here, PART * sum(map(_bytes_here, leaves))):
                item = {name: unflatten_dict({tuple(step.key for step in where): leaf for where, leaf in group})}
                options = {"restore_args": ocp.checkpoint_utils.construct_restore_args(item), "partial_restore": True}
                tree = reader.restore(here / "state", args=ocp.args.PyTreeRestore(item=item, **options))[name]
                found += [functools.reduce(lambda part, key: part[key.key], where, tree) for where, _ in group]
                jax.block_until_ready(found)
    except Exception as error:
        raise ConfigError(f"{path} cannot be read ({first_line(error)})") from error
    for (where, _), leaf in zip(leaves, found, strict=True):
        if not isinstance(leaf, jax.Array):
            raise ConfigError(f"{path} has no {jax.tree_util.keystr(where, simple=True, separator='/')}; its run is of "
                              "another model than its config.json says")
    return jax.tree.unflatten(structure, found)


def _bytes_here(named: tuple[Any, jax.ShapeDtypeStruct]) -> int:
    """A leaf's bytes in this process."""
    leaf = named[1]
    shard = math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    return shard * len(leaf.sharding.addressable_devices)
