"""A config's layout: its mesh made and checked against what it trains, and where every part of the state lies."""

import functools
import math
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh

from lgm.config import Config
from lgm.models import family_of
from lgm.parallel import Layout, make_layout, shardings, using
from lgm.parallel.mesh import refitted
from lgm.parallel.options import compiled_with, options_of
from lgm.parallel.rules import AXES, with_overrides
from lgm.parsing import ConfigError, as_dict
from lgm.processes import member
from lgm.train.muon import stored
from lgm.train.state import Draw, Loss, TrainState, make_step, offloaded


def layout_of(config: Config, devices=None) -> Layout:
    """The layout of a config over `devices` (all there are). Raises ValueError, one line, where it is impossible."""
    mesh = config.mesh
    sizes, dcn = as_dict(mesh), mesh.dcn
    if member.shrunk():
        sizes, dcn = sizes | refitted(sizes, len(devices or jax.devices())), None
    layout = make_layout(sizes, devices, dcn=dcn, rules=mesh.rules, replicate_below=mesh.replicate_below,
                         microbatches=mesh.microbatches, attention=config.attention)
    _check_batch(config, layout)
    _check_heads(config, layout)
    if config.optimizer.offload:
        _check_host_memory(layout)
    return layout


def fitting(config: Config, processes: int, local_devices: int) -> int:
    """The largest number of processes up to `processes`, of so many devices each, that a config's mesh and batch divide
    over when data and fsdp may change; 0 where none does."""
    mesh = config.mesh
    for count in range(processes, 0, -1):
        sizes = refitted(as_dict(mesh), count * local_devices)
        shape = tuple(sizes.get(axis, 1) for axis in AXES)
        if math.prod(shape) != count * local_devices or config.batch_size % count:
            continue
        layout = Layout(AbstractMesh(shape, AXES), with_overrides(mesh.rules), microbatches=mesh.microbatches)
        try:
            _check_batch(config, layout)
        except ConfigError:
            continue
        return count
    return 0


def _check_batch(config: Config, layout: Layout) -> None:
    shares, pieces = layout.batch_shares, config.accumulate
    axes = " x ".join(axis for axis in layout.rules["batch"] if layout.size(axis) > 1) or "devices"
    times = f" in each of config.accumulate={pieces} pieces" if pieces > 1 else ""
    if config.batch_size % (shares * pieces):
        raise ConfigError(f"config.batch_size={config.batch_size} is not divisible by the mesh's {axes} = {shares} "
                          f"shares{times}; give a multiple of {shares * pieces}")
    stages = layout.size("stage")
    if stages > 1:
        parts = layout.microbatches or stages
        every = parts * shares // (stages if "stage" in layout.rules["batch"] else 1)
        if config.batch_size % (every * pieces):
            raise ConfigError(f"config.batch_size={config.batch_size} does not divide into {parts} micro-batches for "
                              f"config.mesh.stage={stages}{times}; give a multiple of {every * pieces}, or another "
                              "config.mesh.microbatches")


def _check_heads(config: Config, layout: Layout) -> None:
    counts = family_of(config.model).heads(config.model)
    if not counts:
        return
    heads = config.model.heads
    tensor, context = layout.size("tensor"), layout.size("context")
    divisors = [n for n in range(1, min(counts) + 1) if all(count % n == 0 for count in counts)]
    if any(count % tensor for count in counts):
        raise ConfigError(f"config.mesh.tensor={tensor} does not divide config.model.heads={heads}; give one of "
                          f"{', '.join(map(str, divisors))}")
    if layout.attention == "ulysses" and any(count % (tensor * context) for count in counts):
        raise ConfigError(f"config.attention='ulysses' needs config.model.heads={heads} to divide by tensor x context "
                          f"= {tensor * context}; make that one of {', '.join(map(str, divisors))}, or use 'ring'")


def _check_host_memory(layout: Layout) -> None:
    device = layout.mesh.devices.flat[0]
    kinds = {memory.kind for memory in device.addressable_memories()}
    if "pinned_host" not in kinds:
        raise ConfigError(f"config.optimizer.offload=True needs pinned host memory, which {device.platform} devices "
                          f"do not offer (they have {', '.join(sorted(kinds))}); set it to False")


def check_latents(config: Config, layout: Layout, rows: int, columns: int) -> None:
    """Refuse a `context` that cannot split the latents [rows, columns] of a config's model."""
    context, network = layout.size("context"), family_of(config.model)
    if network.patch is None:  # the sequence that is split is one of rows
        if rows % context:
            raise ConfigError(f"config.mesh.context={context} does not divide the {rows} rows of a latent; give a "
                              "divisor")
        return
    tokens = int(network.tokens(config.model, rows, columns))
    if tokens % context:
        raise ConfigError(f"config.mesh.context={context} does not divide the {tokens} image tokens; give a divisor")


def state_shardings(layout: Layout, abstract: TrainState, logical_axes: Any, config: Config) -> TrainState:
    """Where each leaf of the state lives: optimizer moments and EMA lie where their parameter does (ZeRO-3), the
    moments in the host's memory with `config.optimizer.offload`."""
    params = shardings(layout, abstract.params, logical_axes)
    same = jax.tree.structure(abstract.params)
    masked = lambda node: isinstance(node, optax.MaskedNode)  # a parameter that another optimizer updates
    is_params = lambda node: jax.tree.structure(node, is_leaf=masked) == same
    beside = lambda node: jax.tree.map(lambda place, leaf: leaf if masked(leaf) else place, params, node)
    opt_state = jax.tree.map(lambda node: beside(node) if is_params(node) else layout.whole, abstract.opt_state,
                             is_leaf=is_params)
    if config.optimizer.offload:
        opt_state = jax.tree.map(lambda s: s.with_memory_kind("pinned_host"), opt_state)
    return TrainState(layout.whole, params, opt_state, params)


def placed_step(config: Config, loss: Loss, draw: Draw | None, optimizer, layout: Layout, places: TrainState):
    """The compiled train step `(state, frozen, batch) -> (state, metrics)` under a layout; the state is donated and
    stays at `places`, those of `state_shardings`. The compiler is told what `lgm.parallel.options` has for the chip."""
    step = make_step(config, loss, optimizer, draw)
    if config.optimizer.offload:
        step = offloaded(step, places.opt_state)

    told = options_of(layout.mesh.devices.flat[0].device_kind)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(places, layout.whole), compiler_options=told or None)
    def placed(state: TrainState, frozen: Any, batch: dict) -> tuple[TrainState, dict]:
        with using(layout), stored(places.params), compiled_with(told):
            return step(state, frozen, batch)

    return placed
