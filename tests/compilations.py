"""How many programs JAX has compiled for this thread."""

import collections
import threading

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"  # what JAX reports of each
_compiled = collections.Counter()


def compilations() -> int:
    """Programs compiled for this thread since this module was imported, found in a cache or not."""
    return _compiled[threading.get_ident()]


def _listen(event, duration, **_):
    if event == COMPILED:
        _compiled[threading.get_ident()] += 1


jax.monitoring.register_event_duration_secs_listener(_listen)
