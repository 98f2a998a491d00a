"""A row of the README's plans compiled to its end from two commits, by both meters, and by what a step does.

    python tools/before_after.py --row=sd3_medium --before=main~3
    python tools/before_after.py --row=sd3_medium --before=main~3 --config.data.cache=cache   # text and latents read

The row's mesh and remat policy are those that `tools/plan_pods.py` tries first, or --choice=N. Both programs are timed
by their own commit's meters; where a commit changed these, say so beside the figures. Prints a Markdown table and
writes it with --out. A program takes two to ten minutes of a core, none of them needs a TPU.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("products", "attention kernels", "reductions", "other fusions", "copies and slices", "rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--row", required=True, help="of tools/plan_pods.py")
    parser.add_argument("--before", help="commit to compare with; without it this tree's program alone")
    parser.add_argument("--choice", type=int, default=0, help="which of the row's meshes and remat policies")
    parser.add_argument("--out", type=Path, help="file for the table")
    parser.add_argument("--as-json", action="store_true", help="one program, as JSON")
    given, rest = parser.parse_known_args()
    if bad := [flag for flag in rest if not (flag.startswith("--config.") and "=" in flag)]:
        parser.error(f"{bad[0]}: give changes of the config as --config.KEY=VALUE")
    changes = [tuple(flag.removeprefix("--config.").split("=", 1)) for flag in rest]
    if given.as_json:
        print(json.dumps(measured(given.row, given.choice, changes)))
        return
    found = {"now": program(ROOT, given, rest)}
    if given.before:
        with tempfile.TemporaryDirectory(prefix="before-") as name:
            subprocess.run(["git", "-C", ROOT, "worktree", "add", "-q", "--detach", name, given.before], check=True)
            try:
                found = {given.before: program(Path(name), given, rest)} | found
            finally:
                subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", name], check=True)
    text = table(found)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


def program(tree: Path, given: argparse.Namespace, rest: list[str]) -> dict:
    """What `measured` says in a process that imports lgm from `tree`."""
    command = [sys.executable, __file__, f"--row={given.row}", f"--choice={given.choice}", "--as-json", *rest]
    environment = os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(name: str, choice: int, changes: list[tuple[str, str]]) -> dict:
    """A row's program: GB a chip, and of each meter seconds of the step and of what it does."""
    from plan_pods import ROWS, config_of

    from lgm.planning.plan import compiled_plan

    row = ROWS[name]
    plan, traced, made = compiled_plan(config_of(row, row.machine, row.tried[choice], changes), row.machine)
    found = {"chips": str(row.machine), "gigabytes": plan.memory.total / 1e9, "options": plan.options,
             "reason": plan.reason, "bytes": plan.bytes, "meters": {}}  # fmt: skip
    for meter, timed, module in (("peaks", plan.peak, made and made.module), ("cycles", plan.cycles,
                                                                            made and made.finished)):  # fmt: skip
        if timed and module:
            spent = by_kind(module, row.machine.chip.share, traced.network, traced.kernels)
            found["meters"][meter] = {"step": timed.step, "mfu": timed.mfu, "busy": timed.busy, "kinds": spent}
    return found


def by_kind(module, *how) -> dict[str, float]:
    """Seconds of computing in a program by `kind`; the rest are arguments of `lgm.planning.cost.cost_of`."""
    from lgm.planning import cost

    kinds = collections.Counter(dict.fromkeys(KINDS, 0.0))
    compute = cost._Tally._compute

    def counted(self, i, computation, times):
        seconds = compute(self, i, computation, times)
        kinds[kind(i, self)] += times * seconds
        return seconds

    cost._Tally._compute = counted
    try:
        cost.cost_of(module, *how)
    finally:
        cost._Tally._compute = compute
    return kinds


def kind(i, tally) -> str:
    """What an instruction does, one of `KINDS`."""
    if i.opcode in ("dot", "convolution"):
        return "products"
    if i.opcode == "custom-call":
        return "attention kernels" if "tpu_custom_call" in i.attributes else "rest"
    if i.opcode in ("copy", "slice", "concatenate", "pad", "transpose", "dynamic-slice", "dynamic-update-slice"):
        return "copies and slices"
    if i.opcode == "reduce":
        return "reductions"
    if i.opcode != "fusion":
        return "rest"
    if tally._inside(i.call("calls"))[0]:
        return "products"
    inside = {j.opcode for j in tally.module.computations[i.call("calls")].instructions}
    return "reductions" if "reduce" in inside else "other fusions"


def table(found: dict[str, dict]) -> str:
    """Programs beside each other as Markdown."""
    columns = [(name, meter) for name in found for meter in found[name]["meters"]]
    lines = ["| ms | " + " | ".join(f"{name}, by {meter}" for name, meter in columns) + " |",
             "|---" * (len(columns) + 1) + "|"]  # fmt: skip
    line = lambda title, cell: lines.append(f"| {title} | " + " | ".join(cell(*column) for column in columns) + " |")
    of = lambda name, meter: found[name]["meters"][meter]
    line("**step**", lambda *c: f"**{of(*c)['step'] * 1e3:,.0f}** ({of(*c)['mfu']:.1%} MFU)")
    line("computing", lambda *c: f"{of(*c)['busy'] * 1e3:,.0f}")
    for name in KINDS:
        line(name, lambda *c, name=name: f"{of(*c)['kinds'][name] * 1e3:,.0f}")
    line("GB a chip", lambda name, _: f"{found[name]['gigabytes']:.1f}")
    failed = [f"{name}: {p['reason']}" for name, p in found.items() if p["reason"]]
    return "\n".join([*lines, *failed])


if __name__ == "__main__":
    main()
