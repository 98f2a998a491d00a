"""Faces in four styles, drawn by an MMDiT trained with rectified flow: the first thing to run.

    lgm train --config=configs/quickstart.py --workdir=runs/quickstart

About 4 minutes on 2 free CPU cores (105 images/s). Expect faces of the right shape, colour and style, most with eyes
and mouth in place but rough, and a held-out loss near 0.53. Times lean towards noise (a logit-normal of mean 0.7):
what a caption decides is decided there, and an even density hardly visits it.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(dict(
        name="quickstart",
        batch_size=16,
        total_images=24_000,
        data=dict(
            source="emoji64",
            where=dict(subcategory="face-", split="train"),
            heldout_where=dict(subcategory="face-", split="heldout"),
        ),
        text=dict(
            encoder=dict(
                family="clip_text", vocab_size=4096, width=128, depth=2, heads=4, max_length=16, causal=False, unroll=2,
                pool="mean",
            ),
            caption_dropout=0.1,
        ),
        model=dict(
            family="mmdit", channels=32, patch_size=1, width=128, depth=4, heads=4, text_dim=128, pooled_dim=128,
            position_size=8, base_size=16, qk_norm="rms",
        ),
        process=dict(name="rectified_flow"),
        loss=dict(target="flow", density=dict(name="logit_normal", mean=0.7, std=1.4)),
        optimizer=dict(lr=5e-3, warmup_images=2_000, schedule="cosine", b2=0.99),
        ema=dict(half_life_images=1_000),
        sampling=dict(solver="euler", steps=30, guidance=2.0, count=16, every_images=8_000),
        evaluation=dict(every_images=8_000),
        log=dict(every_images=800, checkpoint_every_images=8_000),
    ))
