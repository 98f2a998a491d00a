"""The table of positions in an SD3 checkpoint tells how it was made, whatever its precision."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed_from_grid

from lgm.interop.keys_sd3 import TABLE, with_positions_of
from lgm.interop.tensor_files import open_weights, save
from lgm.models.embeddings import sincos_2d
from lgm.models.mmdit import MMDiTConfig

WIDTH = 64


def their_table(size, scale, offset):
    """diffusers' sines and cosines at the places scale p - offset."""
    place = torch.arange(size, dtype=torch.float32) * scale - offset
    grid = torch.stack(torch.meshgrid(place, place, indexing="xy")).reshape(2, 1, size, size)
    return get_2d_sincos_pos_embed_from_grid(WIDTH, grid).float().numpy()[None]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("size", "scale", "offset", "found"), [
    (192, 1 / 3, 0.0, (None, 0.0)),  # what config.json leads to
    (192, 0.25, 16.0, (0.25, 16.0)),  # 256-pixel places around the middle 64 patches (2403.03206, 5.3.2)
    (384, 0.25, 40.0, (0.25, 40.0)),
    (384, 1.0, 0.0, (1.0, 0.0)),
])  # fmt: skip
def test_scale_and_offset_are_found(tmp_path, dtype, size, scale, offset, found):
    config = MMDiTConfig(width=WIDTH, heads=1, position_size=size)
    table = their_table(size, scale, offset)
    save([(TABLE, table.astype(dtype))], tmp_path, "weights")
    config = with_positions_of(config, open_weights(tmp_path))
    assert (config.position_scale, config.position_offset) == found
    ours = sincos_2d(WIDTH, size, size, size, config.base_size, config.position_scale, config.position_offset)[None]
    np.testing.assert_allclose(ours, table, atol=2e-5)  # float32 places, the largest of which is 384


def test_positions_are_taken_from_the_last_checkpoint_read(tmp_path):
    config = MMDiTConfig(width=WIDTH, heads=1, position_size=8, base_size=4, position_scale=0.3, position_offset=7.0)
    plain = dataclasses.replace(config, position_scale=None, position_offset=0.0)
    save([(TABLE, their_table(8, 0.5, 0.0))], tmp_path, "weights")
    assert with_positions_of(config, open_weights(tmp_path)) == plain
    save([("other", np.zeros(1, np.float32))], tmp_path / "without", "weights")
    assert with_positions_of(config, open_weights(tmp_path / "without")) == plain
