"""The released systems trained at full size, 1024 px, on a TPU pod: SDXL, SD3-medium, SD3.5-large, Flux.1-dev, Z-Image,
Qwen-Image, Flux.2-dev or Flux.2-klein.

    lgm plan  --config=configs/pod.py:flux_dev --topology=v5p:4x4x8
    lgm train --config=configs/pod.py:flux_dev --workdir=gs://bucket/flux

Needs a folder of captioned images at data/images (`--config.data.source`) and the diffusers folder of the system at
models/NAME for its frozen autoencoder and text encoders (`--config.autoencoder`, `--config.text.folder`); the denoiser
starts fresh, or from that folder with `--config.init_from`. Images become latents once, at the start, in the memory of
every process: for more than some hundred thousand, encode them first with `lgm encode` and give `--config.data.cache`.
Text is encoded in each step, by encoders that are split over the chips like the denoiser, unless there is such a cache,
which has it too. Planning needs no folder.

Batch and mesh are for the machine that the README's table names; both are one flag away (`--config.batch_size`,
`--config.mesh.fsdp`). Expect of a step what that table says.
"""

from ml_collections import ConfigDict

FLOW = dict(
    process=dict(name="rectified_flow"),
    loss=dict(target="flow", density=dict(name="logit_normal", mean=0.0, std=1.0, shift=3.0)),
    sampling=dict(solver="euler", steps=28, guidance=5.0, schedule=dict(shift=3.0), count=16, every_images=10_000_000),
)
SYSTEMS = {
    "sdxl": dict(
        model=dict(
            family="unet", block_channels=(320, 640, 1280), transformer_depth=(0, 2, 10), mid_depth=10,
            heads=(5, 10, 20), text_dim=2048, pooled_dim=1280, micro_ids=6, linear_projection=True, remat="full",
        ),
        process=dict(name="ddpm", schedule="scaled_linear"),
        loss=dict(target="eps", density=dict(name="discrete", steps=1000)),
        sampling=dict(solver="ddim", steps=50, guidance=5.0, count=16, every_images=10_000_000),
        batch_size=64, mesh=dict(fsdp=8),
    ),
    "sd3_medium": dict(model=dict(family="mmdit", remat="full"), **FLOW, batch_size=1024, mesh=dict(fsdp=16)),
    "sd35_large": dict(
        model=dict(family="mmdit", width=2432, depth=38, heads=38, qk_norm="rms", remat="full"),
        **FLOW, batch_size=1024, mesh=dict(fsdp=32),
    ),
    "flux_dev": dict(
        model=dict(family="flux", guidance=True, remat="full"), **FLOW, batch_size=512, mesh=dict(fsdp=32),
    ),
    "z_image": dict(model=dict(family="z_image", remat="full"), **FLOW, batch_size=512, mesh=dict(fsdp=32)),
    "qwen_image": dict(model=dict(family="qwen_image", remat="full"), **FLOW, batch_size=512, mesh=dict(fsdp=64)),
    "flux2_dev": dict(model=dict(family="flux2", remat="full"), **FLOW, batch_size=512, mesh=dict(fsdp=32)),
    "flux2_klein_9b": dict(
        model=dict(family="flux2", width=4096, single_depth=24, heads=32, text_dim=12_288, guidance=False,
                   remat="full"),
        **FLOW, batch_size=512, mesh=dict(fsdp=32),
    ),
}  # fmt: skip


def get_config(arg="sd3_medium"):
    if arg not in SYSTEMS:
        raise ValueError(f"{arg!r}: give one of {', '.join(SYSTEMS)}")
    system = SYSTEMS[arg]
    folder = f"models/{arg}"
    return ConfigDict(dict(
        name=arg,
        batch_size=system["batch_size"],
        total_images=500_000_000,
        data=dict(source="data/images", where=dict(split="train"), heldout_where=dict(split="heldout"),
                  resolution=1024, latents="memory"),
        autoencoder=folder,
        text=dict(folder=folder, caption_dropout=0.0 if arg.endswith("_dev") else 0.1),  # distilled from guidance
        model=dict(system["model"], dtype="bfloat16"),
        process=system["process"],
        loss=system["loss"],
        optimizer=dict(lr=1e-4, warmup_images=2_000_000, schedule="constant", b2=0.99, weight_decay=0.01),
        ema=dict(half_life_images=5_000_000),
        mesh=system["mesh"],
        sampling=system["sampling"],
        evaluation=dict(every_images=5_000_000, batch_size=256),
        log=dict(every_images=50_000, checkpoint_every_images=2_000_000),
    ))
