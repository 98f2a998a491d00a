"""Half of quickstart.py's faces in the other generation: a U-Net that predicts eps of discrete diffusion.

    lgm train --config=configs/quickstart_unet.py --workdir=runs/quickstart_unet

About 4.5 minutes on 2 free CPU cores. Expect faces that are recognisable as their captions in their styles, under a
faint grain. A U-Net takes about twice as many passes over its images as the transformer to learn which caption goes
with which face, so it gets 159 images where that has 371; it knows them by heart at the end, and the held-out loss, of
three images, ends below its start but above its lowest.

An eps prediction at high noise implies data with its error multiplied up to 15-fold, and at low noise it must tell a
faint noise from the image. Errors therefore count by what they do to the data, as under rectified flow, most times lie
at high noise, and the output is a change and a gain of the input, each with a scale of its own (`residual`).
"""

from ml_collections import ConfigDict

FACES = [f"face-{kind}" for kind in ("smiling", "affection", "tongue", "sleepy", "hat", "glasses")]


def get_config():
    return ConfigDict(dict(
        name="quickstart_unet",
        batch_size=16,
        total_images=10_400,
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
            family="unet", channels=32, block_channels=(64, 96), layers_per_block=1, transformer_depth=(1, 1),
            heads=(2, 3), text_dim=128, pooled_dim=128, norm_groups=32, linear_projection=True,
            residual=True,
        ),
        process=dict(name="ddpm", schedule="scaled_linear"),
        loss=dict(
            target="eps", density=dict(name="logit_normal", mean=0.9, std=1.4), weighting=dict(name="flow"),
        ),
        optimizer=dict(name="muon", lr=8e-3, warmup_images=1_000, schedule="cosine", b2=0.99),
        ema=dict(half_life_images=1_000),
        sampling=dict(solver="ddim", steps=30, guidance=2.0, clip=4.0, count=16, every_images=5_200),
        evaluation=dict(every_images=5_200),
        log=dict(every_images=800, checkpoint_every_images=5_200),
    ))
