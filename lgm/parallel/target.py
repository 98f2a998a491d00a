"""Which platform a program is traced for: that of the current mesh's devices, which need not be there."""

from __future__ import annotations

import jax


def platform() -> str:
    """"cpu", "gpu" or "tpu": the platform of the mesh set with `jax.set_mesh`, else that of this process.

    A program planned for a pod is traced on a machine without one, so `jax.default_backend` would choose kernels for
    the wrong chip. jit traces anew where the mesh differs, so what was chosen for one is never used for another.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None or not device.platform else device.platform
