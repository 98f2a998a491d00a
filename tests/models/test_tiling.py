"""Tiled decoding against diffusers' tiles."""

import diffusers
import numpy as np
import pytest
import torch

from lgm.models.tiling import tiled_decode


@pytest.mark.parametrize("size", [(16, 21), (9, 8), (5, 8)])
def test_tiles_lie_and_fade_as_in_diffusers(size):
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip
    z = np.random.default_rng(0).normal(size=(2, *size, 4)).astype(np.float32)

    def decode(z_BHWC):
        z = torch.tensor(np.asarray(z_BHWC)).permute(0, 3, 1, 2)
        with torch.no_grad():
            return theirs.decode(z).sample.permute(0, 2, 3, 1).numpy()

    ours = tiled_decode(decode, z, factor=2, tile=8)
    theirs.enable_tiling()
    expected = decode(z)
    # the same decoder on the same tiles: only the mixing of two values rounds, here and there in another order
    np.testing.assert_allclose(ours, expected, atol=1e-6 * np.abs(expected).max())


def test_an_overlap_without_a_step_is_refused():
    with pytest.raises(ValueError, match="overlap=0.99 of tile=8 leaves no step"):
        tiled_decode(lambda z: z, np.zeros((1, 16, 16, 4)), factor=2, tile=8, overlap=0.99)
