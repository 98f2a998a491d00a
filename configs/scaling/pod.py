"""IsoFLOP plans from 77 million to 8 billion parameters at 256 pixels, one run a job of a pod or cluster.

    lgm sweep --config=configs/scaling/pod.py:mmdit-flow --workdir=gs://bucket/pod --list    runs and costs
    lgm sweep --config=configs/scaling/pod.py:mmdit-flow --workdir=gs://bucket/pod --only=I  one of them, as a job
    lgm sweep --config=configs/scaling/pod.py:mmdit-flow --workdir=gs://bucket/pod --gather  runs.csv of the finished
    lgm fit --data=gs://bucket/pod/runs.csv --out=gs://bucket/pod/fit --pod-hours=1000 \\
        --chips=256 --chip-peak=459e12 --mfu=0.4

The argument is ARCHITECTURE-OBJECTIVE, of mmdit or unet and flow or eps; both sides are trained on the same images,
captions, frozen text encoders and amounts of compute. A budget is spent by the sizes within a factor 4 of where its
lowest loss is expected, two or more on either side: MMDiT's published optimum, 0.0301 C^0.495 parameters (2608.17286),
and 1.45 times that for the U-Net, whose parameters cost half the FLOPs an image; a run is one trunk at a constant rate
with a cooldown for each of its budgets. The learning rate is that of one small size, by muP that of all; it is not
tuned. One small size is trained from two seeds, which tells the noise between runs. What `--list` counts, with an
assumed MFU of 40% on 256 v5p (459 TFLOP/s each; `lgm plan --json` tells a config's own, which `lgm fit --plan` takes):

    mmdit   10 runs of 20 million to 2.03 billion parameters, 27 rows   5.58e22 FLOPs  329.9 hours   84,500 chip-hours
    unet    12 runs of 40 million to 2.66 billion parameters, 35 rows   7.00e22 FLOPs  413.9 hours  106,000 chip-hours

for each of flow and eps, frozen text encoders and autoencoder included, which are most of what the small models cost.
`--list` says which budgets can show no minimum: here none. Before a start set
`base.data.source`, `base.autoencoder` and `base.text.folder` to your own: FLOPs are counted without opening them.
"""

from ml_collections import ConfigDict

OBJECTIVES = {
    "flow": dict(process=dict(name="rectified_flow"), loss=dict(target="flow", density=dict(name="logit_normal"))),
    "eps": dict(process=dict(name="ddpm", schedule="scaled_linear"),
                loss=dict(target="eps", density=dict(name="discrete", steps=1000)),
                sampling=dict(solver="ddim", clip=6.0)),
}
ARCHITECTURES = {
    # 8: 77M, 24: SD3-medium
    "mmdit": dict(family="mmdit", sizes=(5, 6, 8, 10, 12, 14, 17, 20, 24), lr=2e-3, mup_size=8, seeds={6: (0, 1)},
                  shape=dict(channels=16, qk_norm="rms", remat="dots", group=4, dtype="bfloat16")),
    # 40: SDXL's width; parameters grow as the square
    "unet": dict(family="unet", sizes=(2, 3, 4, 5, 7, 9, 12, 16, 21, 28, 38), lr=1e-3, mup_size=7, seeds={5: (0, 1)},
                 shape=dict(base="sdxl", channels=16, text_dim=4096, pooled_dim=2048, remat="dots", dtype="bfloat16")),
}
GUESSES = {"mmdit": (0.0301, 0.495), "unet": (0.0436, 0.495)}


def get_config(arg="mmdit-flow"):
    architecture, _, objective = arg.partition("-")
    if architecture not in ARCHITECTURES or objective not in OBJECTIVES:
        raise ValueError(f"{arg!r}: give {'|'.join(ARCHITECTURES)}-{'|'.join(OBJECTIVES)}, as mmdit-flow")
    return ConfigDict(dict(
        name=f"pod-{arg}",
        base=dict(
            batch_size=2048,
            data=dict(source="/data/captioned256", where=dict(split="train"), heldout_where=dict(split="heldout"),
                      resolution=256, latents="step"),
            autoencoder="/models/sd3",
            text=dict(folder="/models/sd3", caption_dropout=0.1),
            optimizer=dict(warmup_images=1_000_000, b2=0.95, weight_decay=0.01),
            ema=dict(half_life_images=1_000_000_000_000, ramp=0.05),
            evaluation=dict(times=1, levels=16, batch_size=512, max_images=4096),
            sampling=dict(count=0),
            log=dict(every_images=200_000, checkpoint_every_images=4_000_000),
            mesh=dict(data=1, fsdp=-1),
        ),
        architectures={architecture: ARCHITECTURES[architecture]},
        objectives={objective: OBJECTIVES[objective]},
        budgets=(1e19, 3e19, 1e20, 3e20, 1e21), guess=GUESSES[architecture], min_images=5_000_000, cooldown=0.2,
        machine=dict(chips=256, peak=459e12, mfu=0.4),
        latent=32, text_tokens=154,
    ))
