"""One program on every mesh: loss, gradients and parameters of 8 devices are those of one, and each form of parallelism
sends what it should and nothing else."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
TOLERANCE = 1e-5  # relative, after three steps in float32: sums over devices are taken in another order


def mesh(**sizes):
    return {"mesh": {"data": 1} | sizes}


# what of a mesh can go wrong in a family's own layers
PRODUCTS = (
    mesh(data=8),
    mesh(fsdp=8),
    mesh(fsdp=2, tensor=2, context=2),
    mesh(stage=2, fsdp=2, context=2, microbatches=4) | {"attention": "ring"},
)
# and what is of no family: single axes, further products, options of attention and of memory
OTHERS = (
    mesh(context=8),
    mesh(tensor=4, data=2),
    mesh(stage=2, data=4),
    mesh(data=2, fsdp=2, tensor=2),
    mesh(stage=2, tensor=2, data=2),
    mesh(fsdp=2, tensor=2, context=2) | {"attention": "ulysses"},
    mesh(fsdp=4, data=2) | {"accumulate": 2},
    mesh(data=2, tensor=2, context=2, rules={"tokens": ["context", "tensor"]}),
    mesh(fsdp=8, replicate_below=2000) | {"model": {"remat": "full"}, "optimizer": {"offload": True}},
)


@functools.cache
def rows(family: str, cases: tuple[str, ...], optimizer: str = "adamw") -> list[dict]:
    """What `equality.py` prints."""
    command = [sys.executable, str(FOLDER / "equality.py"), family, f"[{', '.join(cases)}]", optimizer]
    done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parent.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def as_keys(cases):
    return tuple(json.dumps(case) for case in cases)


def assert_equal(row):
    assert row["loss"] <= TOLERANCE, row["case"]
    assert row["gradients"][0] <= TOLERANCE, row
    assert row["params"][0] <= TOLERANCE, row


def meshes(family):
    """A U-Net has no stack of blocks to put into stages, and each of its meshes is a minute of compiling; Z-Image,
    Qwen-Image and Flux.2 have what Flux has."""
    some = {"unet": PRODUCTS[:3], **dict.fromkeys(("z_image", "qwen_image", "flux2"), PRODUCTS[2:3])}
    return as_keys(some[family] if family in some else PRODUCTS + OTHERS * (family == "dit"))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "number"), [
    (family, number) for family in ("unet", "dit", "mmdit", "flux", "z_image", "qwen_image", "flux2")
    for number in range(len(meshes(family)))
])  # fmt: skip
def test_three_steps_are_those_of_one_device(family, number):
    assert_equal(rows(family, meshes(family))[number])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["unet", "dit", "mmdit", "flux"])
def test_fsdp_has_the_gradients_of_data_parallelism_bit_for_bit(family):
    """Examples lie alike on the devices and are summed in one order. What is not: the norm that clips, which is a sum
    over parameters that lie otherwise (hence gradients before clipping); and DiT's table of labels, whose columns are
    split over the devices, each of which adds up all examples where before it added up its own."""
    assert set(rows(family, meshes(family))[1]["other_bits"]) <= {"embedders/label/table"}


@pytest.mark.slow
def test_a_unets_rows_are_split_with_halos():
    row = rows("unet", meshes("unet"))[2]
    halo = 16 // 2 * 1 * 8 * 16  # one row of a device's examples at the first level
    assert sent(row, "collective-permute", False).count(halo) >= 4
    assert max(sent(row, "all-gather", False)) < 16 // 2 * 8 * 8 * 48  # all rows before the last block


def sent(row, kind, looped=None):
    """Elements of the results of a kind of collective, in the scan over blocks, outside, or both."""
    return [size for size, loop in row["collectives"].get(kind, []) if looped in (None, loop)]


MUON = (
    mesh(fsdp=8) | {"optimizer": {"name": "muon"}},
    mesh(fsdp=2, tensor=2, data=2) | {"optimizer": {"name": "muon"}},
)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(MUON)))
def test_muon_on_a_mesh_is_that_of_one_device_and_gathers_no_stack(number):
    row = rows("dit", as_keys(MUON), "muon")[number]
    assert row["loss"] <= TOLERANCE and row["gradients"][0] <= TOLERANCE, row
    # five iterations that are 3.4 steep at zero multiply the rounding of small singular values by up to 480
    assert row["params"][0] <= 1e-4, row
    assert sent(row, "all-to-all")  # whole matrices change places with parts of all
    assert max(sent(row, "all-gather")) <= row["largest_alone"] < max(row["stacks"])


LARGEST = 32 * 6 * 32  # elements of DiT's largest parameter of one block
STACKED = 3 * 32 * 3 * 32  # and of the smallest stack of matrices of its three blocks


@pytest.mark.slow
def test_fsdp_gathers_one_block_at_a_time():
    row = rows("dit", meshes("dit"))[1]
    assert sent(row, "all-gather", True) and max(sent(row, "all-gather", True)) <= LARGEST
    assert max(sent(row, "all-gather", False)) < STACKED
    assert not sent(row, "all-to-all", True) and not sent(row, "collective-permute", True)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["unet", "dit", "mmdit", "flux"])
def test_fsdp_never_gathers_a_stack_of_blocks(family):
    row = rows(family, meshes(family))[1]
    assert sent(row, "all-gather", True) and max(sent(row, "all-gather", True)) <= row["largest_of_a_block"]
    assert row["stacks"] and not set(sent(row, "all-gather")) & set(row["stacks"])


@pytest.mark.slow
def test_tensor_and_context_exchange_activations_in_the_block():
    row = rows("dit", meshes("dit"))[2]
    tokens = 16 // 2 * 16 // 2 * 32  # of the residual stream on one device
    assert sent(row, "all-reduce", True).count(tokens) >= 2  # forward, after attention and after the MLP
    keys = 16 // 2 * 16 * 32 // 2  # keys of all tokens on one device
    assert sent(row, "all-gather", True).count(keys) >= 2
    assert max(sent(row, "all-gather", True)) <= LARGEST


@pytest.mark.slow
def test_stages_and_rings_pass_on_to_neighbours():
    row = rows("dit", meshes("dit"))[3]
    ring = 16 // 2 // 4 * 16 // 2 * 32  # keys on one device of a micro-batch, which is also what a stage passes on
    assert sent(row, "collective-permute", True).count(ring) >= 6
    assert max(sent(row, "all-gather", True), default=0) <= LARGEST


@functools.cache
def printed(program: str) -> list:
    """The lines of a program beside this page."""
    done = subprocess.run([sys.executable, str(FOLDER / program)], capture_output=True, text=True,
                          cwd=FOLDER.parent.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(9))
def test_attention_of_every_kind_is_that_of_one_device(number):
    assert max(printed("attention_on_meshes.py")[number]) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("number", range(9))
def test_a_convolution_of_split_rows_and_channels_is_that_of_one_device(number):
    assert max(printed("convolution_on_meshes.py")[number]) <= 5e-6  # a bias sums 128 terms of both signs


@pytest.mark.slow
def test_a_state_is_created_in_its_places_and_never_whole():
    (row,) = printed("first_state.py")
    assert row["same"]  # the bits of one device
    assert row["held"] < 1.05 * row["state"] / 8  # parameters, both moments, EMA: an eighth of all but the scalars
    assert row["temporary"] < row["state"] / 8
