"""The command line: `lgm VERB`. Thin: it parses words, calls the library and turns errors into one line."""

import glob
import os
import sys
import traceback

from lgm import arguments as words
from lgm import files, processes, verbs
from lgm.parsing import ConfigError
from lgm.processes import member

ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia*", "/dev/dxg", "/dev/kfd")  # as Linux shows them
# verbs that take --config.KEY=VALUE
CONFIGURED = ("train", "encode", "pairs", "sweep", "launch", "plan", "config", "data")
LONGEST = 1000  # letters of an error's line
DEFECT = 70  # the exit code of what should not happen, as in sysexits.h
DISTRIBUTED = ("train", "sweep", "sample", "evaluate", "export")  # several processes where the cluster starts several


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    settle_platform()
    argv = list(sys.argv[1:] if argv is None else argv)
    # apart, for argparse would take a word with a space in it for a path
    changes = [word for word in argv if word.startswith("--config.")]
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may follow (`lgm completion`)
        import argcomplete

        argcomplete.autocomplete(words.parser())
    arguments, rest = words.parser().parse_known_args([word for word in argv if word not in changes])
    try:
        overrides = _overrides([*rest, *changes], allowed=arguments.verb in CONFIGURED)
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


def _overrides(words: list[str], allowed: bool) -> list[tuple[str, str]]:
    """`--config.a.b=value` as (a.b, value); anything else is refused."""
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not (allowed and key.startswith("--config.") and equals):
            hint = "; write --config.KEY=VALUE" if key.startswith("--config.") else "; see --help"
            raise ConfigError(f"unknown argument {word!r}{hint}")
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
