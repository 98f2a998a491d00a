"""`lgm train`: a config's task, on a layout that fits, by the loop."""

import ctypes
import os
import socket
import time

import jax

from lgm import config as schema
from lgm.files import place
from lgm.models import family_of
from lgm.parsing import ConfigError
from lgm.processes import member
from lgm.processes.affinity import allowed, ranges
from lgm.train import autoencode, denoise, loop
from lgm.train.opening import use_compilation_cache
from lgm.train.placing import fitting, layout_of

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # names of glibc's mallopt


def train(spec: str, workdir: str, overrides: list[tuple[str, str]], extend: bool = False) -> int:
    """Train `spec` in `workdir`; returns the exit code: 0 when done, 75 when preempted and saved."""
    workdir = place(workdir, "--workdir")
    config = schema.load(spec, overrides)
    use_compilation_cache()
    keep_freed_memory()
    tell_place()
    _check_fit(config)
    layout = layout_of(config)
    start = time.monotonic()
    try:
        loop.train(config, workdir, task_of(config), layout, extend=extend)
    except loop.Preempted as error:
        print(f"lgm train: {error}", flush=True)
        return error.exit_code
    seconds = time.monotonic() - start
    if jax.process_index() == 0:
        images = config.steps * config.batch_size
        print(f"{config.name}: {images:,} images in {seconds:.0f} s; see {workdir}", flush=True)
    return 0


def _check_fit(config: schema.Config) -> None:
    """Of a run that has lost processes: where those left are too many for its mesh or batch, say so and stop; the
    supervisors then go on with as many as fit."""
    if not member.shrunk():
        return
    count = jax.process_count()
    if 0 < (fit := fitting(config, count, jax.local_device_count())) < count:
        member.tell_fit(fit)
        raise ConfigError(f"config.batch_size={config.batch_size} and config.mesh do not divide over {count} "
                          f"processes, but over {fit}")


def task_of(config: schema.Config):
    """The task a config trains: an autoencoder on images, or a denoiser on latents."""
    return (autoencode if family_of(config.model).role == "autoencoder" else denoise).make_task


def tell_place() -> None:
    """Say, in the first line of each process, where it runs and with what: a scheduler that gives it one CPU of many,
    or no GPU, is seen there."""
    cpus, devices = allowed(), jax.local_devices()
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    print(f"process {jax.process_index()} of {jax.process_count()} on {host}: {len(cpus)} CPU{'s' * (len(cpus) > 1)} "
          f"({ranges(cpus)}), {len(devices)} x {devices[0].device_kind}", flush=True)


def keep_freed_memory() -> None:
    """Tell glibc, where it is the C library, to keep freed memory for the next request instead of returning it.

    XLA:CPU asks for its buffers anew at every call, and pages that come back from the kernel are cleared first: in a
    small training step that took a third of the time. One arena for all threads, because the others cannot hold a
    buffer above 64 MB and ask the kernel for each (a fifth of a step's time). Peak memory stays what it was.
    """
    try:
        tune = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    tune(M_ARENA_MAX, 1)
    tune(M_MMAP_THRESHOLD, 1 << 30)
    tune(M_TRIM_THRESHOLD, 2**31 - 1)
