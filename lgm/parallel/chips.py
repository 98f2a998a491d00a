"""What chips can do at their best, each from its maker's page: the one table behind MFU, rooflines and plans."""

from __future__ import annotations

import dataclasses

GB, GiB, TFLOPS, GBPS = 1e9, 2.0**30, 1e12, 1e9
_TPU = "https://cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip; rates are a second, bytes and FLOPs of bfloat16, dense.

    hbm: bytes. link: bytes one way over one link of the interconnect within a slice or node. links: that many a chip,
    two for each torus dimension; a switch is one. dcn: bytes one way between slices or nodes. clock: cycles, in which
    the TPU compiler states its estimates. mxu: the side of its matrix units. devices: those that JAX shows of one chip.
    kinds: parts of `device_kind` by which JAX names it. source: where the numbers stand.
    """

    name: str
    flops: float
    hbm: float
    hbm_rate: float
    link: float
    links: int
    dcn: float
    source: str
    kinds: tuple[str, ...]
    clock: float = 0.0
    mxu: int = 0
    devices: int = 1

    @property
    def ici(self) -> float:
        """Bytes one way over all links."""
        return self.link * self.links

    @property
    def share(self) -> Chip:
        """What each of its devices has of it."""
        n = self.devices
        return dataclasses.replace(self, flops=self.flops / n, hbm=self.hbm / n, hbm_rate=self.hbm_rate / n,
                                   link=self.link / n, dcn=self.dcn / n, devices=1)


def _tpu(name, tflops, gib, gbps, link, links, dcn_gbit, clock, mxu, kinds, page, devices=1):
    return Chip(name, tflops * TFLOPS, gib * GiB, gbps * GBPS, link * GBPS, links, dcn_gbit / 8 * GBPS, _TPU + page,
                kinds, clock * 1e9, mxu, devices)


def _gpu(name, tflops, gb, gbps, nvlink, dcn_gbit, kinds, page):
    return Chip(name, tflops * TFLOPS, gb * GB, gbps * GBPS, nvlink * GBPS, 1, dcn_gbit / 8 * GBPS, _NVIDIA + page,
                kinds)


# A TPU's link is its published bidirectional bandwidth over all ports / ports / 2, its DCN a pod's over its chips. v4's
# link is its paper's (2304.01433), 50 GB/s each way, and its DCN that of v5p. Clocks: peak / (2 x the multiply-adds of
# all MXUs a cycle), those being 8 of 128 x 128 (v4, v5p), 4 (v5e), and as many as 4 of 256 x 256 do (v6e, half a
# tpu7x). GPUs: SXM parts, NVLink one way through the switch, one 400 Gbit/s adapter a GPU (A100: 200) as in DGX nodes.
CHIPS: dict[str, Chip] = {chip.name: chip for chip in (
    _tpu("v4", 275, 32, 1200, 50, 6, 50, 1.05, 128, ("TPU v4",), "v4"),
    _tpu("v5e", 197, 16, 819, 50, 4, 25, 1.5, 128, ("TPU v5 lite", "TPU v5e"), "v5e"),
    _tpu("v5p", 459, 95, 2765, 100, 6, 50, 1.75, 128, ("TPU v5p", "TPU v5"), "v5p"),
    _tpu("v6e", 918, 32, 1638, 100, 4, 100, 1.75, 256, ("TPU v6 lite", "TPU v6e"), "v6e"),
    _tpu("tpu7x", 2307, 192, 7380, 100, 6, 100, 2.2, 256, ("TPU7x", "TPU v7"), "tpu7x", devices=2),
    _gpu("a100", 312, 80, 2039, 300, 200, ("A100",), "a100/"),
    _gpu("h100", 989.4, 80, 3350, 450, 400, ("H100",), "h100/"),
    _gpu("h200", 989.4, 141, 4800, 450, 400, ("H200",), "h200/"),
    _gpu("b200", 2250, 180, 8000, 900, 400, ("B200",), "dgx-b200/"),
)}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`, or None for one that is not in the table, as a CPU."""
    kind = device_kind.lower()
    matches = [(len(part), chip) for chip in CHIPS.values() for part in chip.kinds if part.lower() in kind]
    return max(matches, key=lambda match: match[0])[1] if matches else None


def peak_flops(device) -> float | None:
    """bfloat16 FLOP/s of a `jax.Device` at its peak, or None where no table has it."""
    chip = chip_of(device.device_kind)
    return None if chip is None else chip.share.flops
