"""Bytes that a cache of `lgm encode` takes a million images, of each released system, and what fewer bits lose.

    python tools/cache_sizes.py             a table of GB a million images with different captions, from shapes alone
    python tools/cache_sizes.py --errors    the errors of float16, bfloat16 and int8 beside float32

The table needs no weights and takes seconds. The errors are of text encoders of the published widths with two layers
and random weights, and of what a Flux of width 512 predicts of noise when it is told those states: a minute of a core,
6 GB. Released encoders have a few channels far larger than all others, which one scale a token feels and a float does
not: so states are also measured with one channel in a thousand made 30 times as large.
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from lgm import config as schema  # noqa: E402
from lgm.data.states import STORED, packed, row_bytes  # noqa: E402
from lgm.models import Conditioning, build, family  # noqa: E402
from lgm.parsing import as_dict  # noqa: E402
from lgm.planning.abstract import abstract_system  # noqa: E402
from lgm.systems.cached_text import reached  # noqa: E402

SYSTEMS = {  # title: (family, preset, side in pixels)
    "SD1.5": ("unet", "sd15", 512), "SDXL": ("unet", "sdxl", 1024), "SD3-medium": ("mmdit", "sd3_medium", 1024),
    "SD3.5-medium": ("mmdit", "sd35_medium", 1024), "SD3.5-large": ("mmdit", "sd35_large", 1024),
    "Flux.1-dev": ("flux", "flux_dev", 1024), "Flux.1-schnell": ("flux", "flux_schnell", 1024),
    "Z-Image": ("z_image", "z_image", 1024), "Qwen-Image": ("qwen_image", "qwen_image", 1024),
    "Flux.2-dev": ("flux2", "flux2_dev", 1024), "Flux.2-klein-9B": ("flux2", "flux2_klein_9b", 1024),
}  # fmt: skip
ENCODERS = {"T5-XXL": ("t5", "t5_v1_1_xxl", {}), "CLIP bigG": ("clip_text", "open_clip_bigg", {"pool": 999}),
            "Qwen3-4B": ("causal_text", "qwen3_4b", {"hidden": (1,)})}  # fmt: skip
COUNTED = 60  # tokens of a prompt, where padding is not kept
TOKENS, PROMPTS, LARGER = 77, 4, 30.0


def sizes() -> None:
    """Print the table."""
    print("| system | latents, float16 | float32 | text, bfloat16 or float16 | int8 | float32 |\n"
          "|---|--:|--:|--:|--:|--:|")
    for title, (name, preset, side) in SYSTEMS.items():
        model = {"family": name, **as_dict(family(name).config(**family(name).presets[preset]))}
        told = model.get("guidance")
        config = schema.from_dict({
            "name": preset, "model": model, "total_images": 32, "autoencoder": f"models/{preset}",
            "text": {"folder": f"models/{preset}"}, "data": {"resolution": side, "cache": "cache"},
            "process": {"name": "rectified_flow" if name != "unet" else "ddpm"},
            "loss": {"target": "flow" if name != "unet" else "eps"}, "sampling": {"guidance": 3.5 if told else 2.0}})
        system = abstract_system(config)[0]
        height, width, channels = system.latent_shape()
        form = dict(system.folder.form)
        cells = reached(system.folder.folder)
        if masked := "text_mask" in form:
            length, wide = form["text"][0]
            form["text"] = (COUNTED, wide), form["text"][1]
        latents = 1e-3 * height * width * channels
        gigabytes = [2 * latents, 4 * latents, *(1e-3 * row_bytes(form, stored, cells)
                                                 for stored in ("bfloat16", "int8", "float32"))]  # fmt: skip
        note = f" ({COUNTED} of {length} tokens)" if masked else ""
        print(f"| {title}, {side} px{note} | " + " | ".join(f"{size:,.0f}" for size in gigabytes) + " |")


def served(states: np.ndarray, stored: str) -> np.ndarray:
    """States [N, L, D] as they come back from the disk."""
    kept = packed({"text": states}, stored)
    values = kept["text"].astype(np.float32)
    return values * kept["text_scale"][..., None] if stored == "int8" else values


def relative(ours: np.ndarray, truth: np.ndarray) -> float:
    """The root mean square of the difference over that of the truth."""
    return float(np.sqrt(np.mean(np.square(ours - truth)) / np.mean(np.square(truth))))


def errors() -> None:
    """Print relative errors of states and of predictions."""
    print("| encoder | stored as | error of states | with outliers | of a prediction | with outliers |\n"
          "|---|---|--:|--:|--:|--:|")
    random = np.random.default_rng(0)
    for title, (name, preset, changes) in ENCODERS.items():
        config = family(name).config(**{**family(name).presets[preset], "depth": 2, "vocab_size": 1000, **changes})
        model = build(config)
        ids = jnp.asarray(random.integers(2, 998, (PROMPTS, TOKENS)), jnp.int32)
        params = jax.jit(model.init)(jax.random.key(0))
        found = model.apply(params, ids)
        plain = np.asarray(found[0] if isinstance(found, tuple) else found, np.float32)
        larger = plain.copy()
        larger[..., random.choice(plain.shape[-1], plain.shape[-1] // 1000 + 1, False)] *= LARGER
        predict = predictor(plain.shape[-1])
        truths = [predict(states) for states in (plain, larger)]
        for stored in STORED[1:]:
            columns = [(relative(kept := served(states, stored), states), relative(predict(kept), truth))
                       for states, truth in zip((plain, larger), truths, strict=True)]  # fmt: skip
            shown = [columns[0][0], columns[1][0], columns[0][1], columns[1][1]]
            print(f"| {title}, {plain.shape[-1]} wide | {stored} | " + " | ".join(f"{v:.1e}" for v in shown) + " |")


def predictor(width: int):
    """What a small Flux of random weights predicts of one noise, as a function of the states of text."""
    model = build(family("flux").config(width=512, depth=2, single_depth=2, heads=4, text_dim=width, pooled_dim=8))
    params = model.init(jax.random.key(1))
    leaves, tree = jax.tree.flatten(params)  # layers that start at zero must not hide what they are told
    params = tree.unflatten([leaf + 0.02 * jax.random.normal(jax.random.key(i), leaf.shape)
                             for i, leaf in enumerate(leaves)])  # fmt: skip
    noise = jax.random.normal(jax.random.key(2), (PROMPTS, 16, 16, 16))
    run = jax.jit(lambda text: model.apply(params, noise, jnp.full(PROMPTS, 0.5),
                                           Conditioning(text=text, pooled=jnp.ones((PROMPTS, 8)))))  # fmt: skip
    return lambda states: np.asarray(run(states))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--errors", action="store_true")
    (errors if parser.parse_args().errors else sizes)()
