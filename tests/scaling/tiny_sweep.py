"""A sweep of two architectures and two objectives that trains in seconds."""

TINY = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict(dict(
        name="tiny",
        base=dict(
            batch_size=8,
            data=dict(where=dict(subcategory="face-hat"), heldout_where=dict(subcategory="face-glasses")),
            text=dict(encoder=dict(family="clip_text", vocab_size=4096, width=16, depth=1, heads=1, max_length=16)),
            optimizer=dict(warmup_images=16), ema=dict(half_life_images=10**9, ramp=0.1),
            evaluation=dict(times=1, levels=2, distance=3, batch_size=16, max_images=8),
            sampling=dict(count=0, steps=2),
            log=dict(every_images=16, checkpoint_every_images=16),
        ),
        architectures=dict(
            mmdit=dict(family="mmdit", sizes=(1, 2), lr=(1e-3, 3e-3), mup_size=1, together=4,
                       shape=dict(head_size=16, aspect=16.0, channels=32, patch_size=1, text_dim=16, pooled_dim=16,
                                  position_size=8, base_size=8)),
            unet=dict(family="unet", sizes=(1,), lr={1: 2e-3}, together=2, how="turns",
                      shape=dict(base="small", channels=32, text_dim=16)),
        ),
        objectives=dict(
            flow=dict(process=dict(name="rectified_flow"), loss=dict(target="flow")),
            eps=dict(process=dict(name="ddpm"), loss=dict(target="eps"), lr_factor=0.5),
        ),
        images=(40, 80), seeds=(0, 1), cooldown=0.4,
    ))
"""


def write(folder, *changes):
    """The path of the config, with (old, new) pieces of its text replaced."""
    text = TINY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "sweep.py"
    path.write_text(text)
    return path
