"""One process's supervisor: it meets the others, starts the training process and says what became of whom."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from lgm.parsing import ConfigError
from lgm.processes.hub import BEAT, SETTLE, Hub, _send
from lgm.processes.rank import Place
from lgm.processes.timeouts import LOST, PREEMPTED, Bounds

CHANNEL, MEMBER = "LGM_CHANNEL", "LGM_MEMBER"  # what the training process finds its supervisor by


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Supervisor:
    """One pass: the child, its channel, and the connection to the hub.

    standby: the port where this supervisor is reached after a loss, 0 if that ends the run. shrunk: whether processes
    of this run were lost. After the pass: `lost` whether a loss ended it, `peers` where the others are reached, `step`
    the last one begun here, `fits` the number of processes that the run could go on with where it cannot with so many,
    `stopped` whether a signal has asked for the end.
    """

    def __init__(self, place: Place, bounds: Bounds, command: Sequence[str], standby: int = 0, shrunk: bool = False):
        self.place, self.bounds, self.command = place, bounds, command
        self.standby, self.shrunk, self.step, self.fits, self.peers = standby, shrunk, -1, 0, []
        self.stopped = False
        self.hub: Any = None
        self.child: Any = None
        self.to_hub: Any = None
        self.heard_hub = self.heard_child = time.monotonic()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self.go, self.stop, self.bye = loop.create_future(), loop.create_future(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        tasks = []
        try:
            if self.place.index == 0:
                await self._open_hub()
            reader, self.to_hub = await self._connect()
            _send(self.to_hub, index=self.place.index, count=self.place.count, job=self.place.job,
                  host=socket.gethostname() if not self.place.names else self.place.names[self.place.index],
                  pid=os.getpid(), standby=self.standby)
            tasks = [asyncio.create_task(part) for part in (self._from_hub(reader), self._tick())]
            await asyncio.wait((self.go, self.stop), return_when=asyncio.FIRST_COMPLETED)
            return self._stopped(None) if self.stop.done() else await self._train(tasks)
        finally:
            if self.child and self.child.returncode is None:
                self.child.kill()
                await self.child.wait()
            if self.to_hub:
                await self._flush()
            if self.hub:
                await self.hub.close()
            for task in tasks:
                task.cancel()

    async def _open_hub(self) -> None:
        self.hub = Hub(self.place, self.bounds, say)
        try:
            await self.hub.open()
        except OSError as error:
            raise ConfigError(f"{self.place.address}: process 0 cannot listen there ({error.strerror or error}); give "
                              "another port in --coordinator or LGM_PORT") from None

    async def _connect(self):
        host, _, port = self.place.address.rpartition(":")
        deadline = time.monotonic() + self.bounds.wait
        while True:
            if self.stop.done():
                raise _Stopped(self.stop.result()["line"])
            try:
                return await asyncio.wait_for(asyncio.open_connection("127.0.0.1" if self.hub else host, port), 10)
            except (TimeoutError, OSError) as error:
                if time.monotonic() > deadline:
                    first = f" ({self.place.names[0]})" if self.place.names else ""
                    reason = str(error) or type(error).__name__
                    raise _Lost(f"process 0{first} at {self.place.address} was not there within "
                                f"{self.bounds.wait:.0f} s ({reason}); this is process {self.place.index} on "
                                f"{socket.gethostname()}") from None
                await asyncio.sleep(0.2)

    async def _train(self, tasks: list[asyncio.Task]) -> int:
        """Start the training process, wait for its end or for bad news, and return the exit code."""
        ours, theirs = socket.socketpair()
        go = self.go.result()
        self.peers = [tuple(peer) for peer in go["peers"]]
        member = {"index": self.place.index, "count": self.place.count, "coordinator": go["coordinator"],
                  "local_devices": self.place.local_devices, "wait": self.bounds.wait,
                  "heartbeat": 2 * self.bounds.patience + 60, "shrunk": self.shrunk}
        environment = os.environ | {CHANNEL: str(theirs.fileno()), MEMBER: json.dumps(member)}
        self.child = await asyncio.create_subprocess_exec(*self.command, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        self.heard_child = time.monotonic()
        reader, self.to_child = await asyncio.open_connection(sock=ours)
        tasks.append(asyncio.create_task(self._from_child(reader)))
        ended = asyncio.create_task(self.child.wait())
        await asyncio.wait((ended, self.stop), return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            return self._stopped(None)
        code = ended.result()
        _send(self.to_hub, exit=code)
        bye = asyncio.create_task(self.bye.wait())
        tasks.append(bye)
        await asyncio.wait((bye, self.stop), return_when=asyncio.FIRST_COMPLETED)
        if self.stop.done():
            return self._stopped(code)
        return code

    @property
    def lost(self) -> bool:
        """Whether the pass was ended by a loss."""
        return self.stop.done() and self.stop.result()["code"] == LOST

    def _stopped(self, own: int | None) -> int:
        """Say the verdict, unless it is this process's own error, already said; returns the exit code for it."""
        verdict = self.stop.result()
        mine = verdict["index"] == self.place.index and own not in (None, 0)
        if not mine or own < 0:
            say(f"lgm: {verdict['line']}")
        if mine:
            return own if own >= 0 else 128 - own
        return verdict["code"]

    async def _from_hub(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self.heard_hub = time.monotonic()
                message = json.loads(line)
                if "go" in message:
                    self.go.set_result(message["go"])
                elif "stop" in message:
                    self._end(**message["stop"])
                elif "bye" in message:
                    self.bye.set()
                elif "release" in message:
                    _send(self.to_child, **message)
        except (OSError, ValueError):
            pass
        if not self.bye.is_set():
            self._end_without_hub("is gone: its connection closed")

    async def _from_child(self, reader: asyncio.StreamReader) -> None:
        """Pass on what the training process says; what it says of its life stays here."""
        try:
            while line := await reader.readline():
                self.heard_child = time.monotonic()
                message = json.loads(line)
                self.step, self.fits = message.get("step", self.step), message.get("fits", self.fits)
                if message and not self.to_hub.is_closing():
                    self.to_hub.write(line)
        except (OSError, ValueError):  # a last line that was cut short
            pass

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            now = time.monotonic()
            running = self.child is not None and self.child.returncode is None
            _send(self.to_hub, silent=now - self.heard_child if running else 0.0)
            if now - self.heard_hub > self.bounds.patience:
                self._end_without_hub(f"has not been heard from for {self.bounds.patience:.0f} s")

    def _end_without_hub(self, what: str) -> None:
        first = f" ({self.place.names[0]})" if self.place.names else f" at {self.place.address.rpartition(':')[0]}"
        self._end(0, f"process 0{first} {what}; all processes stop, and the same command goes on from the last "
                     "checkpoint", LOST)

    def _end(self, index: int, line: str, code: int) -> None:
        if not self.stop.done():
            self.stop.set_result({"index": index, "line": line, "code": code})

    def _signalled(self, number: int) -> None:
        self.stopped = True
        if self.child is None:
            name = signal.Signals(number).name
            if self.to_hub:
                _send(self.to_hub, exit=-number)
            self._end(-1, f"stopped by {name} before the start", PREEMPTED if number == signal.SIGTERM else 130)
        elif self.child.returncode is None and number == signal.SIGTERM:
            self.child.send_signal(number)  # an interrupt of a terminal reaches it by itself

    async def _flush(self) -> None:
        try:
            await asyncio.wait_for(self.to_hub.drain(), SETTLE)
        except (TimeoutError, OSError):
            pass
        self.to_hub.close()


class _Lost(RuntimeError):
    """The first process never came."""

    exit_code = LOST


class _Stopped(RuntimeError):
    """Told to stop before the others were met."""

    exit_code = PREEMPTED
