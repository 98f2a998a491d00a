"""How long `lgm fit` takes, whole commands from start to exit, and how much memory, for tables of 72 to 200,000 rows.

    python tools/bench_fit.py [--rows=72,1000,5000,200000] [--draws=1000]

The tables are drawn from the law of 2203.15556 with 1% of noise: grids of sizes and data, and, for 200,000 rows, the
learning curves of 300 runs. A line is a table: seconds on the clock, of all cores' time, and the largest memory. What
is expected on 2 free cores: 72 rows within 5 s, 5,000 within 20 s, 200,000 within 60 s and 2 GB.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lgm.scaling import coverage, laws

LAW = laws.theta(406.4, 410.7, 1.69, 0.34, 0.28)
CURVES = 300
AS_CURVES = 20_000  # rows from which a table is one of learning curves


def table(path: Path, rows: int) -> None:
    random = np.random.default_rng(0)
    if rows < AS_CURVES:
        sizes = max(int(np.sqrt(rows)), 8)
        n, d = coverage.grid_plan(np.geomspace(5e7, 1.6e10, sizes), np.geomspace(1e9, 3e11, -(-rows // sizes)))
        n, d, run = n[:rows], d[:rows], np.arange(rows)
        noise = 0.01 * random.standard_normal(rows)
    else:
        run = np.repeat(np.arange(CURVES), rows // CURVES)
        n = np.geomspace(5e7, 1.6e10, CURVES)[run]
        d = np.geomspace(1e9, 3e11, rows // CURVES)[np.arange(len(run)) % (rows // CURVES)]
        noise = (0.01 * random.standard_normal(CURVES))[run] + 0.01 * random.standard_normal(len(run))
    loss = laws.loss(LAW, n, d) * np.exp(noise)
    with path.open("w") as file:
        file.write("run,params,tokens,loss\n")
        file.writelines(f"{a},{b:.6g},{c:.6g},{e:.5f}\n" for a, b, c, e in zip(run, n, d, loss, strict=True))


def measure(rows: int, draws: int) -> tuple[float, float, float, str]:
    """Seconds on the clock, of all cores, GB and the command's line about the law."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        table(path, rows)
        command = [sys.executable, "-m", "lgm.cli", "fit", f"--data={path}", f"--out={folder}/fit", f"--draws={draws}"]
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    line = next((line for line in said.splitlines() if "huber" in line.lower()), "").strip()
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6, line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="72,1000,5000,200000")
    parser.add_argument("--draws", type=int, default=1000)
    arguments = parser.parse_args()
    print(f"{'rows':>8} {'seconds':>8} {'of cores':>8} {'GB':>5}")
    for rows in map(int, arguments.rows.split(",")):
        seconds, used, memory, line = measure(rows, arguments.draws)
        print(f"{rows:8,} {seconds:8.1f} {used:8.1f} {memory:5.2f}  {line}", flush=True)


if __name__ == "__main__":
    main()
