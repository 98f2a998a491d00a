r"""Four small cells on 159 faces, whose curves the README shows, U-Net and MMDiT by eps diffusion and by flow, and what
makes one of them faster.

    for cell in mmdit_flow mmdit_eps unet_flow unet_eps; do
        lgm train --config=tools/figures/few_steps/cells.py:$cell --workdir=runs/$cell
    done
    lgm train --config=configs/few_steps/reflow.py:runs/mmdit_flow --workdir=runs/reflow
    lgm train --config=configs/few_steps/one_step.py:runs/reflow --workdir=runs/one_step
    lgm train --config=configs/few_steps/mean_flow.py:runs/mmdit_flow --workdir=runs/mean_flow
    lgm train --config=configs/few_steps/shortcut.py:runs/mmdit_flow --workdir=runs/shortcut
    lgm train --config=runs/mmdit_flow/config.json --workdir=runs/circle --config.process.name=trigonometric \
        --config.loss.target=v --config.init_from=runs/mmdit_flow --config.total_images=4000 \
        --config.optimizer.lr=4e-3 --config.optimizer.warmup_images=200 --config.ema.half_life_images=400
    lgm train --config=configs/few_steps/consistency.py:runs/circle --workdir=runs/consistency
    lgm evaluate curves --protocol=tools/figures/few_steps/protocol.json --vary=steps=1,2,4,8,16,30 --out=curves \
        --workdir=runs/mmdit_flow --workdir=runs/reflow ...

Each trains in some 3 to 5 minutes of one CPU core. Networks and losses are those of configs/quickstart.py and
configs/quickstart_unet.py, with the objectives swapped, and shorter; nothing is tuned for a cell.
"""

from ml_collections import ConfigDict

FACES = [f"face-{kind}" for kind in ("smiling", "affection", "tongue", "sleepy", "hat", "glasses")]
MODELS = dict(
    unet=dict(family="unet", channels=32, block_channels=(64, 96), layers_per_block=1, transformer_depth=(1, 1),
              heads=(2, 3), text_dim=128, pooled_dim=128, norm_groups=32, linear_projection=True, residual=True),
    mmdit=dict(family="mmdit", channels=32, patch_size=1, width=128, depth=4, heads=4, text_dim=128, pooled_dim=128,
               position_size=8, base_size=16, qk_norm="rms"))
WAYS = dict(
    flow=dict(process=dict(name="rectified_flow"),
              loss=dict(target="flow", density=dict(name="logit_normal", mean=1.5, std=1.3)),
              sampling=dict(solver="euler", steps=30, guidance=2.0, count=16, every_images=0)),
    eps=dict(process=dict(name="ddpm", schedule="scaled_linear"),
             loss=dict(target="eps", density=dict(name="logit_normal", mean=0.9, std=1.4), weighting=dict(name="flow")),
             sampling=dict(solver="ddim", steps=30, guidance=2.0, clip=4.0, count=16, every_images=0)))


def get_config(cell="mmdit_flow"):
    model, way = cell.split("_")
    return ConfigDict(dict(
        name=cell, batch_size=16, total_images=8_000,
        data=dict(source="emoji64", where=dict(subcategory=FACES, split="train"),
                  heldout_where=dict(subcategory=FACES, split="heldout")),
        text=dict(encoder=dict(family="clip_text", vocab_size=4096, width=128, depth=2, heads=4, max_length=16,
                               causal=False, unroll=2, pool="mean"), caption_dropout=0.1),
        model=MODELS[model], **WAYS[way],
        optimizer=dict(name="muon", lr=8e-3, warmup_images=800, schedule="cosine", b2=0.99),
        ema=dict(half_life_images=800),
        evaluation=dict(every_images=0, max_images=16),
        log=dict(every_images=400, checkpoint_every_images=1_000, keep=20)))
