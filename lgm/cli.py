"""The command line: `lgm VERB` or `python -m lgm VERB`. It parses words, calls the library, makes errors one line."""

import glob
import os
import select
import sys
import traceback

from lgm import arguments as words
from lgm import files, processes, verbs
from lgm.parsing import ConfigError, near_miss
from lgm.processes import member

ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia*", "/dev/dxg", "/dev/kfd")  # as Linux shows them
# verbs that take --config.KEY=VALUE
CONFIGURED = ("train", "encode", "pairs", "sweep", "launch", "plan", "config", "data")
LONGEST = 1000  # letters of an error's line
UNREAD = 141  # the exit code of a program that SIGPIPE ends
DEFECT = 70  # the exit code of what should not happen, as in sysexits.h
DISTRIBUTED = ("train", "sweep", "sample", "evaluate", "export")  # several processes where the cluster starts several


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code. Where no one reads on, as behind `| head`, it ends without a word."""
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not (gone := [stream for stream in (sys.stdout, sys.stderr) if _unread(stream)]):
            raise
        for stream in gone:  # or Python would try once more, and say so
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return member.leave(UNREAD)


def _unread(stream) -> bool:
    """Whether a stream is a pipe that has been closed at its other end."""
    try:
        waiting = select.poll()
        waiting.register(stream.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in waiting.poll(0))
    except (OSError, ValueError, AttributeError):  # no file is behind it, or the system has no such call
        return False


def _run(argv: list[str] | None) -> int:
    settle_platform()
    argv = list(sys.argv[1:] if argv is None else argv)
    # apart, for argparse would take a word with a space in it for a path
    changes = [word for word in argv if word.startswith("--config.")]
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may follow (`lgm completion`)
        import argcomplete

        argcomplete.autocomplete(words.parser())
    if not argv:
        words.parser().print_help(sys.stderr)
        return 2
    arguments, rest = words.parser().parse_known_args([word for word in argv if word not in changes])
    try:
        overrides = _overrides([*changes, *rest], arguments.verb)
        if arguments.verb in DISTRIBUTED and (place := _place(arguments)) is not None:
            command = [sys.executable, "-m", "lgm.cli", *argv]
            least = processes.read_least(arguments.elastic, os.environ, place.count)
            bounds = processes.Bounds.read({name: getattr(arguments, name) for name in ("patience", "wait", "report")})
            return processes.supervise(place, bounds, command, least)
        return verbs.run(arguments.run, arguments, overrides)
    except KeyboardInterrupt:
        print(f"lgm {arguments.verb}: interrupted", file=sys.stderr)
        return member.leave(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and (_unread(sys.stdout) or _unread(sys.stderr)):
            raise
        if arguments.debug or os.environ.get("LGM_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        if not isinstance(error, ConfigError):
            member.settle()
        line, code = " ".join(str(error).split()), getattr(error, "exit_code", 2)
        if files.failed_in_a_store(error):
            line = f"a store cannot be used: {line}"
        elif not isinstance(error, (ValueError, OSError, RuntimeError)):
            line, code = f"{type(error).__name__}: {line}; --debug prints where", DEFECT
        if len(line) > LONGEST:  # of a name that is a whole text, both ends
            line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
        print(f"lgm {arguments.verb}: {line}", file=sys.stderr)
        return member.leave(code)


def settle_platform() -> None:
    """Say "cpu" to JAX, unless the user has said something, where there is no other device.

    It asks each plug-in that is installed, and the TPU's, which `lgm plan` compiles with, answers in many lines.
    """
    if not any(map(glob.glob, ACCELERATORS)):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _overrides(said: list[str], verb: str) -> list[tuple[str, str]]:
    """`--config.a.b=value` as (a.b, value); anything else is refused."""
    pairs = []
    for word in said:
        key, equals, value = word.partition("=")
        if not key.startswith("--config."):
            close = near_miss(key, words.flags(verb)) if word.startswith("--") else ""
            raise ConfigError(f"unknown argument {word!r}{close if 'did you mean' in close else '; see --help'}")
        if verb not in CONFIGURED:
            raise ConfigError(f"unknown argument {word!r}; lgm {verb} takes no --config.KEY=VALUE")
        if not equals:
            raise ConfigError(f"unknown argument {word!r}; write --config.KEY=VALUE")
        pairs.append((key.removeprefix("--config."), value))
    return pairs


def _place(arguments) -> processes.Place | None:
    """This process's place among several, None where it is alone or has its supervisor already."""
    if member.is_member():
        member.join()
        return None
    return processes.find(arguments.coordinator, arguments.processes, arguments.process_id)


if __name__ == "__main__":
    sys.exit(main())
