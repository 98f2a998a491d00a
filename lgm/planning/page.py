"""A plan for people and for programs: tables and JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lgm.parallel.chips import CHIPS
from lgm.planning.plan import KINDS, Plan


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything a plan knows, with what is derived."""
    return dataclasses.asdict(plan) | {
        "memory": dataclasses.asdict(plan.memory) | {"total": plan.memory.total},
        "roofline": plan.roofline, "ici_bytes": plan.moved("ici"), "dcn_bytes": plan.moved("dcn"),
        "peaks": dataclasses.asdict(CHIPS[plan.chip]),
    }


def page(plan: Plan) -> str:
    """The plan as a page of text."""
    per_chip, chip = plan.batch_size / plan.chips, CHIPS[plan.chip]
    group = "slice" if chip.clock else "node"
    lines = [
        f"{plan.name} on {plan.topology} ({plan.chips} chips): {verdict(plan)}",
        f"mesh {mesh(plan)}, remat {plan.remat}, batch {plan.batch_size} ({per_chip:.4g} images a chip)",
        "",
        "memory a chip      GB",
        *(f"  {kind:<14}{getattr(plan.memory, kind) / 1e9:7.2f}" for kind in KINDS),
        f"  {'total':<14}{plan.memory.total / 1e9:7.2f} of {plan.memory.capacity / 1e9:.1f}",
    ]
    if plan.step:
        lines += [
            "",
            f"a step             {plan.step * 1e3:.4g} ms as scheduled, {plan.busy * 1e3:.4g} of them computing",
            f"  rate             {plan.images_per_second:.4g} images/s, {plan.images_per_second / plan.chips:.4g} each",
            f"  MFU              {plan.mfu:.1%} ({plan.model_flops / 1e12:.4g} TFLOP a chip by the model's count)",
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
            f"compiled in {plan.compile_seconds:.0f} s for {plan.compiled_for}",
        ]
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def ranking(plans: Sequence[Plan]) -> str:
    """Plans of one search as a table, the best first."""
    rows = [("mesh", "remat", "GB a chip", "step ms", "MFU", "ICI GB", "DCN GB")]
    for p in plans:
        speed = (f"{p.step * 1e3:.4g}", f"{p.mfu:.1%}") if p.fits else ("does not fit", "")
        moved = (f"{p.moved('ici') / 1e9:.3g}", f"{p.moved('dcn') / 1e9:.3g}") if p.step else ("", "")
        memory = f"{p.memory.total / 1e9:.1f} of {p.memory.capacity / 1e9:.1f}"
        rows.append((mesh(p), p.remat, memory, *speed, *moved))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def verdict(plan: Plan) -> str:
    """Whether it fits, and how closely."""
    if plan.fits:
        return f"fits, {plan.memory.total / 1e9:.1f} GB a chip of {plan.memory.capacity / 1e9:.1f}"
    return f"does not fit: {plan.reason}"


def mesh(plan: Plan) -> str:
    """The mesh in words."""
    return " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items()) or "of one device"
