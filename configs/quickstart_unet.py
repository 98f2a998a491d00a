"""The faces of quickstart.py in the other generation: a U-Net that predicts eps of discrete diffusion, same data.

    lgm train --config=configs/quickstart_unet.py --workdir=runs/quickstart_unet

Expect the held-out loss to fall from 1.0 to about 0.2. At this budget the pictures are not faces yet: an eps prediction
at high noise implies data with its error multiplied 15-fold, and that takes longer to learn.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(dict(
        name="quickstart_unet",
        batch_size=16,
        total_images=12_000,
        data=dict(
            source="emoji64",
            where=dict(subcategory="face-", split="train"),
            heldout_where=dict(subcategory="face-", split="heldout"),
        ),
        text=dict(
            encoder=dict(
                family="clip_text", vocab_size=4096, width=128, depth=2, heads=4, max_length=16, causal=False, unroll=2,
            ),
            caption_dropout=0.1,
        ),
        model=dict(
            family="unet", channels=32, block_channels=(96, 160), layers_per_block=1, transformer_depth=(1, 1),
            heads=(3, 5), text_dim=128, pooled_dim=128, norm_groups=32, linear_projection=True,
        ),
        process=dict(name="ddpm", schedule="scaled_linear"),
        loss=dict(target="eps", density=dict(name="discrete", steps=1000), weighting=dict(name="constant")),
        optimizer=dict(lr=1e-3, warmup_images=2_000, schedule="cosine", b2=0.99),
        ema=dict(half_life_images=4_000),
        sampling=dict(solver="ddim", steps=30, guidance=2.0, clip=4.0, count=16, every_images=6_000),
        evaluation=dict(every_images=5_000),
        log=dict(every_images=800, checkpoint_every_images=8_000),
    ))
