"""The training process of several, told by its supervisor who it is: joins JAX's processes, waits at barriers, and
agrees with the others on the step to stop at."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time

from lgm.processes.hub import BEAT, SETTLE
from lgm.processes.supervise import CHANNEL, MEMBER
from lgm.processes.timeouts import LOST

_channel: _Channel | None = None
_asked = 0  # calls of stop_agreed
_shrunk = False


class _Channel:
    """The line to the supervisor. Messages are JSON, one a line; an empty one is a sign of life."""

    def __init__(self, connection: socket.socket, wait: float):
        self.connection, self.wait = connection, wait
        self.lock, self.released = threading.Lock(), {}
        for part in (self._listen, self._beat):
            threading.Thread(target=part, daemon=True).start()

    def send(self, **message) -> None:
        with self.lock:
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def barrier(self, name: str, value: str) -> None:
        event = self.released.setdefault(name, threading.Event())
        self.send(barrier=name, value=value, seconds=self.wait)
        event.wait()  # the supervisor ends this process when the bound has passed
        del self.released[name]

    def _listen(self) -> None:
        with self.connection.makefile() as lines:
            for line in lines:
                message = json.loads(line)
                if "release" in message:
                    self.released[message["release"]].set()
        os._exit(LOST)  # the supervisor is gone, so nothing would end this process when another is lost

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            try:
                self.send()
            except OSError:
                return


def is_member() -> bool:
    """Whether a supervisor started this process."""
    return CHANNEL in os.environ or joined()


def join() -> None:
    """Connect to the supervisor and initialise `jax.distributed` as it says; nothing in a process that is alone.

    Call it before anything that asks JAX for a device.
    """
    global _channel, _shrunk
    if CHANNEL not in os.environ:
        return
    settings = json.loads(os.environ[MEMBER])
    _shrunk = settings["shrunk"]
    _channel = _Channel(socket.socket(fileno=int(os.environ.pop(CHANNEL))), settings["wait"])
    sys.excepthook = _unexpected
    import jax

    # JAX's own bounds end a process without a name, so they are longer than the supervisors'
    jax.distributed.initialize(
        settings["coordinator"], settings["count"], settings["index"], local_device_ids=settings["local_devices"],
        cluster_detection_method="deactivate", initialization_timeout=int(2 * settings["wait"]),
        heartbeat_timeout_seconds=int(settings["heartbeat"]),
    )


def joined() -> bool:
    """Whether this is one of several processes that watch each other."""
    return _channel is not None


def shrunk() -> bool:
    """Whether processes of this run were lost, so that it goes on with fewer than it was started with."""
    return _shrunk


def tell_fit(count: int) -> None:
    """Tell the supervisor that this run cannot go on with so many processes as there are, but with `count` of them."""
    _channel.send(fits=count)


def barrier(name: str, value: str = "") -> None:
    """Wait until all are here with the same `value`; the bound, and saying who was late, is the supervisors' affair."""
    if _channel:
        _channel.barrier(name, value)


def at_step(step: int) -> None:
    """Tell the supervisor that `step` steps have been started."""
    if _channel:
        _channel.send(step=step)


def stop_agreed() -> bool:
    """Whether all save and stop at this step, since one of them has been sent SIGTERM.

    Ask once after each step. JAX's preemption service finds the step: the one after the last that any process has
    begun. It is told how often this was asked, which all processes count alike over as many runs as they train.
    """
    global _asked
    from jax.experimental import multihost_utils

    _asked += 1
    return multihost_utils.reached_preemption_sync_point(_asked)


def settle() -> None:
    """Wait, before an error is told, as long as the news of another process's end may take: if that is the cause, the
    supervisor ends this process and says who it was."""
    if _channel:
        time.sleep(2 * SETTLE)


def leave(code: int) -> int:
    """`code`, to exit with; one of several processes ends here and now: JAX's orderly end would wait for the others."""
    if _channel:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _unexpected(kind, error, trace) -> None:
    settle()
    sys.__excepthook__(kind, error, trace)
    leave(1)
