"""A reflowed run distilled into one step: from the noise of a pair straight to its data.

    lgm train --config=configs/few_steps/one_step.py:runs/reflow --workdir=runs/one_step
    lgm sample --workdir=runs/one_step --prompt="grinning face emoji, noto style" --out=face.png

Its teacher and start is what `reflow.py` made; of an unreflowed run a single step is the mean of too many images. The
pairs are the reflowed run's own. Three minutes of one CPU core.
"""

from ml_collections import ConfigDict

from lgm.config import read, to_dict


def get_config(teacher="runs/reflow"):
    config = ConfigDict(to_dict(read(teacher)))
    config.loss = dict(
        name="one_step", target="flow", distance="pseudo_huber",
        teacher=dict(workdir=teacher, pairs=1024, solver="euler", steps=8, guidance=1.0),
    )
    config.update(dict(
        name="one_step", init_from=teacher, total_images=4_000,
        optimizer=dict(lr=2e-3, warmup_images=200),
        ema=dict(half_life_images=400),
        sampling=dict(steps=1, guidance=1.0, every_images=4_000),
    ))
    return config
