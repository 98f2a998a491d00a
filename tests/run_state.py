"""What a run's newest checkpoint holds, for tests that compare runs bit for bit."""

import jax
import numpy as np
import orbax.checkpoint as ocp


def final(workdir):
    """(step, every array of the state) of a folder's newest checkpoint."""
    place = workdir / "checkpoints"
    step = max(int(path.name) for path in place.iterdir() if path.name.isdigit())
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(place / str(step) / "state").item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = reader.restore(place / str(step) / "state", restore_args=plain)
    return step, [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
