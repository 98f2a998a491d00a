"""A small run, of mixed sources and flips, cheap on any number of processes, and the bits of its newest checkpoint."""

import jax
import numpy as np
import orbax.checkpoint as ocp

from lgm.files import plain

SMALL = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict(dict(
        name="Small one", batch_size=8, total_images=IMAGES,
        data=dict(source=dict(hats=dict(source="emoji64", weight=3),
                              hands=dict(source="emoji64", where=dict(subcategory="hand-prop"))),
                  where=dict(subcategory="face-hat"), heldout_where=dict(subcategory="face-glasses"),
                  crop=48, flip=True),
        model=dict(family="autoencoder", latent_channels=4, block_channels=(24,), layers_per_block=1, patch_size=8,
                   norm_groups=4, mid_attention=False),
        optimizer=dict(lr=1e-3, warmup_images=80), ema=dict(half_life_images=160),
        evaluation=dict(batch_size=8, max_images=8), sampling=dict(count=2),
        log=dict(every_images=16, checkpoint_every_images=80),
    ))
"""


def small_config(images: int) -> str:
    """The text of a config file."""
    return SMALL.replace("IMAGES", str(images))


def final(workdir):
    """(step, every array of the state) of a folder's newest checkpoint."""
    place = plain(workdir) / "checkpoints"  # as Orbax can read it, whatever the name
    step = max(int(path.name) for path in place.iterdir() if path.name.isdigit())
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(place / str(step) / "state").item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = reader.restore(place / str(step) / "state", restore_args=as_numpy)
    return step, [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
