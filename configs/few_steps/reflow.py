"""A run of rectified flow made straight, on pairs of noise and data that it joins itself (2-rectified flow).

    lgm train --config=configs/quickstart.py --workdir=runs/quickstart
    lgm train --config=configs/few_steps/reflow.py:runs/quickstart --workdir=runs/reflow
    lgm sample --workdir=runs/reflow --prompt="grinning face emoji, noto style" --steps=2 --out=face.png

What follows the colon is the folder of any finished run, whose config and weights this starts from. Guidance is within
the pairs, so a step asks the network once. Five minutes of one CPU core, half of them to draw the pairs, which `lgm
pairs --config=... --out=DIR` also draws beforehand, for `--config.loss.teacher.cache=DIR`.
"""

from ml_collections import ConfigDict

from lgm.config import read, to_dict


def get_config(teacher="runs/quickstart"):
    config = ConfigDict(to_dict(read(teacher)))
    config.loss = dict(
        name="reflow", target="flow", density=dict(name="uniform"),
        teacher=dict(workdir=teacher, pairs=1024, solver="euler", steps=16, guidance=2.0),
    )
    config.update(dict(
        name="reflow", init_from=teacher, total_images=4_000,
        text=dict(caption_dropout=0.0),  # nothing guides what guided pairs have taught
        optimizer=dict(lr=2e-3, warmup_images=200),
        ema=dict(half_life_images=400),
        sampling=dict(steps=2, guidance=1.0, every_images=4_000),
        evaluation=dict(every_images=0),
        log=dict(every_images=400, checkpoint_every_images=1_000, keep=8),
    ))
    return config
