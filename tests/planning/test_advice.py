"""What a plan that does not fit suggests: the arithmetic of memory, in one line that names a key or a slice."""

import dataclasses
import math
from pathlib import Path

import pytest

from lgm import config as schema
from lgm.planning import read_topology
from lgm.planning.advice import ROOM, advice, smallest
from lgm.planning.plan import Memory, reason
from lgm.planning.search import candidates, search

POD = str(Path(__file__).resolve().parents[2] / "configs" / "pod.py")
GB = 1e9


def config(system="flux_dev", **changes):
    return schema.load(f"{POD}:{system}", [(key.replace("__", "."), str(value)) for key, value in changes.items()])


def test_a_state_too_large_is_split_further_or_wants_the_smallest_slice_that_holds_it():
    v5p = read_topology("v5p:4x4x8")
    line = advice(config(mesh__fsdp=2), v5p, 95 * GB, 0.01 * GB, 0.0, v5p.chip.hbm)
    assert "95.0 GB" in line and "config.mesh.fsdp=4 " in line and "data=32" in line
    assert 95 * 2 / 4 < ROOM * v5p.chip.hbm / GB < 95
    v5e = read_topology("v5e:2x2")
    line = advice(config(mesh__fsdp=4), v5e, 47.6 * GB, 0.01 * GB, 0.0, v5e.chip.hbm)  # 190 GB: 13 chips, if full
    assert "v5e:4x4" in line


def test_activations_too_large_are_recomputed_then_accumulated_then_split():
    v5e = read_topology("v5e:4x4")
    told = lambda config, rest, batch=0.01: advice(config, v5e, 4 * GB, batch * GB, rest * GB, v5e.chip.hbm)
    sd3 = config("sd3_medium", batch_size=64)
    kept = dataclasses.replace(sd3, model=dataclasses.replace(sd3.model, remat="dots"))
    assert "config.model.remat='full'" in told(kept, 40)
    assert "config.accumulate=4 " in told(sd3, 40)  # 40 / (0.95 x 17.2 - 4) is 3.3, of four images a device
    assert "config.mesh.context=2 " in told(config("sd3_medium", batch_size=16), 40)
    assert "v5e:" in told(config("sd3_medium", batch_size=16), 400)
    assert "a config.batch_size of 32 " in told(sd3, 0, batch=20)  # 20 GB for 64: 10 GB fit beside 4


@pytest.mark.parametrize(("topology", "chips", "name"), [
    ("v5e:1x1", 3, "v5e:2x2"), ("v5e:4x4", 17, "v5e:4x8"), ("v6e:16x16", 257, "v6e:16x16 with --slices=2"),
    ("v5p:2x2x1", 4, "v5p:2x2x1"), ("v5p:2x2x1", 33, "v5p:4x4x4"), ("v5p:4x4x8", 1025, "v5p:8x16x16"),
    ("v4:2x2x1", 5000, "v4:16x16x16 with --slices=2"), ("h100:2x8", 17, "h100:3x8"),
])  # fmt: skip
def test_the_smallest_slice_has_enough_chips_and_half_of_it_has_not(topology, chips, name):
    assert smallest(read_topology(topology), chips) == name
    spec, _, slices = name.partition(" with --slices=")
    found = read_topology(spec, int(slices or 1))
    assert found.chips >= chips and (slices or found.gpu or found.chips / 2 < chips)


def test_a_reason_says_at_least_where_nothing_was_compiled():
    topology = read_topology("v5e:2x2")
    memory = Memory(16 * GB, 32 * GB, 16 * GB, 1 * GB, 0.0, 0.0, 0.0, topology.chip.hbm)
    line = reason(config(mesh__fsdp=4), topology, memory)
    assert line.startswith("flux_dev needs at least 65.0 GB a chip of the 17.2 GB of v5e:2x2; ")
    assert "needs 70.0 GB" in reason(config(mesh__fsdp=4), topology, dataclasses.replace(memory, temporaries=5 * GB))


@pytest.mark.libtpu
def test_a_search_does_not_compile_what_no_mesh_holds():
    topology = read_topology("v5e:2x4")
    least = min(c.state for c in candidates(config(mesh__fsdp=-1, mesh__data=1), topology))
    assert least == pytest.approx(16 * 11_901_408_320 / 8)
    with pytest.raises(schema.ConfigError, match=r"v5e:2x4 cannot hold flux_dev: .* 23\.8 GB .* is v5e:4x4$"):
        search(config(), topology)
    assert math.ceil(8 * least / (ROOM * topology.chip.hbm)) == 14
