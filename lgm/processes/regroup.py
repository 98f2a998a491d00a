"""After a loss the supervisors that are left agree on who they are, and go on as a run of fewer processes.

Each supervisor listens at a port of its own for as long as it lives; the hub tells all of them all of these. After a
loss each asks the others in the order of their numbers: the first that lives leads, so process 0 as long as it is
there, and the next one where it is process 0 that was lost. The leader waits for all that live and tells each its new
place. A network that falls apart could leave two groups; with a least number of more than half there is only one that
goes on, and otherwise the lock of the run's folder lets one of them write.
"""

import asyncio
import dataclasses
import json
import time
from collections.abc import Sequence

from lgm.processes.hub import _free_port, _send
from lgm.processes.rank import Place
from lgm.processes.timeouts import Bounds

REACH = 5.0  # seconds for a machine to take a connection; one that is gone takes none
Peers = Sequence[tuple[str, int]]  # where each process's supervisor listens, by number


class Standby:
    """Where a supervisor can be reached, whatever becomes of the run's hub."""

    def __init__(self, bounds: Bounds, least: int):
        self.bounds, self.least = bounds, least
        self.asking: dict[tuple[str, int], asyncio.StreamWriter] = {}  # (job, index) of those that ask to be led

    async def open(self) -> None:
        """Listen at a free port."""
        self.server = await asyncio.start_server(self._serve, host=None, port=_free_port())
        self.port = self.server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Listen no more, and let those who ask find another."""
        self.server.close()
        for writer in self.asking.values():
            writer.close()

    async def regroup(self, place: Place, peers: Peers, most: int) -> tuple[Place | None, str]:
        """(the place of this process among those left, what happened), or None and why they do not go on."""
        for index in range(place.index):
            answer = await self._ask(place, peers[index])
            if answer:
                fields = answer["place"]
                fields = fields and fields | {"names": tuple(fields["names"])}
                return fields and dataclasses.replace(place, **fields), answer["line"]
        return await self._lead(place, peers, most)

    async def _ask(self, place: Place, peer: tuple[str, int]) -> dict | None:
        """What `peer` says as the leader; None where it is gone or does not lead."""
        connected = await _reach(peer)
        if connected is None:
            return None
        reader, writer = connected
        try:
            _send(writer, job=place.job, index=place.index)
            line = await asyncio.wait_for(reader.readline(), 2 * self.bounds.patience + 2 * REACH)
            return json.loads(line) if line else None
        except (TimeoutError, OSError, ValueError):
            return None
        finally:
            writer.close()

    async def _lead(self, place: Place, peers: Peers, most: int) -> tuple[Place | None, str]:
        deadline = time.monotonic() + self.bounds.patience + REACH
        others = [index for index in range(len(peers)) if index != place.index]
        while absent := [index for index in others if (place.job, index) not in self.asking]:
            reached = await asyncio.gather(*(_reach(peers[index]) for index in absent))
            for connection in filter(None, reached):
                connection[1].close()
            if not any(reached) or time.monotonic() > deadline:
                absent = [index for index in others if (place.job, index) not in self.asking]
                break
            await asyncio.sleep(0.2)
        here = sorted({place.index, *others} - set(absent))
        name = lambda index: f"process {index}" + (f" ({place.names[index]})" if place.names else "")
        lost = f"{', '.join(map(name, absent))} lost: " if absent else ""
        if len(here) < self.least:
            line = f"{lost}{len(here)} processes are left, fewer than --elastic={self.least}"
            return self._tell(place, here, dict.fromkeys(here), line)
        chosen = here[:most]
        aside = f" ({len(here) - len(chosen)} left aside, whom the mesh or the batch has no use for)"
        line = f"{lost}{len(chosen)} processes go on from the last checkpoint{aside if len(chosen) < len(here) else ''}"
        base, _, passed = place.job.partition("+")
        host = peers[place.index][0]
        common = {"count": len(chosen), "address": f"{host}:{_free_port()}", "job": f"{base}+{int(passed or 0) + 1}",
                  "names": [place.names[index] for index in chosen] if place.names else []}
        places = {index: common | {"index": number} for number, index in enumerate(chosen)}
        return self._tell(place, here, places, line)

    def _tell(self, place: Place, here: list[int], places: dict, line: str) -> tuple[Place | None, str]:
        for index in here:
            if (writer := self.asking.pop((place.job, index), None)) is not None:
                _send(writer, place=places.get(index), line=line)
        mine = places.get(place.index)
        return mine and dataclasses.replace(place, **mine | {"names": tuple(mine["names"])}), line

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            hello = json.loads(await asyncio.wait_for(reader.readline(), 2 * REACH))
            who = str(hello["job"]), int(hello["index"])
        except (TimeoutError, ValueError, KeyError, TypeError, OSError):
            writer.close()  # only to see whether this machine is there, or not one of ours
            return
        self.asking[who] = writer
        try:
            await reader.read()
        except OSError:
            pass
        if self.asking.get(who) is writer:
            del self.asking[who]
        writer.close()


async def _reach(peer: tuple[str, int]):
    """A connection to a supervisor, None where it is gone."""
    if not peer[1]:
        return None
    try:
        return await asyncio.wait_for(asyncio.open_connection(*peer), REACH)
    except (TimeoutError, OSError):
        return None
