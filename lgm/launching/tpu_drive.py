"""The driver of a run on Cloud TPU VMs: every gcloud command it runs, what each failure means, and what comes next."""

import base64
import dataclasses
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lgm.processes.timeouts import LOST, PREEMPTED

QUEUED = ("CREATING", "ACCEPTED", "PROVISIONING", "WAITING_FOR_RESOURCES")
GONE = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING")
SSH_FAILED = 255  # ssh's own failure, not the command's
CONNECTED = 300.0  # seconds after which an ssh that fails had been connected
SETUPS = 3  # attempts at a worker's environment: package servers fail at times
# what gcloud says where trying again cannot help
FINAL = ("PERMISSION_DENIED", "INVALID_ARGUMENT", "UNAUTHENTICATED", "Quota", "quota", "not have permission",
         "Reauthentication", "unrecognized arguments", "Invalid choice")
EXISTS, MISSING = ("ALREADY_EXISTS", "already exists"), ("NOT_FOUND", "not found", "was not found")


class Failed(RuntimeError):
    """What cannot be helped by trying again; one line."""

@dataclasses.dataclass(frozen=True)
class Done:
    """One command's end."""

    code: int
    out: str = ""
    err: str = ""

    def says(self, words: Sequence[str]) -> bool:
        return any(word in self.err for word in words)


@dataclasses.dataclass(frozen=True)
class Names:
    """A queued resource and its nodes."""

    resource: str
    project: str
    zone: str
    slices: int

    @property
    def nodes(self) -> list[str]:
        """One TPU VM for each slice, as Google names those of a multislice request."""
        return [self.resource] if self.slices == 1 else [f"{self.resource}-{i}" for i in range(self.slices)]

    @property
    def place(self) -> list[str]:
        return [f"--zone={self.zone}", f"--project={self.project}"]

    def describe(self) -> list[str]:
        """The command that tells the queued resource's state."""
        return ["gcloud", "compute", "tpus", "queued-resources", "describe", self.resource, *self.place,
                "--format=value(state.state)"]


def run_command(words: Sequence[str]) -> Done:
    """Run it, its output kept."""
    done = subprocess.run(words, capture_output=True, text=True)
    return Done(done.returncode, done.stdout, done.stderr)


class Driver:
    """One run. `order`: what `tpu_vm.job` wrote. `execute` runs one command, `sleep` waits, `clock` tells seconds."""

    def __init__(self, order: dict[str, Any], script: str, execute: Callable[[Sequence[str]], Done] = run_command,
                 sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic,
                 say: Callable[[str], None] | None = None):
        self.order, self.script = order, script
        self.names = Names(order["name"], order["project"], order["zone"], order["slices"])
        self.execute, self.sleep, self.clock = execute, sleep, clock
        self.say = say or (lambda line: print(f"{time.strftime('%FT%T')} {line}", flush=True))

    def run(self) -> int:
        """Until the run is done (0) or has failed for good; the slices are given back either way."""
        code = 1
        try:
            for number in self.order["runs"] or (None,):
                code = self._until_done([] if number is None else [f"--only={number}"])
                if code:
                    break
        except Failed as error:
            self.say(str(error))
        try:
            self._delete()
        except Failed as error:
            self.say(f"{error}; the slices may still cost money: delete {self.names.resource} by hand")
            return code or 1
        self.say("done" if code == 0 else f"ended with code {code}")
        return code

    def commands(self) -> Iterator[list[str]]:
        """What a run takes when nothing fails, in order; for people."""
        yield self._create_words()
        yield self.names.describe()
        runs = self.order["runs"] or (None,)
        for part in ("setup", "start", "wait"):
            for node in self.names.nodes:
                words = [] if part != "start" or runs[0] is None else [f"--only={runs[0]}"]
                yield self._ssh_words(node, self._remote(part, words, "WORKER_SH_IN_BASE64"))
        yield self._delete_words()

    def _until_done(self, words: list[str]) -> int:
        """One run, over as many preemptions as there are and at most `restarts` lost processes."""
        lost = 0
        while True:
            self._acquire()
            for _ in range(SETUPS):
                code = self._on_all("setup", [])
                if not code:  # done, or the slices have gone
                    break
                self.say(f"setting the workers up failed with code {code}")
                self._pause()
            else:
                raise Failed(f"the workers could not be set up in {SETUPS} attempts (code {code})")
            if code == 0:
                code = self._on_all("start", words)
                code = self._on_all("wait", []) if code == 0 else code
            if code == 0:
                return 0
            if code is None:
                self.say("the slices have gone: asking for them again")
                self._delete()
            elif code == LOST or code > 128:
                lost += 1
                if lost > self.order["restarts"]:
                    raise Failed(f"a process was lost {lost} times (code {code}): not started again")
                self.say(f"a process was lost (code {code}): starting again from the last checkpoint")
            elif code == PREEMPTED:
                self.say("training saved and stopped: starting again")
            else:
                return code

    def _acquire(self) -> None:
        """An active queued resource: the one that is there, else a new one."""
        waited = 0.0
        while True:
            state = self._state()
            if state == "ACTIVE":
                return
            if state in GONE:
                self.say(f"{self.names.resource} is {state}")
                self._delete()
                state = ""
            if not state:
                self._try(self._create_words(), good=EXISTS)
                self.say(f"asked for {self.order['slices']} x {' '.join(self.order['accelerator'])}")
            elif state not in QUEUED:
                raise Failed(f"{self.names.resource} is {state}, which is unheard of")
            if waited > 3600 * self.order["wait_hours"]:
                raise Failed(f"no slices within {self.order['wait_hours']:g} hours")
            waited += self._pause()

    def _state(self) -> str:
        """The queued resource's state, "" where there is none."""
        done = self._try(self.names.describe(), good=MISSING)
        return "" if done.code else done.out.strip()

    def _on_all(self, part: str, words: list[str]) -> int | None:
        """Run a part of the script on all workers; the largest exit code, or None when the slices have gone.

        A failure of ssh itself is tried again: every part of the script may be run again, whatever of it has been done.
        """
        worst = 0
        for node in self.names.nodes:
            attempt = 0
            while attempt < self.order["tries"]:
                begun = self.clock()
                done = self.execute(self._ssh_words(node, self._remote(part, words)))
                if done.code != SSH_FAILED and not (done.code == 1 and done.says(("ERROR: (gcloud",))):
                    break
                if done.says(FINAL):
                    raise Failed(f"gcloud: {_last(done.err)}")
                if self._state() != "ACTIVE":
                    return None
                attempt = 1 if self.clock() - begun > CONNECTED else attempt + 1  # a line that held did not fail
                self.say(f"{node}: ssh failed ({_last(done.err)}), attempt {attempt} of {self.order['tries']}")
                self._pause()
            else:
                raise Failed(f"{node} could not be reached in {self.order['tries']} attempts: {_last(done.err)}")
            if done.code and done.err.strip():
                self.say(f"{node}: {_last(done.err)}")
            worst = max(worst, done.code)
        if worst not in (0, PREEMPTED) and self._state() != "ACTIVE":
            return None  # it failed because its machines were being taken away
        return worst

    def _delete(self) -> None:
        self._try(self._delete_words(), good=MISSING)
        while self._state():  # a name is free only when it has really gone
            self._pause()

    def _try(self, words: list[str], good: Sequence[str] = ()) -> Done:
        """Run it until it does what it should, or says one of `good`; raises Failed where that cannot come."""
        for _ in range(self.order["tries"]):
            done = self.execute(words)
            if done.code == 0 or done.says(good):
                return done
            if done.says(FINAL):
                break
            self.say(f"gcloud failed ({_last(done.err)}), trying again")
            self._pause()
        raise Failed(f"gcloud: {_last(done.err)}")

    def _pause(self) -> float:
        self.sleep(self.order["pause_seconds"])
        return self.order["pause_seconds"]

    def _remote(self, part: str, words: list[str], text: str | None = None) -> str:
        """The script goes along each time, so that every worker has this one."""
        text = text or base64.b64encode(self.script.encode()).decode()
        return shlex.join(["bash", "-c", f"echo {text} | base64 -d > lgm-worker.sh && exec bash lgm-worker.sh "
                                         f"{shlex.join([part, *words])}"])

    def _create_words(self) -> list[str]:
        order = self.order
        nodes = [f"--node-id={self.names.resource}"] if order["slices"] == 1 else [
            f"--node-count={order['slices']}", f"--node-prefix={self.names.resource}"]
        more = [f"--{flag}" for flag in ("spot", "reserved") if order[flag]]
        more += [f"--{flag.replace('_', '-')}={order[flag]}" for flag in ("network", "service_account") if order[flag]]
        return ["gcloud", "compute", "tpus", "queued-resources", "create", self.names.resource, *nodes,
                *order["accelerator"], f"--runtime-version={order['runtime']}", *self.names.place, *more, "--quiet"]

    def _delete_words(self) -> list[str]:
        return ["gcloud", "compute", "tpus", "queued-resources", "delete", self.names.resource, *self.names.place,
                "--force", "--quiet"]

    def _ssh_words(self, node: str, command: str) -> list[str]:
        return ["gcloud", "compute", "tpus", "tpu-vm", "ssh", node, *self.names.place, "--worker=all", "--quiet",
                f"--command={command}"]


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "no reason given"
