"""A run of rectified flow taught shortcuts: that a jump is two jumps of half its width (shortcut models).

    lgm train --config=configs/few_steps/shortcut.py:runs/quickstart --workdir=runs/shortcut
    lgm sample --workdir=runs/shortcut --prompt="grinning face emoji, noto style" --steps=4 --out=face.png

It starts from a finished run's weights and learns jumps of 1, 1/2, 1/4, ... 1/16 from its own of half the width, the
smallest with guidance (`scale`), which the larger inherit: a step asks the network once. Draw in 1, 2, 4, 8 or 16.
Four minutes of one CPU core.
"""

from ml_collections import ConfigDict

from lgm.config import read, to_dict


def get_config(teacher="runs/quickstart"):
    config = ConfigDict(to_dict(read(teacher)))
    config.loss = dict(name="shortcut", target="flow", density=config.loss.density, share=0.5, levels=5, scale=2.0)
    config.update(dict(
        name="shortcut", init_from=teacher, total_images=4_000,
        model=dict(jump=True),
        optimizer=dict(lr=2e-3, warmup_images=200),
        ema=dict(half_life_images=400),
        sampling=dict(solver="jump", steps=4, guidance=1.0, every_images=4_000),
        evaluation=dict(every_images=0),
        log=dict(every_images=400, checkpoint_every_images=1_000, keep=8),
    ))
    return config
