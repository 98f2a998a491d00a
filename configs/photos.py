"""A folder of one's own photos, with what each shows in a .txt beside it, at their own shapes.

    lgm data photos --resolution=128 --step=16 --sheet=photos.png      what is there, and what will be seen of it
    lgm train --config=configs/photos.py:photos --workdir=runs/photos
    lgm sample --workdir=runs/photos --prompt="a dog on a beach" --out=dog.png

Photos are JPEG, PNG, WebP or what else Pillow reads, `beach/001.jpg` with `beach/001.txt`; a folder with metadata.jsonl
or .csv (`file_name`, `text`) does too, and without captions the folders' names are the classes that are drawn. One in
twenty is held out by its name; `config.data.heldout_where` says otherwise. A photo is scaled and cut to the size of
nearest shape, of about 128 x 128 pixels; all become latents at the start. With `--config.data.latents=step` they do as
they are served, and `--config.data.flip=True` then mirrors half of them, where left may be right.

The shipped autoencoder, made for emoji, gives 25 to 30 dB on photos of 256 pixels: soft, and good enough to see what is
learnt; `--config.autoencoder=FOLDER` names one of diffusers. A model of this size learns from scratch what a few
hundred photos look like, colours and layout first: 2 cores see some 12 to 25 images a second, all 100,000 in two hours.
To draw what is in the photos well, go on from a released model instead: `lgm import --from=MODEL --data=photos`.
"""

from ml_collections import ConfigDict


def get_config(folder="photos"):
    width = 256
    return ConfigDict(dict(
        name="photos",
        batch_size=16,
        total_images=100_000,
        data=dict(source=folder, resolution=128, buckets=16),
        text=dict(
            encoder=dict(family="clip_text", vocab_size=4096, width=width, depth=2, heads=4, max_length=32,
                         causal=False),
            caption_dropout=0.1,
        ),
        model=dict(
            family="mmdit", channels=32, patch_size=2, width=width, depth=6, heads=4, text_dim=width, pooled_dim=width,
            position_size=16, base_size=8, qk_norm="rms",
        ),
        process=dict(name="rectified_flow"),
        loss=dict(target="flow", density=dict(name="logit_normal", mean=0.0, std=1.0)),
        optimizer=dict(lr=1e-3, warmup_images=2_000, schedule="cosine", b2=0.95),
        ema=dict(half_life_images=5_000),
        sampling=dict(steps=30, guidance=2.0, count=8, every_images=10_000),
        evaluation=dict(every_images=10_000, batch_size=8, max_images=64),
        log=dict(every_images=800, checkpoint_every_images=5_000),
    ))
