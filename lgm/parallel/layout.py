"""Where arrays lie while a program runs: the mesh and rules in force, and the two functions by which models ask.

A model says `constrain(x, "batch", "tokens", "mlp")` of an activation and `gathered(kernel, ("embed", "mlp"))` of a
parameter that it is about to use; both are what they are given where no layout is in force. What they mean is in the
layout's rules, never in the model.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lgm.parallel.mesh import make_mesh
from lgm.parallel.rules import AXES, PLACES, RULES, partition, with_overrides


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """A mesh, the rules by which logical axes split over it, and how work is cut.

    replicate_below: parameters of fewer elements are whole on every device. microbatches: parts of a batch that follow
    each other through the pipeline, by default one a stage. attention: the kernel, "auto" for the platform's.
    """

    mesh: jax.sharding.Mesh
    rules: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: RULES)
    replicate_below: int = 0
    microbatches: int | None = None
    attention: str = "auto"

    def size(self, axis: str) -> int:
        """Devices along a mesh axis."""
        return self.mesh.shape[axis]

    @functools.cached_property
    def used(self) -> Mapping[str, tuple[str, ...]]:
        """The rules by which arithmetic is split: features over `tensor` alone, and those where it comes first."""
        feature = lambda axes: ("tensor",) if axes[:1] == ("tensor",) else ()
        return {name: axes if name in PLACES else feature(axes) for name, axes in self.rules.items()}

    @property
    def batch_shares(self) -> int:
        """Parts into which a batch must divide."""
        return math.prod(self.size(axis) for axis in self.rules["batch"])

    @property
    def whole(self) -> NamedSharding:
        """The sharding of what every device has all of."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """The sharding of examples."""
        axes = tuple(axis for axis in self.rules["batch"] if self.size(axis) > 1)
        return NamedSharding(self.mesh, PartitionSpec(axes or None))


def make_layout(sizes: Mapping[str, int], devices=None, *, dcn: Mapping[str, int] | None = None,
                rules: Mapping[str, Any] | None = None, **options) -> Layout:
    """A layout from sizes of mesh axes, overrides of `RULES` and the fields of `Layout`. Errors are those of
    `make_mesh` and `with_overrides`."""
    return Layout(make_mesh(sizes, devices, dcn), with_overrides(rules or {}), **options)


_current: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


def current() -> Layout | None:
    """The layout in force, if any."""
    return _current.get()


@contextlib.contextmanager
def using(layout: Layout | None) -> Iterator[None]:
    """Trace what is inside for `layout`; None leaves what is in force."""
    if layout is None:
        yield
        return
    token = _current.set(layout)
    try:
        yield
    finally:
        _current.reset(token)


def platform() -> str:
    """"cpu", "gpu" or "tpu": the platform of the layout in force or of the mesh set with `jax.set_mesh`, else that of
    this process.

    A program planned for a pod is traced on a machine without one, so `jax.default_backend` would choose kernels for
    the wrong chip. jit traces anew where the mesh differs, so what was chosen for one is never used for another.
    """
    if (layout := current()) is not None:
        return layout.mesh.devices.flat[0].platform
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None or not device.platform else device.platform


def device_kind() -> str:
    """What JAX calls the devices that `platform` is of."""
    if (layout := current()) is not None:
        return layout.mesh.devices.flat[0].device_kind
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def active_mesh(layout: Layout):
    """(the mesh to name in a sharding here, the axes that are still the compiler's to split over).

    Inside `shard_map` that is the mesh it has set, without the axes that it splits by hand.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not mesh.manual_axes:
        return layout.mesh, AXES
    return mesh, tuple(axis for axis in AXES if axis not in mesh.manual_axes)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """The activation x, laid out by the rules for its logical axes `names`; None is a dimension that is not split."""
    layout = current()
    if layout is None or layout.mesh.size == 1:
        return x
    mesh, axes = active_mesh(layout)
    spec = partition(x.shape, names, layout.mesh.shape, layout.used, axes)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def gathered(parameter: jax.Array, stored: tuple, used: tuple | None = None) -> jax.Array:
    """A parameter as arithmetic wants it: split over `tensor` alone, gathered from all else that stores a part of it.

    Its gradient is scattered back to where the parameter is stored (ZeRO-3, Rajbhandari et al. 2020, 1910.02054), so
    neither exists whole for more than one use. `stored` and `used` are the logical axes of its dimensions by which it
    is kept and by which it is used, the same by default.
    """
    layout = current()
    if layout is None or layout.mesh.size == 1:
        return parameter
    return _gathered(layout, stored, stored if used is None else used, parameter)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gathered(layout: Layout, stored: tuple, used: tuple, parameter: jax.Array) -> jax.Array:
    # in two steps, each one exchange between neighbours in the mesh: to parts of what is used, which are then gathered
    return constrain(_stored(layout, used, parameter), *used)


_gathered.defvjp(
    lambda layout, stored, used, parameter: (_gathered(layout, stored, used, parameter), None),
    lambda layout, stored, used, _, gradient: (_stored(layout, stored, _stored(layout, used, gradient)),),
)


def _stored(layout: Layout, names: tuple, parameter: jax.Array) -> jax.Array:
    mesh, axes = active_mesh(layout)
    spec = partition(parameter.shape, names, layout.mesh.shape, layout.rules, axes)
    return jax.lax.with_sharding_constraint(parameter, NamedSharding(mesh, spec))


def shardings(layout: Layout, abstract: Any, axes: Any) -> Any:
    """A NamedSharding for every parameter of `abstract`, from its logical `axes`."""

    def sharding(leaf, names):
        if math.prod(leaf.shape) < layout.replicate_below:
            return layout.whole
        return NamedSharding(layout.mesh, partition(leaf.shape, names, layout.mesh.shape, layout.rules))

    return jax.tree.map(sharding, abstract, axes)


def batch_part(layout: Layout, process: int | None = None) -> tuple[int, int]:
    """(i, n): the examples that a process (this one) feeds are the i-th of n equal parts of a batch.

    Processes between which a batch is not split, as those that share its tokens or heads, feed the same part. Raises
    ValueError, one line, where the shares of a process are no such part.
    """
    process = jax.process_index() if process is None else process
    shares = layout.batch_shares
    mine = {index[0].indices(shares)[0] for device, index in layout.batch.devices_indices_map((shares,)).items()
            if device.process_index == process}  # fmt: skip
    first, count = min(mine), len(mine)
    if mine != set(range(first, first + count)) or first % count or shares % count:
        raise ValueError(f"config.mesh {dict(layout.mesh.shape)} gives process {process} shares {sorted(mine)} of the "
                         f"{shares} of a batch, which are no equal part; let data and fsdp cross processes")
    return first // count, shares // count


def put_batch(layout: Layout, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's share of a batch as global arrays."""
    with jax.transfer_guard("allow"):  # of arrays over several processes JAX does not see that they were asked for
        return {k: jax.make_array_from_process_local_data(layout.batch, v) for k, v in batch.items()}
