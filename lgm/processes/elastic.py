"""A run that outlives its processes: pass after pass of supervision, each with those that are left."""

import asyncio
import signal
from collections.abc import Sequence

from lgm.parsing import ConfigError
from lgm.processes.rank import Place
from lgm.processes.regroup import Standby
from lgm.processes.supervise import Supervisor, say
from lgm.processes.timeouts import PREEMPTED, Bounds

PATIENT = 3  # passes that may end without a step farther than all before: a fault that comes back is none of a machine


def read_least(given: int | None, environment, count: int) -> int | None:
    """The least number of processes to go on with, from --elastic or LGM_ELASTIC, None where a loss ends the run."""
    word = environment.get("LGM_ELASTIC") if given is None else given
    if word in (None, ""):
        return None
    try:
        least = int(word)
    except ValueError:
        least = 0
    if not 1 <= least <= count:
        raise ConfigError(f"--elastic={word} (or LGM_ELASTIC) must be a number of processes from 1 to {count}")
    return least


def supervise(place: Place, bounds: Bounds, command: Sequence[str], least: int | None = None) -> int:
    """Run `command` as process `place.index` of `place.count`; returns its exit code.

    When another process is lost, late or stopped, its name and host are one line on stderr, the command is ended, and
    the code is 76 (LOST), 75 (PREEMPTED) where that one was told to stop before it could save, or the other's own code.
    A process that is killed is noticed within 5 seconds, a machine that falls silent within `bounds.patience` and 5.
    With `least` a loss is not the end: those that are left go on, as long as there are so many.
    """
    if least is not None:
        return asyncio.run(go_on(place, bounds, command, least))
    return asyncio.run(Supervisor(place, bounds, command).run())


async def go_on(place: Place, bounds: Bounds, command: Sequence[str], least: int) -> int:
    """Supervise `command` pass after pass while what ends one is a loss; returns the last one's exit code."""
    standby = Standby(bounds, least)
    await standby.open()
    whole, farthest, patience = place.count, -1, PATIENT
    try:
        while True:
            one = Supervisor(place, bounds, command, standby=standby.port, shrunk=place.count < whole)
            code = await one.run()
            patience = PATIENT if one.step > farthest else patience - 1
            farthest = max(farthest, one.step)
            if one.stopped or not one.peers or not (one.lost or one.fits):
                return code
            if not patience:
                say(f"lgm: {PATIENT} starts did not come beyond step {farthest}; all processes stop")
                return code
            place, line = await _interruptible(standby.regroup(place, one.peers, one.fits or place.count))
            say(f"lgm: {line}")
            if place is None:
                return code
    except _Signalled as signalled:
        return PREEMPTED if signalled.number == signal.SIGTERM else 130
    finally:
        standby.close()


class _Signalled(Exception):
    def __init__(self, number: int):
        self.number = number


async def _interruptible(work):
    """What `work` returns, unless a signal comes first: then there is no training process that could save."""
    loop = asyncio.get_running_loop()
    signalled, task = loop.create_future(), asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda number=number: signalled.done() or signalled.set_result(number))
    await asyncio.wait((signalled, task), return_when=asyncio.FIRST_COMPLETED)
    if signalled.done():
        task.cancel()
        raise _Signalled(signalled.result())
    return task.result()
