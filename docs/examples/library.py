"""From images to pictures with the library alone, as README.md has it: a DiT learns four styles of faces.

    python docs/examples/library.py

A minute on 2 CPU cores; writes library.png.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from lgm import gaussian, losses, models, sampling
from lgm.data import open_images, save_grid
from lgm.models.autoencoder import standardize, unstandardize
from lgm.weights import load_autoencoder

STYLES = ("fluent-3d", "fluent-flat", "noto", "twemoji")
faces = open_images("emoji64", {"subcategory": "face-smiling", "split": "train"})
styles = jnp.array([next(i for i, style in enumerate(STYLES) if style in caption) for caption in faces.captions])

autoencoder, weights = load_autoencoder("emoji64")
encode, decode = (jax.jit(functools.partial(autoencoder.apply, method=name)) for name in ("encode", "decode"))
mean, _ = encode(weights, faces.images() / 127.5 - 1.0)  # images are uint8 [N, 64, 64, 3]
latents = standardize(autoencoder.config, mean)  # [N, 8, 8, 32] of unit variance

config = models.classes("dit")[0](channels=32, patch_size=1, width=64, depth=2, heads=2, base_size=8,
                                  classes=len(STYLES), learned_sigma=False)  # fmt: skip
model = models.build(config)
params = model.init(jax.random.key(0))
flow = gaussian.build("rectified_flow")
loss = losses.denoising(flow, "flow", losses.density("logit_normal"), losses.weighting("constant"))
optimizer = optax.adam(3e-3)


@jax.jit
def train_step(params, state, latents, cond, key):
    predict = lambda params: lambda x, t, cond: model.apply(params, x, t, cond)
    (value, _), slope = jax.value_and_grad(lambda p: loss(predict(p), latents, cond, key), has_aux=True)(params)
    updates, state = optimizer.update(slope, state)
    return optax.apply_updates(params, updates), state, value


state = optimizer.init(params)
for step, key in enumerate(jax.random.split(jax.random.key(1), 100)):
    rows = jax.random.choice(key, len(latents), (32,))
    params, state, value = train_step(params, state, latents[rows], models.Conditioning(label=styles[rows]), key)
    if step % 20 == 0:
        print(f"step {step}: loss {value:.3f}")

cond = models.Conditioning(label=jnp.arange(len(STYLES)))
noise = jax.random.normal(jax.random.key(2), (len(STYLES), *latents.shape[1:]))
predict = lambda x, t: model.apply(params, x, t, cond)
drawn = sampling.sample(sampling.solver("heun"), flow, "flow", predict, noise, sampling.times(flow, 10))
images = decode(weights, unstandardize(autoencoder.config, drawn))
save_grid("library.png", jax.device_get(jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)), STYLES)
