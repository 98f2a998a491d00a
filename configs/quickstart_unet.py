"""The faces of quickstart.py in the other generation: a U-Net that predicts eps of discrete diffusion, same data.

    lgm train --config=configs/quickstart_unet.py --workdir=runs/quickstart_unet

12,800 images took 293 s on 2 CPU cores. Expect the captions' features through a strong grain; not every
face can be told. An eps prediction at high noise
implies data with its error multiplied up to 15-fold; three choices make it learnable in this time: errors count by what
they do to the data where noise prevails (truncated SNR), most times lie there, and the network adds its input to its
output, so that it starts from "all of this is noise".
"""

from ml_collections import ConfigDict

FACES = [f"face-{kind}" for kind in (
    "smiling", "affection", "tongue", "neutral-skeptical", "sleepy", "unwell", "hat", "glasses", "concerned",
)]  # fmt: skip


def get_config():
    return ConfigDict(dict(
        name="quickstart_unet",
        batch_size=16,
        total_images=12_800,
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
            target="eps", density=dict(name="logit_normal", mean=0.9, std=1.4), weighting=dict(name="truncated_snr"),
        ),
        optimizer=dict(name="muon", lr=8e-3, warmup_images=1_000, schedule="cosine", b2=0.99),
        ema=dict(half_life_images=1_000),
        sampling=dict(solver="ddim", steps=30, guidance=1.5, clip=4.0, count=16, every_images=6_400),
        evaluation=dict(every_images=6_400),
        log=dict(every_images=800, checkpoint_every_images=8_000),
    ))
