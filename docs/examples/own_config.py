"""A network, a loss, a solver and images of one's own (`own_parts.py`), trained as any others are.

    lgm train --config=docs/examples/own_config.py --workdir=runs/own
    lgm sample --workdir=runs/own --prompt="blue square" --count=4 --out=squares.png

About a minute on 2 CPU cores. Expect squares of the colours that are asked for, soft at their edges.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(dict(
        name="own",
        imports=["own_parts.py"],  # from this file's folder; a module that is installed is named without .py
        batch_size=16,
        total_images=12_000,
        data=dict(source="squares:96"),
        text=dict(encoder=dict(family="clip_text", vocab_size=4096, width=32, depth=1, heads=1, max_length=8)),
        model=dict(family="patch_mixer", width=128, depth=3),
        loss=dict(name="robust", width=0.2, target="flow", density=dict(name="logit_normal")),
        optimizer=dict(lr=3e-3, warmup_images=800),
        ema=dict(half_life_images=800),
        sampling=dict(solver="midpoint", steps=10, count=8, every_images=4_000),
        evaluation=dict(every_images=4_000),
        log=dict(every_images=1_600, checkpoint_every_images=4_000),
    ))
