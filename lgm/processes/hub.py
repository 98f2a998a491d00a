"""Where the supervisors of a run meet: process 0's supervisor holds the hub, and every supervisor is connected to it.

The hub gathers all processes, keeps barriers, hears from every supervisor once a second, and when something goes wrong
tells all of them one verdict: which process it was, on which host, and what became of it.
"""

import asyncio
import dataclasses
import ipaddress
import json
import signal
import socket
import time
from collections.abc import Callable

from lgm.processes.rank import Place
from lgm.processes.timeouts import LOST, PREEMPTED, Bounds

BEAT = 1.0  # seconds between signs of life
SETTLE = 2.0  # seconds that other news may take to come: the first to fail is not always the first to be heard of


@dataclasses.dataclass
class _Member:
    """What the hub knows of one process."""

    host: str
    pid: int
    writer: asyncio.StreamWriter
    heard: float
    standby: tuple[str, int]  # where its supervisor is reached when this hub is gone
    step: int | None = None
    stepped: float = 0.0
    silent: float = 0.0  # seconds for which the training process has not answered its supervisor
    exit: int | None = None


class Hub:
    """Process 0's side. `lines(text)` takes a line for people."""

    def __init__(self, place: Place, bounds: Bounds, lines: Callable[[str], None]):
        self.place, self.bounds, self.lines = place, bounds, lines
        self.members: dict[int, _Member] = {}
        self.barriers: dict[str, tuple[float, float, dict[int, str]]] = {}  # deadline, seconds, what each one brought
        self.blame: list[tuple[int, float, dict]] = []
        self.stopped = False
        self.tasks: list[asyncio.Task] = []
        self.server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen at the place's port. Raises OSError where it is taken."""
        port = int(self.place.address.rpartition(":")[2])
        self.server = await asyncio.start_server(self._serve, host=None, port=port)
        self.tasks = [asyncio.create_task(self._watch())]

    async def close(self) -> None:
        """Give the others a moment to hear the last word, then stop listening."""
        deadline = time.monotonic() + 3 * SETTLE
        while any(not m.writer.is_closing() for m in self.members.values()) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for task in self.tasks:
            task.cancel()
        if self.server is not None:  # its port was free
            self.server.close()

    def name(self, index: int) -> str:
        """`process 1 (n2, pid 77)`, as much of it as is known."""
        member = self.members.get(index)
        if member:
            return f"process {index} ({member.host}, pid {member.pid})"
        known = self.place.names
        return f"process {index} ({known[index]})" if index < len(known) else f"process {index}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            hello = json.loads(await asyncio.wait_for(reader.readline(), 10))
            index, host, pid = int(hello["index"]), str(hello["host"]), int(hello["pid"])
            standby = self._seen_from_others(writer), int(hello.get("standby", 0))
            wrong = (hello["job"], hello["count"]) != (self.place.job, self.place.count)
        except (TimeoutError, ValueError, KeyError, TypeError, OSError):
            writer.close()  # not one of ours
            return
        if wrong or index in self.members:
            line = (f"{self.place.address} is held by another run ({self.place.job}); give another port" if wrong else
                    f"two processes, on {self.members[index].host} and {host}, both say that they are process {index}")
            _send(writer, stop={"index": index, "line": line, "code": 2})
            writer.close()
            return
        self.members[index] = member = _Member(host, pid, writer, time.monotonic(), standby)
        if len(self.members) == self.place.count:
            self._go()
        try:
            while message := await reader.readline():
                member.heard = time.monotonic()
                self._hear(index, member, json.loads(message))
        except (OSError, ValueError):
            pass
        writer.close()
        if member.exit is None:
            self._bad(index, 1, LOST, "is gone: its connection closed")

    def _go(self) -> None:
        host = self.place.address.rpartition(":")[0]
        peers = [self.members[index].standby for index in range(self.place.count)]
        self._tell(go={"coordinator": f"{host}:{_free_port()}", "peers": peers})  # of JAX's own coordination service

    def _seen_from_others(self, writer: asyncio.StreamWriter) -> str:
        """The address of a supervisor that has connected; those on this machine are where the hub is."""
        seen = writer.get_extra_info("peername")[0]
        return self.place.address.rpartition(":")[0] if ipaddress.ip_address(seen).is_loopback else seen

    def _hear(self, index: int, member: _Member, message: dict) -> None:
        if "step" in message:
            member.step, member.stepped = message["step"], time.monotonic()
        elif "silent" in message:
            member.silent = message["silent"]
        elif "barrier" in message:
            self._arrive(index, **message)
        elif "exit" in message:
            member.exit = message["exit"]
            if member.exit not in (0, PREEMPTED):
                self._failed(index, member.exit)
            elif all(m.exit is not None for m in self.members.values()):
                self._tell(bye=True)

    def _arrive(self, index: int, barrier: str, value: str, seconds: float) -> None:
        deadline, _, here = self.barriers.setdefault(barrier, (time.monotonic() + seconds, seconds, {}))
        here[index] = value
        if len(here) < self.place.count:
            return
        del self.barriers[barrier]
        odd = [i for i, v in sorted(here.items()) if v != here[0]]
        if odd:
            self._bad(odd[0], 0, 2, f"disagrees with process 0 at {barrier!r}: {here[odd[0]]}, not {here[0]}")
        else:
            self._tell(release=barrier)

    def _failed(self, index: int, code: int) -> None:
        if code < 0:
            name = signal.Signals(-code).name
            rank = 3 if name == "SIGABRT" else 0  # what JAX does to itself when another process has gone
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            self._bad(index, rank, PREEMPTED if name == "SIGTERM" else LOST, f"was killed by {name}{hint}")
        else:
            self._bad(index, 2, code, f"ended with exit code {code}; its own log says why")

    def _bad(self, index: int, rank: int, code: int, what: str) -> None:
        """Note what went wrong; once other news has had time to come, the most telling of it is the verdict."""
        member = self.members.get(index)
        after = f" after step {member.step}" if member and member.step is not None else ""
        line = f"{self.name(index)} {what}{after}"
        if code == LOST:
            line += "; all processes stop, and the same command goes on from the last checkpoint"
        self.blame.append((rank, time.monotonic(), {"index": index, "line": line, "code": code}))
        if len(self.blame) == 1:
            self.tasks.append(asyncio.create_task(self._judge()))

    async def _judge(self) -> None:
        start = time.monotonic()
        await asyncio.sleep(SETTLE)
        silent = lambda: [m for m in self.members.values() if m.exit is None and time.monotonic() - m.heard > 3 * BEAT]
        while self.blame[0][0] > 1 and silent() and time.monotonic() - start < self.bounds.patience + SETTLE:
            await asyncio.sleep(BEAT)  # an error of communication: who has gone quiet may be its cause
        self.stopped = True
        self._tell(stop=min(self.blame, key=lambda entry: entry[:2])[2])

    async def _watch(self) -> None:
        """Once a beat: who is silent, who is late, and now and then a line that says how all are."""
        opened = reported = time.monotonic()
        while not self.stopped:
            await asyncio.sleep(BEAT)
            now, bounds = time.monotonic(), self.bounds
            self._tell(beat=True)
            missing = [i for i in range(self.place.count) if i not in self.members]
            if missing and now - opened > bounds.wait and not self.blame:
                who = ", ".join(map(self.name, missing))
                self._bad(missing[0], 0, LOST, f"did not come within {bounds.wait:.0f} s (missing: {who})")
            for index, member in self.members.items():
                if member.exit is not None or any(entry[2]["index"] == index for entry in self.blame):
                    continue
                if now - member.heard > bounds.patience:
                    self._bad(index, 1, LOST, f"has not been heard from for {bounds.patience:.0f} s")
                elif member.silent > bounds.wait:
                    self._bad(index, 1, LOST, f"has not answered its supervisor for {bounds.wait:.0f} s")
            for name, (deadline, seconds, here) in list(self.barriers.items()):
                if now > deadline:
                    del self.barriers[name]
                    late = [i for i in range(self.place.count) if i not in here]
                    others = f" (late: {', '.join(map(self.name, late))})" if len(late) > 1 else ""
                    self._bad(late[0], 0, LOST, f"did not reach {name!r} within {seconds:.0f} s{others}")
            if now - reported > bounds.report and not missing:
                reported = now
                self.lines(self.heartbeat())

    def heartbeat(self) -> str:
        """One line: how many answer, where they are, and who is behind."""
        now = time.monotonic()
        answering = sum(now - m.heard < 3 * BEAT for m in self.members.values())
        text = f"heartbeat: {answering} of {self.place.count} processes answer"
        text += "" if any(m.step for m in self.members.values()) else ", no step yet"
        steps = {i: m.step for i, m in self.members.items() if m.step is not None}
        if steps:
            last = max(m.stepped for m in self.members.values())
            text += f", step {max(steps.values())}, {now - last:.1f} s ago"
            behind = min(steps, key=steps.get)
            if steps[behind] < max(steps.values()):
                text += f"; behind: {self.name(behind)} at step {steps[behind]}"
        for name, (_, _, here) in self.barriers.items():
            late = [self.name(i) for i in range(self.place.count) if i not in here]
            text += f"; {name!r} waits for {', '.join(late)}"
        return text

    def _tell(self, **message) -> None:
        for member in self.members.values():
            _send(member.writer, **message)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _send(writer: asyncio.StreamWriter, **message) -> None:
    if not writer.is_closing():
        writer.write(json.dumps(message).encode() + b"\n")
