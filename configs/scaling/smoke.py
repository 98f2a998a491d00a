"""The whole scaling harness in miniature, on 2 CPU cores: {U-Net, MMDiT} x {eps diffusion, rectified flow}, 48 runs.

    lgm sweep --config=configs/scaling/smoke.py --workdir=runs/smoke
    lgm fit --data=runs/smoke/runs.csv --out=runs/smoke/fit

Four sizes of 23 thousand to 1 million parameters, three seeds and three amounts of data, on the latents of 1,159 emoji:
505 seconds on 2 cores with an empty compilation cache. It shows that plan, sweep, resume, metric, fit and report work
together, and how well the largest runs are predicted from the rest at this scale: `tools/figures/smoke_sweep` keeps its
table and report. It cannot show which family to scale: after 1,024 images no run is near what its size can reach, the
learning rates are not tuned, and 64 steps of the smallest models say nothing of large ones. Three of the four alphas
are refused, and the fourth, above 1, tells how soon eps is learnt where noise is all. The grid of log SNR starts at -3:
below, the error of v of a network that predicts eps is its error of eps over the SNR, and would be all that is seen.
Four of the 33 held-out images are near duplicates of training images (two speech balloons, faces but for their mouths).
"""

from ml_collections import ConfigDict

IMAGES = dict(category=("Smileys & Emotion", "Food & Drink"))


def get_config():
    return ConfigDict(dict(
        name="smoke",
        base=dict(
            batch_size=16,
            data=dict(where=IMAGES | dict(split="train"), heldout_where=IMAGES | dict(split="heldout")),
            text=dict(encoder=dict(family="clip_text", vocab_size=4096, width=32, depth=1, heads=2, max_length=16,
                                   causal=False, pool="mean")),
            optimizer=dict(warmup_images=128, b2=0.99),
            ema=dict(half_life_images=1_000_000_000, ramp=0.05),
            evaluation=dict(times=1, levels=8, log_snr=(-3.0, 6.0), batch_size=264),
            sampling=dict(count=0),
            log=dict(every_images=64, checkpoint_every_images=0),
        ),
        architectures=dict(
            mmdit=dict(family="mmdit", sizes=(1, 2, 3, 4), lr=8e-3, mup_size=2, together=3, how="turns",
                       shape=dict(head_size=16, aspect=16.0, channels=32, patch_size=1, text_dim=32, pooled_dim=32,
                                  position_size=8, base_size=8, qk_norm="rms")),
            unet=dict(family="unet", sizes=(1, 2, 3, 4), lr=4e-3, mup_size=2, together=3, how="turns",
                      shape=dict(base="small", head_size=16, channels=32, text_dim=32, pooled_dim=32)),
        ),
        objectives=dict(
            flow=dict(process=dict(name="rectified_flow"), loss=dict(target="flow", density=dict(name="logit_normal"))),
            eps=dict(process=dict(name="ddpm", schedule="scaled_linear"),
                     loss=dict(target="eps", density=dict(name="discrete", steps=1000)),
                     sampling=dict(solver="ddim", clip=4.0)),
        ),
        machine=dict(kind="cpu", chips=2, peak=75e9, mfu=0.3),
        images=(256, 512, 1024), seeds=(0, 1, 2), cooldown=0.25, near_duplicates="keep",
    ))
