"""256 flags at their own shapes: an example of aspect-ratio buckets, in some five minutes on two cores.

    lgm train --config=configs/flags.py --workdir=runs/flags

The flags are 0.82 to 2.55 times as wide as high; each is trained at the size of about 64 x 64 pixels nearest its shape,
from 72 x 56 to 40 x 104, and every batch is of one size. `runs/flags/samples` shows flags beside the real ones, at
their own shapes: those of one in ten, which are held out and of which nothing but a country's unknown name is said, as
patches of some flag's colours; those that were trained on as their stripes and colours, and emblems as blots.
"""

from ml_collections import ConfigDict


def get_config():
    width = 128
    return ConfigDict(dict(
        name="flags",
        batch_size=16,
        total_images=8_000,
        data=dict(source="flags", where=dict(split="train"), heldout_where=dict(split="heldout"), buckets=8),
        text=dict(
            encoder=dict(family="clip_text", vocab_size=4096, width=width, depth=1, heads=4, max_length=24,
                         causal=False, pool="mean"),
            caption_dropout=0.1,
        ),
        model=dict(
            family="mmdit", channels=32, patch_size=1, width=width, depth=4, heads=4, text_dim=width, pooled_dim=width,
            position_size=16, base_size=8, qk_norm="rms",
        ),
        process=dict(name="rectified_flow"),
        loss=dict(target="flow", density=dict(name="logit_normal", mean=1.0, std=1.3)),
        optimizer=dict(name="muon", lr=8e-3, warmup_images=1_000, schedule="cosine", b2=0.99),
        ema=dict(half_life_images=1_000),
        sampling=dict(steps=30, guidance=2.0, count=16),
        evaluation=dict(batch_size=8),
        log=dict(every_images=800, checkpoint_every_images=6_000),
    ))
