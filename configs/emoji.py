"""All 6,996 captioned images, for one GPU: either architecture with either process.

    lgm train --config=configs/emoji.py:model=mmdit,process=flow --workdir=runs/emoji
    lgm train --config=configs/emoji.py:model=unet,process=eps --workdir=runs/emoji-unet

model: mmdit or unet. process: flow (rectified flow, logit-normal times), eps or v (discrete diffusion), edm. 195 pairs
of concept and style are held out; the held-out loss says whether a caption is understood, not remembered. Sized for one
80 GB GPU with bfloat16 products: 74M (MMDiT) and 75M (U-Net) parameters, and 8M of text encoder.
"""

from ml_collections import ConfigDict

MODELS = {
    "mmdit": dict(
        family="mmdit", channels=32, patch_size=1, width=512, depth=8, heads=8, text_dim=384, pooled_dim=384,
        position_size=8, base_size=8, qk_norm="rms", group=4, dtype="bfloat16",
    ),
    "unet": dict(
        family="unet", channels=32, block_channels=(192, 384), layers_per_block=2, transformer_depth=(2, 2),
        heads=(3, 6), text_dim=384, pooled_dim=384, linear_projection=True, dtype="bfloat16",
    ),
}
PROCESSES = {
    "flow": dict(
        process=dict(name="rectified_flow"),
        loss=dict(target="flow", density=dict(name="logit_normal", mean=0.0, std=1.0)),
        solver="euler",
    ),
    "eps": dict(
        process=dict(name="ddpm", schedule="scaled_linear"),
        loss=dict(target="eps", density=dict(name="discrete", steps=1000)),
        solver="ddim",
    ),
    "v": dict(
        process=dict(name="ddpm", schedule="scaled_linear", zero_terminal_snr=True),
        loss=dict(target="v", density=dict(name="discrete", steps=1000)),
        solver="ddim",
    ),
    "edm": dict(
        process=dict(name="edm", sigma_data=1.0),  # latents are standardised
        loss=dict(target="edm", density=dict(name="edm_log_normal", mean=-0.8, std=1.4)),
        solver="heun",
    ),
}


def get_config(arg="model=mmdit,process=flow"):
    choice = {"model": "mmdit", "process": "flow"}
    for part in arg.split(","):
        key, _, value = part.partition("=")
        table = {"model": MODELS, "process": PROCESSES}.get(key)
        if table is None or value not in table:
            raise ValueError(f"{part!r}: give model={'|'.join(MODELS)} and process={'|'.join(PROCESSES)}")
        choice[key] = value
    process = PROCESSES[choice["process"]]
    return ConfigDict(dict(
        name=f"emoji-{choice['model']}-{choice['process']}",
        batch_size=256,
        total_images=5_000_000,
        data=dict(source="emoji64", where=dict(split="train"), heldout_where=dict(split="heldout")),
        text=dict(
            encoder=dict(family="clip_text", vocab_size=4096, width=384, depth=4, heads=6, max_length=20, causal=False,
                         unroll=4, dtype="bfloat16"),
            caption_dropout=0.1,
        ),
        model=MODELS[choice["model"]],
        process=process["process"],
        loss=process["loss"],
        optimizer=dict(lr=4e-4, warmup_images=100_000, schedule="cosine", b2=0.99, weight_decay=0.01),
        ema=dict(half_life_images=200_000),
        sampling=dict(solver=process["solver"], steps=50, guidance=3.0, count=32, every_images=500_000),
        evaluation=dict(every_images=250_000, batch_size=195),
        log=dict(every_images=25_000, checkpoint_every_images=500_000),
    ))
