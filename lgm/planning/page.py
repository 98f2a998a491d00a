"""A plan for people and for programs: tables and JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lgm.parallel.chips import CHIPS
from lgm.planning.measured import MEASURED, apart
from lgm.planning.plan import KINDS, Plan, between


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything a plan knows, with what is derived."""
    return dataclasses.asdict(plan) | {
        "memory": dataclasses.asdict(plan.memory) | {"total": plan.memory.total},
        "step": plan.step, "roofline": plan.roofline, "ici_bytes": plan.moved("ici"), "dcn_bytes": plan.moved("dcn"),
        "peaks": dataclasses.asdict(CHIPS[plan.chip]),
        "measured": [dataclasses.asdict(m) for m in MEASURED],
    }


def page(plan: Plan) -> str:
    """The plan as a page of text."""
    per_chip, chip = plan.batch_size / plan.chips, CHIPS[plan.chip]
    group = "slice" if chip.clock else "node"
    lines = [
        f"{plan.name} on {plan.topology} ({plan.chips} chips): {verdict(plan)}",
        f"mesh {mesh(plan)}, remat {plan.remat}, batch {plan.batch_size} ({per_chip:.4g} images a chip"
        + (f", in {plan.accumulate} pieces)" if plan.accumulate > 1 else ")"),
        "",
        "memory a chip      GB",
        *(f"  {kind:<14}{getattr(plan.memory, kind) / 1e9:7.2f}" for kind in KINDS),
        f"  {'total':<14}{plan.memory.total / 1e9:7.2f} of {plan.memory.capacity / 1e9:.1f}",
    ]
    if plan.times:
        fast, slow = plan.times[0], plan.times[-1]
        rates = between(slow.images_per_second, fast.images_per_second)
        each = between(slow.images_per_second / plan.chips, fast.images_per_second / plan.chips)
        lines += [
            "",
            f"a step             {between(fast.step * 1e3, slow.step * 1e3)} ms, of them "
            f"{between(fast.busy * 1e3, slow.busy * 1e3)} computing",
            *_meters(plan),
            f"  rate             {rates} images/s, {each} each",
            f"  MFU              {mfu(plan)} ({plan.model_flops / 1e12:.4g} TFLOP a chip by the model's count)",
            f"  roofline         {plan.roofline * 1e3:.4g} ms: " + ", ".join(
                f"{name} {seconds * 1e3:.4g}" for name, seconds in plan.bounds.items()),
            f"  work             {plan.flops / 1e12:.4g} TFLOP and {plan.bytes / 1e9:.4g} GB of memory traffic a chip",
            "",
            "collectives a chip          runs        GB        ms",
            *(f"  {c.kind:<19} {c.network}{c.count:8d}{c.bytes / 1e9:10.4g}{c.seconds * 1e3:10.4g}"
              for c in plan.collectives),
            f"  one way, a chip: {chip.ici / 1e9:.4g} GB/s over all links of a {group}, {chip.dcn / 1e9:.4g} GB/s "
            f"between {group}s ({chip.source})",
            "",
            f"compiled in {plan.compile_seconds:.0f} s for {plan.compiled_for}"
            + "".join(f", {name}={value}" for name, value in plan.options.items()),
        ]
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def _meters(plan: Plan) -> list[str]:
    """What each end of the range is, and of TPUs how far programs that were measured were from it."""
    peak, cycles = (timed and f"{timed.step * 1e3:.4g} ms" for timed in (plan.peak, plan.cycles))
    if not CHIPS[plan.chip].clock:
        own = f"    by the compiler  {cycles} by its own costs of products and fusions; attention as by peaks"
        return [f"    by peaks         {peak}", *([own] if cycles else [])]
    told = lambda meter: "{:.2f} to {:.2f} of this".format(*apart(meter))
    chips = " and ".join(sorted({m.chip for m in MEASURED}))
    lines = [f"    by peaks         {peak}; what was measured on {chips} took {told(lambda m: m.peak)}"]
    if cycles:
        lines.append(f"    by cycles        {cycles} of the finished program; {told(lambda m: m.cycles)}")
    return lines


def mfu(plan: Plan) -> str:
    """The range of MFU."""
    return between(plan.times[-1].mfu, plan.times[0].mfu, ".1%")


def milliseconds(plan: Plan) -> str:
    """The range of the step."""
    return f"{between(plan.times[0].step * 1e3, plan.times[-1].step * 1e3)} ms"


def ranking(plans: Sequence[Plan]) -> str:
    """Plans of one search as a table, the best first."""
    rows = [("mesh", "remat", "pieces", "group", "GB a chip", "step", "MFU", "ICI GB", "DCN GB")]
    for p in plans:
        speed = (milliseconds(p), mfu(p)) if p.fits else (verdict(p).split(":")[0], "")
        moved = (f"{p.moved('ici') / 1e9:.3g}", f"{p.moved('dcn') / 1e9:.3g}") if p.times else ("", "")
        memory = f"{p.memory.total / 1e9:.1f} of {p.memory.capacity / 1e9:.1f}"
        rows.append((mesh(p), p.remat, str(p.accumulate), str(p.group), memory, *speed, *moved))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def verdict(plan: Plan) -> str:
    """Whether it fits, and how closely."""
    if plan.fits:
        return f"fits, {plan.memory.total / 1e9:.1f} GB a chip of {plan.memory.capacity / 1e9:.1f}"
    return f"{'does not run' if plan.peak and plan.memory.holds else 'does not fit'}: {plan.reason}"


def mesh(plan: Plan) -> str:
    """The mesh in words."""
    return " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items()) or "of one device"
