"""What a finished run teaches another: the ends of its ODE's paths, or its predictions."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lgm import losses
from lgm.casting import cast
from lgm.config import Config, digest
from lgm.data import read_cache, write_index, write_shard
from lgm.data.cache import CachedArray, has_shard, read_made_of, verify
from lgm.drawing import draw_latents
from lgm.files import place
from lgm.models import Params
from lgm.parallel import Layout, agreed, fetch
from lgm.parsing import ConfigError
from lgm.system import System
from lgm.train.opening import load_run

SHARD = 1 << 28  # bytes of pairs in a file of the cache, as many as a process holds at a time


class Teacher(NamedTuple):
    """A run's system, all of its weights (EMA) and what is frozen in it."""

    system: System
    params: Params
    frozen: Params

    def predictor(self, params: Params, tokens: jax.Array, mask: jax.Array):
        """`predict(x_t, t_B, cond)` with `params`, which knows its own condition of those captions."""
        known = self.system.condition(params, tokens, mask)
        return lambda x_t, t_B, cond: self.system.denoise(params, x_t, t_B, known)

    def guided(self, params: Params, tokens: jax.Array, mask: jax.Array, scale: float):
        """`predictor` with classifier-free guidance of that scale."""
        asked = [self.predictor(params, *words) for words in ((tokens, mask), self.system.unconditional(len(tokens)))]

        def predict(x_t, t_B, cond):
            given, free = (one(x_t, t_B, cond) for one in asked)
            return free + scale * (given - free)

        return predict


def open_teacher(config: Config, system: System, layout: Layout) -> Teacher | None:
    """The run that `config.loss.teacher` names, its weights in `layout`.

    Raises ConfigError, one line, where its latents are not `system`'s, or it does not predict what the loss takes.
    """
    if config.loss.teacher is None:
        return None
    workdir = config.loss.teacher.workdir
    theirs, params, frozen, _ = load_run(workdir, "ema", layout)
    for name, mine, other in (
        ("autoencoder", config.autoencoder, theirs.config.autoencoder),
        ("data.resolution", config.data.resolution, theirs.config.data.resolution),
    ):
        if mine != other:
            raise ConfigError(f"config.{name}={mine!r}, but that of config.loss.teacher.workdir={workdir!r} is "
                              f"{other!r}; pairs are of one latent space")
    if config.loss.asks and theirs.config.text != config.text:
        raise ConfigError(f"config.text is not that of config.loss.teacher.workdir={workdir!r}; {config.loss.name} "
                          "asks both networks about the same tokens")
    wanted = losses.loss(config.loss.name).taught or config.loss.target
    found = theirs.config.loss.target
    if config.loss.asks and (theirs.process, found) != (system.process, wanted):
        raise ConfigError(f"config.loss.teacher.workdir={workdir!r} is of process {theirs.process.name!r} and target "
                          f"{found!r}; {config.loss.name} is distilled of {system.process.name!r} and {wanted!r}")
    return Teacher(theirs, params, frozen)


def pairs(config: Config, teacher: Teacher, captions: list[str],
          workdir: Path) -> tuple[list[str], dict[str, CachedArray]]:
    """(captions, {"latent", "noise"}) of the pairs of a run, from `config.loss.teacher.cache` or, where there is none,
    drawn once and kept in `workdir/pairs`: a run that was stopped meanwhile goes on with the next shard, and those that
    were made of anything else are drawn anew. Raises ValueError, one line, for a cache of other pairs, by what differs.
    """
    chosen, made_of = asked(config, teacher, captions)
    options = config.loss.teacher
    if options.cache is not None:
        folder = place(options.cache, "config.loss.teacher.cache")
        stored = read_made_of(folder).get("stored", "float32")
        return chosen, read_cache(folder, made_of | {"stored": stored})
    folder, made_of = workdir / "pairs", made_of | {"stored": "float32"}
    if not agreed(_complete(folder, made_of)):
        if jax.process_index() == 0:
            print(f"drawing {options.pairs:,} pairs with {options.workdir} in {options.steps} steps each", flush=True)
        rows = max(64, SHARD // (8 * math.prod(teacher.system.latent_shape())))
        draw_pairs(config, teacher, captions, folder, rows)
    return chosen, read_cache(folder, made_of)


def asked(config: Config, teacher: Teacher, captions: list[str]) -> tuple[list[str], dict[str, str]]:
    """(the caption of each pair, all that the pairs are made of)."""
    options, key = config.loss.teacher, "config.loss.teacher"
    chosen = [captions[i % len(captions)] for i in range(options.pairs)]
    return chosen, {
        f"the weights of {key}.workdir": weights_digest(teacher.params),
        f"the config of {key}.workdir": digest(teacher.system.config),
        **{f"{key}.{name}": str(getattr(options, name)) for name in ("solver", "steps", "guidance", "pairs")},
        "config.seed": str(config.seed), "the captions' hash": _hash(chosen)}  # fmt: skip


def draw_pairs(config: Config, teacher: Teacher, captions: list[str], folder: Path, rows: int, part: int = 0,
               parts: int = 1, dtype=np.float32) -> bool:
    """Write the shards of a part of the pairs, of `rows` each, that are not there yet; whether all are there now.

    They are a function of config and weights, drawn over all devices of all processes that run this together; those of
    other parts may be drawn at the same time.
    """
    options, first = config.loss.teacher, jax.process_index() == 0
    chosen, made_of = asked(config, teacher, captions)
    made_of |= {"stored": np.dtype(dtype).name}
    whole = lambda number: has_shard(folder, number, len(chosen[number * rows : (number + 1) * rows]), made_of)
    shards = range(-(-len(chosen) // rows))
    for number in shards:
        if number % parts != part or agreed(whole(number)):
            continue
        start = number * rows
        latents, noise = draw_latents(teacher.system, teacher.params, teacher.frozen, chosen[start : start + rows],
                                      config.seed, start, solver=options.solver, steps=options.steps,
                                      guidance=options.guidance)
        if first:
            write_shard(folder, number, {name: cast(name, array, dtype) for name, array in
                                         (("latent", latents), ("noise", noise))}, made_of)
    complete = agreed(all(map(whole, shards)))
    if complete and first:
        write_index(folder, len(shards), made_of)
        verify(folder)
    agreed(0)  # the others wait for the index
    return bool(complete)


def _complete(folder: Path, made_of: Mapping[str, str]) -> bool:
    try:
        return bool(read_cache(folder, made_of))
    except ValueError:  # absent, unfinished, damaged, or made of something else
        return False


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def weights_digest(params: Params) -> str:
    """A short hash of every bit of a tree of 32-bit arrays, the same wherever its parts lie.

    Each word is multiplied by an odd number of its place and mixed; words are then added modulo 2^32, two ways, in
    which the order does not matter: no array is gathered.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return _hash([[jax.tree_util.keystr(path), leaf.shape, fetch(_sums(leaf)).tolist()] for path, leaf in leaves])


@jax.jit
def _sums(leaf: jax.Array) -> jax.Array:
    words = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    mixed = (words ^ (words >> 16)) * (2 * place + 1)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x2C1B3C6D)
    return jnp.stack([jnp.sum(words * (2 * place + 1)), jnp.sum(mixed ^ (mixed >> 13))])
