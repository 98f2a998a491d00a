"""The autoencoder's task: images to latents and back, on random crops."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lgm.config import Config
from lgm.data import Bad, ImageSet, batches, open_data, save_grid
from lgm.data.varying import view
from lgm.losses import reconstruction
from lgm.models import Model, build
from lgm.models.autoencoder import fold
from lgm.parallel import Layout, batch_part, fetch, using
from lgm.train.feeding import tell_overlap
from lgm.train.loop import Task


def make_task(config: Config, layout: Layout, workdir: Path) -> Task:
    """Everything the loop needs to train `config`'s autoencoder."""
    autoencoder = build(config.model)
    data, bad = config.data, Bad(config.data.bad_share)
    images, heldout = (part.whole(bad) for part in open_data(data, bad))
    tell_overlap(config, images, heldout, workdir)
    part, parts = batch_part(layout)
    pixels = images.images()
    seen = lambda indices, servings: {"image": mirrored(pixels[indices], config, servings)}
    iterator = batches({}, derived=seen, serving=True, length=len(images), parts=images.parts,
                       weights=data.weights, batch_size=config.batch_size, seed=config.seed, process_index=part,
                       process_count=parts)
    start = linear_start(config, images) if config.model.linear_skip else {}
    size = (data.crop,) * 2 if data.crop else data.size
    one = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return Task(
        init=lambda key: {"autoencoder": initial(config, autoencoder.init(key), start)},
        logical_axes={"autoencoder": autoencoder.logical_axes()},
        loss=make_loss(config, autoencoder, layout),
        frozen={},
        batches=iterator,
        flops=3.0 * autoencoder.flops(one, method="reconstruct"),
        executed_flops=3.0 * autoencoder.flops(one, method="reconstruct", executed=True),
        heldout=lambda params: heldout_psnr(config, autoencoder, params, heldout),
        pictures=lambda params, path: picture(config, autoencoder, params, heldout, path),
    )


def mirrored(x_BHWC: np.ndarray, config: Config, servings: np.ndarray) -> np.ndarray:
    """Images of which half are flipped, left to right, where `config.data.flip` asks for it."""
    if not config.data.flip:
        return x_BHWC
    turned = np.array([view(config.seed, int(number), True, False).flipped for number in servings])
    return np.where(turned[:, None, None, None], x_BHWC[:, :, ::-1], x_BHWC)


def initial(config: Config, params, start: dict):
    """Fresh parameters made quick to train: residual blocks that start as the identity, little posterior noise, and
    the linear path, if there is one, at `start`."""
    zero = lambda path, leaf: jnp.zeros_like(leaf) if jax.tree_util.keystr(path[-2:], simple=True,
                                                                           separator="/") == "conv2/kernel" else leaf
    params = jax.tree_util.tree_map_with_path(zero, params)
    bias = params["encoder"]["conv_out"]["bias"]
    params["encoder"]["conv_out"]["bias"] = bias.at[config.model.latent_channels:].set(-6.0)
    return params | jax.tree.map(jnp.asarray, start)


def linear_start(config: Config, images: ImageSet, count: int = 2048) -> dict:
    """The linear path that principal components of f x f patches make, the best linear autoencoder there is.

    A component of standard deviation s becomes a latent channel of deviation proportional to sqrt(s), halfway between
    the image's own spectrum and a white one; the root mean square over channels is 1.
    """
    rows = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)
    pixels = images.take(rows).images().astype(np.float32) / 127.5 - 1.0
    patches = np.asarray(fold(pixels, config.model.factor)).reshape(-1, 3 * config.model.factor**2)
    centre = patches.mean(0)
    variance, axes = np.linalg.eigh(np.cov(patches - centre, rowvar=False))
    order = np.argsort(variance)[::-1][: config.model.latent_channels]
    deviation, axes = np.sqrt(variance[order]), axes[:, order]
    shrink = np.sqrt(deviation) * np.sqrt(np.mean(deviation))
    into = axes / shrink
    return {
        "linear_in": {"kernel": into.astype(np.float32), "bias": (-centre @ into).astype(np.float32)},
        "linear_out": {"kernel": (axes * shrink).T.astype(np.float32), "bias": centre.astype(np.float32)},
    }


def make_loss(config: Config, autoencoder: Model, layout: Layout | None = None):
    """The loss of a batch {"image": uint8 [B, H, W, 3]}: random crops through the sampled posterior."""
    weights, crop = config.loss, config.data.crop

    def loss(params, frozen, batch, key):
        crop_key, noise_key, error_key = jax.random.split(key, 3)
        x = batch["image"].astype(jnp.float32) / 127.5 - 1.0
        if crop:
            x = random_crop(crop_key, x, crop)

        def apply(method, *arguments):
            with using(layout):
                return autoencoder.apply(params["autoencoder"], *arguments, method=method)

        mean, logvar = apply("encode", x)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(noise_key, mean.shape)
        y = apply("decode", disturbed(error_key, z, weights.noise) if weights.noise else z)
        error = (x - y).astype(jnp.float32)
        terms = {
            "l1": jnp.abs(error).mean(),
            "l2": jnp.square(error).mean(),
            "gradient": reconstruction.gradient_l1(x, y),
            "kl": reconstruction.kl_to_unit_gaussian(mean, logvar),
        }
        total = sum(getattr(weights, name) * value for name, value in terms.items())
        return total, terms | {"psnr": reconstruction.psnr(x, y).mean()}

    return loss


def disturbed(key: jax.Array, z_BHWC: jax.Array, most: float) -> jax.Array:
    """Every second image's latents with noise of up to `most` times each channel's deviation over the batch.

    In units of the deviation, so that no encoder escapes it by larger latents; the other half stays as it is, so that
    the image of undisturbed latents stays sharp.
    """
    level_key, noise_key = jax.random.split(key)
    level_B = most * jax.random.uniform(level_key, (len(z_BHWC), 1, 1, 1)).at[::2].set(0.0)
    deviation = jax.lax.stop_gradient(z_BHWC.std((0, 1, 2)))
    return z_BHWC + level_B * deviation * jax.random.normal(noise_key, z_BHWC.shape)


def random_crop(key: jax.Array, x_BHWC: jax.Array, side: int) -> jax.Array:
    """A square crop of each image at its own random place."""
    count, height, width, channels = x_BHWC.shape
    top, left = jax.random.randint(key, (2, count), 0, jnp.array([[height - side + 1], [width - side + 1]]))
    cut = lambda x, i, j: jax.lax.dynamic_slice(x, (i, j, 0), (side, side, channels))
    return jax.vmap(cut)(x_BHWC, top, left)


def reconstruct_all(config: Config, autoencoder: Model, params, images) -> tuple[np.ndarray, np.ndarray]:
    """(reconstructions in [-1, 1], latent means) of a whole image set, in chunks of one shape."""
    size = min(config.evaluation.batch_size, len(images))
    x_BHWC = images.images().astype(np.float32) / 127.5 - 1.0
    outputs = []
    for start in range(0, len(images), size):
        rows = np.minimum(np.arange(start, start + size), len(images) - 1)
        parts = _reconstruct(autoencoder, params["autoencoder"], x_BHWC[rows])
        outputs.append([fetch(part)[: len(images) - start] for part in parts])
    return tuple(np.concatenate(part) for part in zip(*outputs, strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(autoencoder: Model, params, x_BHWC):
    return autoencoder.apply(params, x_BHWC, method="reconstruct")


def heldout_psnr(config: Config, autoencoder: Model, params, heldout) -> dict[str, float]:
    """Mean PSNR in dB of held-out images, in all and by style where the metadata names one."""
    if not len(heldout):
        return {}
    y, _ = reconstruct_all(config, autoencoder, params, heldout)
    x = heldout.images().astype(np.float32) / 127.5 - 1.0
    values = np.asarray(reconstruction.psnr(x, y))
    styles = np.array([row.get("style", "") for row in heldout.rows])
    by_style = {f"heldout_psnr_{s}": float(values[styles == s].mean()) for s in sorted(set(styles) - {""})}
    return {"heldout_psnr": float(values.mean())} | by_style


def picture(config: Config, autoencoder: Model, params, heldout, path: Path | None) -> np.ndarray:
    """Held-out images with their reconstructions."""
    chosen = np.linspace(0, len(heldout) - 1, min(config.sampling.count, len(heldout))).astype(int)
    subset = heldout.take(chosen)
    y, _ = reconstruct_all(config, autoencoder, params, subset)
    real = subset.images()
    drawn = np.clip(np.round((y + 1) * 127.5), 0, 255).astype(np.uint8)
    return save_grid(path, drawn, subset.captions, beside=real)
