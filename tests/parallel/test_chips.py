"""The table of chips against figures on its makers' pages, and the names that JAX gives them."""

import pytest

from lgm.parallel.chips import CHIPS, chip_of, peak_flops


@pytest.mark.parametrize(("kind", "name"), [
    ("TPU v5", "v5p"), ("TPU v5 lite", "v5e"), ("TPU v6 lite", "v6e"), ("TPU v4", "v4"), ("TPU7x", "tpu7x"),
    ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100"), ("cpu", None),
])  # fmt: skip
def test_a_device_is_found_by_the_name_that_jax_gives_it(kind, name):
    assert chip_of(kind) is (CHIPS[name] if name else None)


def test_the_table_agrees_with_pod_figures_of_the_makers_that_it_was_not_made_from():
    # all-reduce bandwidth of a v5e pod is 51.2 TB/s and of a v6e pod 102.4 TB/s: 256 chips, all links one way
    assert 256 * CHIPS["v5e"].ici == pytest.approx(51.2e12)
    assert 256 * CHIPS["v6e"].ici == pytest.approx(102.4e12)
    # peak of a v5e pod is 50.63 PFLOP/s by its page; a 16 x 16 v6e pod's is 234.9
    assert 256 * CHIPS["v5e"].flops == pytest.approx(50.63e15, rel=5e-3)
    assert 256 * CHIPS["v6e"].flops == pytest.approx(234.9e15, rel=5e-3)
    # a v4 pod of 4,096 chips: 1.1 EFLOP/s, 1.1 PB/s all-reduce (rounded by its page)
    assert 4096 * CHIPS["v4"].flops == pytest.approx(1.1e18, rel=0.05)
    assert 4096 * CHIPS["v4"].ici == pytest.approx(1.1e15, rel=0.15)
    assert CHIPS["tpu7x"].share.flops * 2 == CHIPS["tpu7x"].flops


def test_every_chip_says_where_its_numbers_stand_and_a_device_has_its_share():
    for chip in CHIPS.values():
        assert chip.source.startswith("https://") and chip.flops > 1e14 and chip.hbm > 1e10 and chip.ici > chip.dcn > 0

    class Device:
        device_kind = "TPU7x"

    assert peak_flops(Device) == CHIPS["tpu7x"].flops / 2
