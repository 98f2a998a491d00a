"""A compiled program's counts, read from its text, against JAX's own programs and closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm.models.flops import count_flops
from lgm.parallel.chips import CHIPS
from lgm.planning import hlo
from lgm.planning.cost import cost_of
from lgm.planning.network import nodes

f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)


def compiled(fn, *arguments) -> str:
    return jax.jit(fn).lower(*arguments).compile().as_text()


def flops_of(text: str) -> float:
    chip = CHIPS["h100"]
    return cost_of(hlo.parse(text), chip, nodes(chip, 1, 1), ()).flops


def scanned(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].sum()


def nested(x, weights):
    return jax.lax.scan(lambda x, _: (scanned_body(x, weights), None), x, None, length=3)[0]


def scanned_body(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


@pytest.mark.parametrize(("fn", "shapes"), [
    (lambda a, b: a @ b, ((96, 64), (64, 160))),
    (lambda a, b: jnp.einsum("bij,bkj->bik", a, b), ((4, 48, 32), (4, 40, 32))),
    (scanned, ((64, 64), (5, 64, 64))),
    (jax.grad(scanned, argnums=(0, 1)), ((64, 64), (5, 64, 64))),
    (nested, ((32, 32), (5, 32, 32))),
])
def test_work_of_compiled_programs_is_that_of_the_traced_ones_loops_included(fn, shapes):
    arguments = [f32(*shape) for shape in shapes]
    assert flops_of(compiled(fn, *arguments)) == count_flops(fn, *arguments)


def line(opcode: str, result: str, *operands: str, **attributes: str) -> str:
    given = "\n".join(f"  %p{i} = {shape}{{0}} parameter({i})" for i, shape in enumerate(operands))
    names = ", ".join(f"%p{i}" for i in range(len(operands)))
    rest = "".join(f", {key}={value}" for key, value in attributes.items())
    body = f"{given}\n  ROOT %r = {result} {opcode}({names}){rest}\n"
    return f"HloModule m\n\nENTRY %main (p0: f32[]) -> f32[] {{\n{body}}}\n"


def test_a_convolution_counts_its_taps_on_values_and_none_on_padding_or_between_dilated_values():
    work = lambda *a, **k: flops_of(line("convolution", *a, dim_labels="b01f_01io->b01f", **k))
    # 3 x 3 over 8 x 8: of 3 x 8 taps a row, the outer two miss
    same = work("f32[2,8,8,5]", "f32[2,8,8,4]", "f32[3,3,4,5]", window="{size=3x3 pad=1_1x1_1}")
    assert same == 2 * 2 * 5 * 4 * (3 * 8 - 2) ** 2
    strided = work("f32[2,4,4,5]", "f32[2,8,8,4]", "f32[2,2,4,5]", window="{size=2x2 stride=2x2}")
    assert strided == 2 * 2 * 16 * 5 * 4 * 4
    # what TPUs make of a batched product: the batch is a dilated dimension whose taps meet one value each
    batched = line("convolution", "f32[6,16,24]", "f32[6,16,32]", "f32[6,24,32]", dim_labels="0bf_0oi->0bf",
                   window="{size=6 stride=5 pad=0_0 lhs_dilate=6}")
    assert flops_of(batched) == 2 * 6 * 16 * 24 * 32


@pytest.mark.parametrize(("attributes", "group", "groups"), [
    ("replica_groups={{0,2},{1,3}}, x", [0, 2], 2),
    ("replica_groups=[2,4]<=[8], x", [0, 1, 2, 3], 2),
    ("replica_groups=[4,2]<=[2,4]T(1,0), x", [0, 4], 4),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, x", [0, 1], 4),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, x", [0, 2, 4, 6], 2),
    ("replica_groups=mesh['a'=8,'b'=2] {'a':(2)2}, x", [0, 4], 8),
    ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]], 2),
    ("channel_id=1", None, None),
])
def test_groups_of_devices(attributes, group, groups):
    found = hlo.devices_joined(attributes)
    if group is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found[0], group)
        assert found[1] == groups


LOOP = """HloModule m, is_scheduled=true

%body (s: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %s = (s32[], bf16[8,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = bf16[8,128]{1,0} get-tuple-element(%s), index=1
  %g = (bf16[8,128]{1,0}, bf16[32,128]{1,0}) all-gather-start(%x), replica_groups=[1,4]<=[4], dimensions={0}
  %work = bf16[8,128]{1,0} fusion(%x), kind=kLoop, calls=%f, backend_config={"window_config":{"estimated_cycles":"700"}}
  %d = bf16[32,128]{1,0} all-gather-done(%g)
  %r = bf16[8,128]{1,0} all-reduce(%work), replica_groups={{0,1,2,3}}, to_apply=%f, frontend_attributes={kernel={
"multi":"line
}}
  ROOT %t = (s32[], bf16[8,128]{1,0}) tuple(%i, %r)
}

%cond (s: (s32[], bf16[8,128])) -> pred[] {
  %limit = s32[] constant(10)
  %s = (s32[], bf16[8,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%f (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  ROOT %n = bf16[8,128]{1,0} negate(%a)
}

ENTRY %main (p: bf16[8,128]) -> (s32[], bf16[8,128]) {
  %p = bf16[8,128]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[8,128]{1,0}) tuple(%zero, %p)
  ROOT %w = (s32[], bf16[8,128]{1,0}) while(%start), condition=%cond, body=%body
}
"""


def test_a_schedule_runs_loops_through_and_started_collectives_beside_what_follows():
    chip = dataclasses.replace(CHIPS["h100"], clock=1e9, link=1e9, links=1)
    cost = cost_of(hlo.parse(LOOP), chip, nodes(chip, 1, 4), ())
    by_kind = {c.kind: c for c in cost.collectives}
    size = 8 * 128 * 2
    assert (by_kind["all-gather"].count, by_kind["all-gather"].bytes) == (10, 10 * 3 * size)
    assert (by_kind["all-reduce"].count, by_kind["all-reduce"].bytes) == (10, 10 * 2 * 3 / 4 * size)
    gather, work, reduce = 3 * size / 1e9, 700e-9, 1.5 * size / 1e9
    assert gather > work  # so that the gather hides the work, and the sum is waited for
    assert cost.step == pytest.approx(10 * (gather + reduce))
    assert cost.busy == pytest.approx(10 * work)


FUSED = """HloModule m, is_scheduled=true

%start (a: bf16[8,128]) -> bf16[32,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  ROOT %g = bf16[32,128]{1,0} all-gather(%a), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

%step (b: bf16[8,128]) -> bf16[32,128] {
  %b = bf16[8,128]{1,0} parameter(0)
  ROOT %h = bf16[32,128]{1,0} all-gather(%b), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

ENTRY %main (p: bf16[8,128]) -> bf16[32,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  %s = bf16[32,128]{1,0} fusion(%p), kind=kCustom, calls=%start, backend_config={"estimated_cycles":"100"}
  %w = bf16[32,128]{1,0} fusion(%p), kind=kCustom, calls=%step, backend_config={"estimated_cycles":"500"}
  ROOT %d = bf16[32,128]{1,0} fusion(%p), kind=kCustom, calls=%step, backend_config={"estimated_cycles":"200"}
}
"""


def test_a_collective_that_several_fusions_carry_is_one_and_runs_beside_them():
    chip = dataclasses.replace(CHIPS["h100"], clock=1e9, link=1e9, links=1)
    cost = cost_of(hlo.parse(FUSED), chip, nodes(chip, 1, 4), ())
    (gather,) = cost.collectives
    assert (gather.count, gather.bytes) == (1, 3 * 2048)
    assert cost.busy == pytest.approx(800e-9) and cost.step == pytest.approx(3 * 2048 / 1e9)


BETWEEN = """HloModule m, is_scheduled=true

%step (b: f32[8,128]) -> f32[8,128] {
  %b = f32[8,128]{1,0} parameter(0)
  ROOT %n = f32[8,128]{1,0} negate(%b)
}

ENTRY %main (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0} parameter(0)
  %t = token[] after-all()
  %r = (f32[8,128]{1,0}, u32[], token[]) recv(%t), channel_id=1, is_host_transfer=true, frontend_attributes={TOLD}
  %s = (f32[8,128]{1,0}, u32[], token[]) send(%p, %t), channel_id=2, is_host_transfer=true, frontend_attributes={TOLD}
  %w = f32[8,128]{1,0} fusion(%p), kind=kLoop, calls=%step, backend_config={"estimated_cycles":"1000"}
  %e = token[] send-done(%s), channel_id=2, is_host_transfer=true
  %d = (f32[8,128]{1,0}, token[]) recv-done(%r), channel_id=1, is_host_transfer=true
  ROOT %g = f32[8,128]{1,0} get-tuple-element(%d), index=0
}
"""


@pytest.mark.parametrize(("target", "slices"), [('"{1,2,3,4}x{0:3}"', 4), ("{{100000,300000},{200000,400000}}", 2)])
@pytest.mark.parametrize(("kind", "share"), [
    ("ALL_REDUCE", lambda n: 2 * (n - 1) / n), ("ALL_GATHER", lambda n: n - 1),
    ("REDUCE_SCATTER", lambda n: (n - 1) / n),
])  # fmt: skip
def test_what_is_sent_between_slices_is_a_collective_that_runs_beside_the_rest(target, slices, kind, share):
    told = (f'_xla_host_transfer_rendezvous="x_0",_xla_megascale_target={target},'
            f'_xla_megascale_transfer_type="{kind}"')  # fmt: skip
    chip = dataclasses.replace(CHIPS["h100"], clock=1e9, dcn=1e9)
    for dcn in (1e9, 1e11):  # slower and faster than the work beside it
        cost = cost_of(hlo.parse(BETWEEN.replace("TOLD", told)), dataclasses.replace(chip, dcn=dcn),
                       nodes(dataclasses.replace(chip, dcn=dcn), 1, 4), ())
        (found,) = cost.collectives
        assert (found.kind, found.network, found.count) == (kind.lower().replace("_", "-"), "dcn", 1)
        assert found.bytes == pytest.approx(share(slices) * 8 * 128 * 4)
        assert cost.busy == pytest.approx(1000e-9) and cost.step == pytest.approx(max(1000e-9, found.bytes / dcn))


UNROLLED = """HloModule m, is_scheduled=true

%cond (t: (f32[8], u32[])) -> pred[] {
  %t = (f32[8]{0}, u32[]) parameter(0)
  %n = u32[] get-tuple-element(%t), index=1
  %limit = u32[] constant(8)
  ROOT %less = pred[] compare(%n, %limit), direction=LT
}

%body (t: (f32[8], u32[])) -> (f32[8], u32[]) {
  %t = (f32[8]{0}, u32[]) parameter(0)
  %x = f32[8]{0} get-tuple-element(%t), index=0
  %n = u32[] get-tuple-element(%t), index=1
  %two = u32[] constant(2)
  %m = u32[] add(%n, %two)
  ROOT %r = (f32[8]{0}, u32[]) tuple(%x, %m)
}

ENTRY %main (p: (f32[8], u32[])) -> (f32[8], u32[]) {
  %p = (f32[8]{0}, u32[]) parameter(0)
  ROOT %w = (f32[8]{0}, u32[]) while(%p), condition=%cond, body=%body
}
"""


@pytest.mark.parametrize(("step", "trips"), [(1, 8), (2, 4), (3, 3)])
def test_an_unrolled_loop_runs_as_often_as_its_counter_steps(step, trips):
    module = hlo.parse(UNROLLED.replace("constant(2)", f"constant({step})"))
    (loop,) = (i for i in module.computations["main"].instructions if i.opcode == "while")
    assert module.trips(loop) == trips
