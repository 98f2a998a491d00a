"""What is left behind when a loss stops being finite: the step, the metric, the first bad gradients and the batch."""

import functools
import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lgm.files import write_atomically
from lgm.parallel import Layout, fetch, using
from lgm.train.divergence import Diverged
from lgm.train.state import beside, drawn, in_pieces


class NonFinite(Diverged):
    """Training stopped because a metric is not finite; the message is one line."""

def report_non_finite(workdir: Path, task, config, layout: Layout, state, step: int, metrics: dict,
                      batch: dict) -> None:
    """Save the batch and a JSON report under `workdir/failure`, then raise NonFinite.

    The guarded step kept the weights from before the failure, so the same loss is taken again here to name the
    parameters whose gradients are not finite: in the same pieces and places, for it has to fit where the step did. Of
    several processes all must call this; the first one writes.
    """
    values = {k: float(v) for k, v in metrics.items()}
    bad = sorted((k for k, v in values.items() if not np.isfinite(v)), key=lambda k: k != "loss")

    @functools.partial(jax.jit, out_shardings=layout.whole)
    def finite(params, frozen, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), step - 1)
        rows = batch | drawn(task.draw, batch, key, (step - 1) / config.steps)
        with using(layout):
            _, gradients = in_pieces(task.loss, config.accumulate)(params, frozen, rows, key)
        return jax.tree.map(lambda g: jnp.isfinite(g).all(), gradients)

    leaves = jax.tree_util.tree_leaves_with_path(finite(state.params, beside(state, task.frozen), batch))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, ok in leaves if not fetch(ok)]
    folder = workdir / "failure"
    arrays = {k: fetch(v) for k, v in batch.items()}
    if jax.process_index() == 0:
        batch_file = io.BytesIO()
        np.savez(batch_file, **arrays)
        write_atomically(folder / "batch.npz", batch_file.getvalue())
        report = {"step": step, "metrics": {k: repr(v) for k, v in values.items()}, "non_finite_gradients": names}
        write_atomically(folder / "report.json", json.dumps(report, indent=2).encode())
    where = f", first in the gradient of {names[0]} ({len(names)} of {len(leaves)} parameters)" if names else ""
    raise NonFinite(f"step {step}: {bad[0]} is {values[bad[0]]}{where}; the batch is in {folder / 'batch.npz'}")
