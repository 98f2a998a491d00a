"""Faces in four styles, drawn by an MMDiT trained with rectified flow: the first thing to run.

    lgm train --config=configs/quickstart.py --workdir=runs/quickstart

About 4 minutes on 2 free CPU cores. Expect faces that are recognisable as their captions in their styles, and a
held-out loss that falls from 2.1 to about 0.6. Muon learns which caption goes with which face in about two thirds of
AdamW's steps, and times lean towards noise (a logit-normal of mean 1.5), because there is decided what a caption
decides.
"""

from ml_collections import ConfigDict

FACES = [f"face-{kind}" for kind in (
    "smiling", "affection", "tongue", "neutral-skeptical", "sleepy", "unwell", "hat", "glasses", "concerned",
)]  # fmt: skip


def get_config():
    return ConfigDict(dict(
        name="quickstart",
        batch_size=16,
        total_images=16_000,
        data=dict(
            source="emoji64",
            where=dict(subcategory=FACES, split="train"),
            heldout_where=dict(subcategory=FACES, split="heldout"),
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
            position_size=8, base_size=16, qk_norm="rms", group=3,
        ),
        process=dict(name="rectified_flow"),
        loss=dict(target="flow", density=dict(name="logit_normal", mean=1.5, std=1.3)),
        optimizer=dict(name="muon", lr=8e-3, warmup_images=1_000, schedule="cosine", b2=0.99),
        ema=dict(half_life_images=1_000),
        sampling=dict(steps=30, guidance=2.0, count=16, every_images=8_000),
        evaluation=dict(every_images=8_000),
        log=dict(every_images=800, checkpoint_every_images=8_000),
    ))
