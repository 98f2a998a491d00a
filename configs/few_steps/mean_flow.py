"""A run of rectified flow taught mean velocities, of which any jump is one step (MeanFlow).

    lgm train --config=configs/few_steps/mean_flow.py:runs/quickstart --workdir=runs/mean_flow
    lgm sample --workdir=runs/mean_flow --prompt="grinning face emoji, noto style" --steps=1 --out=face.png

It starts from a finished run's weights, whose velocity is the mean velocity of a jump of no width, and learns the rest
from real images. The field it learns is the guided one (`scale`), so a step asks the network once. The derivative along
the path makes a step of training longer by half: three and a half minutes of one CPU core.
"""

from ml_collections import ConfigDict

from lgm.config import read, to_dict


def get_config(teacher="runs/quickstart"):
    config = ConfigDict(to_dict(read(teacher)))
    config.loss = dict(name="mean_flow", target="flow", density=config.loss.density, same=0.5, scale=2.0)
    config.update(dict(
        name="mean_flow", init_from=teacher, total_images=4_000, attention="xla",
        model=dict(jump=True),
        optimizer=dict(lr=2e-3, warmup_images=200),
        ema=dict(half_life_images=400),
        sampling=dict(solver="jump", steps=2, guidance=1.0, every_images=4_000),
        evaluation=dict(every_images=0),
        log=dict(every_images=400, checkpoint_every_images=1_000, keep=8),
    ))
    return config
