"""What a training loop must not do once it runs: compile its step again, or move arrays to or from the host unasked.

On a pod either is a stall of all its chips that nobody sees: the run goes on, and is slow.
"""

import collections
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"  # what JAX reports of each program that it has compiled
_compiled: collections.Counter[int] = collections.Counter()  # by thread


class Recompiled(UserWarning):
    """A step that was compiled before was compiled again; the project's tests take it for an error."""

def compilations() -> int:
    """Programs compiled for this thread since this module was imported, found in a cache or not."""
    return _compiled[threading.get_ident()]


def guarded(steady: bool = True):
    """A context in which, where `steady`, an implicit transfer raises: an argument that lies on the host or on other
    devices, an array read by `float` or numpy. `jax.device_put` and `jax.device_get` say what they do and may."""
    return jax.transfer_guard("disallow" if steady else "allow")


def compiled_once(step: Callable) -> Callable:
    """`step(state, frozen, batch)` that, from its second batch of the same shapes on, is `guarded` and warns
    (`Recompiled`) where it is compiled again; before that it may do what compiling takes."""
    seen = set()

    def call(state, frozen, batch):
        shapes = frozenset((name, leaf.shape, str(leaf.dtype)) for name, leaf in batch.items())
        known, before = shapes in seen, compilations()
        with guarded(known):
            result = step(state, frozen, batch)
        seen.add(shapes)
        if known and compilations() > before:
            warnings.warn("the train step was compiled again for a batch of the same shapes: what it is given changed "
                          "its type, its place or its structure", Recompiled, stacklevel=2)
        return result

    return call


def compiled_ahead(step: Any, state: Any, frozen: Any, batch: dict) -> Callable:
    """The jitted `step`, compiled for these (arrays, or their shapes and places) by a thread from now on: the programs
    that a run needs before it compile meanwhile. A call waits for it; a batch of other shapes goes its own way."""
    of = lambda batch: {name: (leaf.shape, leaf.dtype) for name, leaf in batch.items()}
    pool = ThreadPoolExecutor(1, "compile")
    program, wanted = pool.submit(lambda: step.lower(state, frozen, batch).compile()), of(batch)
    pool.shutdown(wait=False)
    return lambda *given: program.result()(*given) if of(given[-1]) == wanted else step(*given)


def _listen(event: str, duration: float, **_) -> None:
    if event == COMPILED:
        _compiled[threading.get_ident()] += 1


jax.monitoring.register_event_duration_secs_listener(_listen)
