"""Times of collectives against closed forms (Chan et al. 2007)."""

import dataclasses

import numpy as np
import pytest

from lgm.parallel.chips import CHIPS
from lgm.planning.network import nodes, torus
from lgm.planning.scaling import Resized, resized


@dataclasses.dataclass(frozen=True)
class Device:
    coords: tuple
    slice_index: int = 0


def grid(*sides, slices=1):
    return [Device(place, s) for s in range(slices) for place in np.ndindex(*sides)]


def all_to_one(text: str) -> str:
    return f"replica_groups={text}"


ALL16, ROWS, MIB = "[1,16]<=[16]", "[4,4]<=[16]", 2.0**20


def test_gathers_take_what_is_missing_over_the_links_that_lead_there():
    chip = CHIPS["v5e"]
    network = torus(chip, grid(4, 4))  # no side of 16, so lines: one link of each dimension
    [(over, moved, seconds)] = network.collective("all-gather", MIB, 16 * MIB, all_to_one(ALL16))
    assert (over, moved) == ("ici", 15 * MIB) and seconds == pytest.approx(15 * MIB / (2 * chip.link))
    [(_, moved, seconds)] = network.collective("reduce-scatter", 4 * MIB, MIB, all_to_one(ROWS))
    assert moved == 3 * MIB and seconds == pytest.approx(3 * MIB / chip.link)
    [(_, moved, _)] = network.collective("all-reduce", 4 * MIB, 4 * MIB, all_to_one(ROWS))
    assert moved == 2 * 3 * MIB


def test_a_whole_side_of_a_pod_is_a_ring():
    pod, part = torus(CHIPS["v5e"], grid(16, 16)), torus(CHIPS["v5e"], grid(8, 16))
    along = all_to_one("[16,16]<=[256]")
    (_, _, ring), = pod.collective("all-gather", MIB, 16 * MIB, along)
    (_, _, line), = part.collective("all-gather", MIB, 8 * MIB, all_to_one("[16,8]<=[8,16]T(1,0)"))
    assert ring == pytest.approx(15 * MIB / (2 * CHIPS["v5e"].link))
    assert line == pytest.approx(7 * MIB / CHIPS["v5e"].link)
    cube = torus(CHIPS["v5p"], grid(4, 4, 4))
    (_, _, seconds), = cube.collective("all-gather", MIB, 64 * MIB, all_to_one("[1,64]<=[64]"))
    assert seconds == pytest.approx(63 * MIB / (6 * CHIPS["v5p"].link))


def test_between_slices_every_chip_carries_its_share():
    chip = CHIPS["v6e"]
    network = torus(chip, grid(2, 2, slices=2))
    rows = dict((over, (moved, seconds)) for over, moved, seconds in
                network.collective("all-reduce", 8 * MIB, 8 * MIB, all_to_one("[1,8]<=[8]")))
    assert rows["ici"][0] == 2 * 8 * MIB * 3 / 4
    assert rows["dcn"] == (2 * 8 * MIB / 2 / 4, pytest.approx(2 * 8 * MIB / 2 / 4 / chip.dcn))
    [(over, moved, _)] = network.collective("all-reduce", MIB, MIB, all_to_one("[4,2]<=[2,4]T(1,0)"))
    assert (over, moved) == ("dcn", MIB)
    [(over, _, _)] = network.collective("collective-permute", MIB, MIB, "source_target_pairs={{0,4},{4,0}}")
    assert over == "dcn"


def test_gpus_of_a_node_share_a_switch():
    chip = CHIPS["h100"]
    [(over, moved, seconds)] = nodes(chip, 2, 8).collective("all-gather", MIB, 8 * MIB, all_to_one("[2,8]<=[16]"))
    assert (over, moved) == ("ici", 7 * MIB) and seconds == pytest.approx(7 * MIB / 450e9)


def test_on_more_chips_only_groups_along_data_grow_and_what_is_gathered_stays_as_large():
    assert resized({"data": 2, "fsdp": 8}, 64) == {"data": 8, "fsdp": 8}
    assert resized({"data": 2, "fsdp": 8, "tensor": 2}, 8) == {"data": 1, "fsdp": 4, "tensor": 2}
    sizes = (2, 8, 1, 1, 1)  # data, fsdp, context, tensor, stage
    compiled = torus(CHIPS["v5e"], grid(4, 4))
    along_fsdp, along_data = all_to_one("[2,8]<=[16]"), all_to_one("[8,2]<=[2,8]T(1,0)")
    larger = Resized(sizes, (8, 8, 1, 1, 1), torus(CHIPS["v5e"], grid(8, 8)))
    moved = lambda network, kind, given, made, group: network.collective(kind, given, made, group)[0][1]
    for network in (compiled, larger):
        assert moved(network, "all-gather", MIB, 8 * MIB, along_fsdp) == 7 * MIB
    assert moved(compiled, "all-reduce", MIB, MIB, along_data) == 2 * MIB / 2
    assert moved(larger, "all-reduce", MIB, MIB, along_data) == 2 * MIB * 7 / 8
    fewer = Resized(sizes, (1, 4, 1, 1, 1), torus(CHIPS["v5e"], grid(2, 2)))
    assert moved(fewer, "all-gather", MIB, 8 * MIB, along_fsdp) == 8 * MIB * 3 / 4
    assert fewer.collective("all-reduce", MIB, MIB, along_data) == []
