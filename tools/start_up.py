"""Time `lgm train` from its command to the end of its first step, with an empty and with a filled compilation cache.

    python tools/start_up.py                                             both quickstarts
    python tools/start_up.py --config configs/quickstart.py --json start.json

Each run is a process of its own in a folder of its own, told to write a row a step and ended once the row of its first
step is there; the second finds what the first compiled. Prints wall and processor seconds, the latter of all threads,
and those of `lgm --help`. A machine that does other work meanwhile takes longer, mostly in wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIGS = ("configs/quickstart.py", "configs/quickstart_unet.py")
WAIT = 0.05  # seconds between looks for the row


def timed(words: list[str], done, cache: str) -> tuple[float, float]:
    """(wall seconds, processor seconds) of `lgm WORDS` until `done()` or its own end."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    start = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, "-m", "lgm.cli", *words], env=environment, stdout=said, stderr=said)
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and not done():
            time.sleep(WAIT)
        wall, finished = time.monotonic() - start, done()
        os.kill(process.pid, signal.SIGKILL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        if process.returncode and not finished:
            raise SystemExit(f"lgm {' '.join(words)} ended with {process.returncode}: {said.read().decode()[-2000:]}")
    return wall, used.ru_utime + used.ru_stime


def first_step(config: str, folder: Path, cache: str) -> tuple[float, float]:
    """`timed` of a run's start, up to the row of its first step."""
    rows = folder / "metrics.jsonl"
    words = ["train", f"--config={config}", f"--workdir={folder}", "--config.log.every_images=1"]
    return timed(words, lambda: rows.exists() and '"grad_norm"' in rows.read_text(), cache)


def main() -> None:
    """Measure all that is asked for, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", nargs="+", default=CONFIGS)
    parser.add_argument("--json", help="a file to write")
    given = parser.parse_args()
    found = {}

    def tell(name: str, seconds: tuple[float, float]) -> None:
        found[name] = dict(zip(("wall_s", "processor_s"), seconds, strict=True))
        print(f"{name:32}{seconds[0]:8.2f}{seconds[1]:8.2f}", flush=True)

    print(f"{'':32}{'wall s':>8}{'CPU s':>8}")
    with tempfile.TemporaryDirectory() as name:
        tell("lgm --help", timed(["--help"], lambda: False, name))
        for config in given.config:
            stem = Path(config).stem
            cache = str(Path(name) / f"{stem}-cache")
            for kind in ("cold", "warm"):
                tell(f"{stem}, {kind}", first_step(config, Path(name) / f"{stem}-{kind}", cache))
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
