"""{U-Net, MMDiT} x {eps diffusion, rectified flow} on all of emoji64's latents, planned for 20 minutes of one GPU.

    lgm sweep --config=configs/scaling/one_gpu.py --workdir=runs/one_gpu
    lgm fit --data=runs/one_gpu/runs.csv --out=runs/one_gpu/fit

Four budgets, each spent by four to six sizes of 0.3 to 74 million parameters (U-Net: 1.1 to 42) on at most 409,600
images (60 epochs: more would measure memory), two seeds: 56 runs, 152 rows. The two seeds of a size share a program.
`--list` counts 8.5e15 FLOPs, 2.9 minutes at an assumed 5% of an H100's peak, which is all that networks so small may
reach with 64 tokens an image; 28 compilations and the held-out errors come on top. It has not been run on a GPU yet:
the time is a plan. One learning rate an architecture serves all of its sizes by muP (`mup_size` is the size it belongs
to); it is not tuned: `lr=(1e-3, 2e-3, 4e-3)` tries several at every size, and the fit takes the best of each and says
which it left out. 24 of the 195 held-out images are near duplicates of training images, as a man farmer of a farmer.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(dict(
        name="one_gpu",
        base=dict(
            batch_size=64,
            data=dict(where=dict(split="train"), heldout_where=dict(split="heldout")),
            text=dict(encoder=dict(family="clip_text", vocab_size=4096, width=128, depth=2, heads=2, max_length=20,
                                   causal=False, pool="mean", dtype="bfloat16")),
            optimizer=dict(warmup_images=3_200, b2=0.99, weight_decay=0.01),
            ema=dict(half_life_images=1_000_000_000, ramp=0.05),
            evaluation=dict(times=1, levels=16, batch_size=780),
            sampling=dict(count=0),
            log=dict(every_images=12_800, checkpoint_every_images=64_000),
        ),
        architectures=dict(
            mmdit=dict(family="mmdit", sizes=(1, 2, 3, 4, 5, 6, 7, 8), lr=3e-3, mup_size=2, together=2,
                       shape=dict(channels=32, patch_size=1, text_dim=128, pooled_dim=128, position_size=8, base_size=8,
                                  qk_norm="rms", group=8, dtype="bfloat16")),
            unet=dict(family="unet", sizes=(4, 6, 9, 13, 18, 26), lr=2e-3, mup_size=9, together=2, how="turns",
                      shape=dict(base="small", channels=32, text_dim=128, pooled_dim=128, dtype="bfloat16")),
        ),
        objectives=dict(
            flow=dict(process=dict(name="rectified_flow"), loss=dict(target="flow", density=dict(name="logit_normal"))),
            eps=dict(process=dict(name="ddpm", schedule="scaled_linear"),
                     loss=dict(target="eps", density=dict(name="discrete", steps=1000)),
                     sampling=dict(solver="ddim", clip=4.0)),
        ),
        budgets=(2e13, 4e13, 8e13, 1.6e14), min_images=9_600, max_images=409_600, seeds=(0, 1), cooldown=0.25,
        near_duplicates="keep",
        machine=dict(chips=1, peak=989e12, mfu=0.05),
    ))
