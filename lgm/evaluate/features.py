"""Feature networks by name or by file: what a metric compares images by, and the hash that says which features.

    efficientnet_lite0      comes with the package; trained on ImageNet's classes
    emoji_contrastive       comes with the package; pictures and captions of emoji, trained on them
    inception:FILE          Inception-v3 of FID, resized as TensorFlow 1 did (torch-fidelity's numbers)
    inception_torch:FILE    the same network, resized as pytorch-fid does
    inception_clean:FILE    the same network, resized as clean-fid does
    clip:FOLDER             the towers of a CLIPModel of transformers, prepared as its folder says
    cmmd:FOLDER             the same, prepared as CMMD's authors do
    dinov2:FOLDER           a Dinov2Model of transformers
    contrastive:FOLDER      what tools/train_contrastive.py made

A path alone is taken for what it holds: a .safetensors file for inception:, a folder for clip: or dinov2:. The public
files of Inception's weights are pickles, which are not read; convert one where its origin is trusted:

    python -c "import torch, safetensors.torch as s; s.save_file(torch.load('IN.pth', weights_only=True), 'OUT.safetensors')"
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lgm.evaluate.networks.source import Source
from lgm.evaluate.preparation import Preparation
from lgm.evaluate.sources import SOURCES, source_of
from lgm.parallel import fetch

BATCH = 32  # images a device at a time, on any number of devices, so that each runs one program


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """A network that turns images, and perhaps captions, into vectors.

    Attributes:
      name: what `load_features` was asked for, without folders.
      dim: how many features there are.
      hash: of the weights and of the preparation; numbers compare where it is one.
      preparation: how images become the network's input.
    """

    name: str
    dim: int
    hash: str
    preparation: Preparation
    source: Source = dataclasses.field(repr=False)

    @property
    def input_size(self) -> int:
        """Pixels a side of what the network sees."""
        return self.preparation.size

    def features(self, images_BHWC: np.ndarray, devices: Sequence[jax.Device] | None = None) -> np.ndarray:
        """Float32 [B, D] of uint8 images [B, H, W, 3], on this process's devices.

        Every device computes batches of `BATCH` images, the last ones repeated, so that an image's features do not
        depend on how many devices or images there are. On CPUs they depend, by 2e-7 of the largest, on how many threads
        XLA divides products among: as many as cores, or as devices where those are made to be more.
        """
        images = np.asarray(images_BHWC)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
            raise ValueError(f"{images.dtype} {images.shape} are no uint8 images [B, H, W, 3]")
        devices = jax.local_devices() if devices is None else list(devices)
        devices = devices[: -(-len(images) // BATCH)]
        act, params = _program(self, tuple(devices))
        size = BATCH * len(devices)
        found = []
        for start in range(0, len(images), size):
            rows = np.minimum(np.arange(start, start + size), len(images) - 1)
            found.append(fetch(act(params, images[rows]))[: len(images) - start])
        return np.concatenate(found)

    def check(self, part: str) -> None:
        """Raise ValueError, one line, for a network without `part`, "classes" or "text"."""
        if part == "classes" and self.source.classes is None:
            raise ValueError(f"{self.name} tells no classes apart; an Inception score needs inception:FILE or "
                             "efficientnet_lite0")
        if part == "text" and self.source.text is None:
            raise ValueError(f"{self.name} reads no captions; CLIP score and retrieval need clip:FOLDER or "
                             "emoji_contrastive")

    def probabilities(self, features_BD: np.ndarray) -> np.ndarray:
        """Float64 [B, classes] of features, for the Inception score. Raises ValueError for a network without classes.

        Inception's are without the bias of its last layer, as the score's authors have them.
        """
        self.check("classes")
        kernel, bias = (np.asarray(part, np.float64) for part in self.source.classes)
        logits = np.asarray(features_BD, np.float64) @ kernel + bias
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    def text(self, captions: Sequence[str]) -> np.ndarray:
        """Float32 [B, D] of captions, to be compared with images' by their angle. Raises ValueError for a network
        without a text tower."""
        self.check("text")
        encode, params, tokenize = self.source.text
        act = _jitted(encode)
        found = []
        for start in range(0, len(captions), BATCH):
            rows = np.minimum(np.arange(start, start + BATCH), len(captions) - 1)
            found.append(np.asarray(act(params, *tokenize([captions[row] for row in rows])))[: len(captions) - start])
        return np.concatenate(found)


def load_features(name: str | Path) -> Features:
    """The feature network of a name or path; see this module. Raises ConfigError or ValueError, one line."""
    kind, path = source_of(str(name))
    source = SOURCES[kind](path)
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(source.preparation), sort_keys=True).encode())
    for part in (source.params, source.classes, source.text and source.text[1]):
        for leaf in jax.tree.leaves(part):
            digest.update(np.ascontiguousarray(leaf))
    label = f"{kind}:{Path(path).name}" if path else kind
    return Features(label, source.dim, digest.hexdigest()[:16], source.preparation, source)


@functools.cache
def _jitted(encode: Callable):
    def act(params, *arrays):
        with jax.default_matmul_precision("highest"):  # or a GPU and a TPU would round products to fewer bits
            return encode(params, *arrays)

    return jax.jit(act)


@functools.lru_cache(maxsize=8)
def _program(features: Features, devices: tuple[jax.Device, ...]) -> tuple[Callable, Mapping]:
    """(program over the devices' shares of a batch, the weights on each of them)."""
    source, mesh = features.source, Mesh(np.asarray(devices), ("batch",))
    whole, split = PartitionSpec(), PartitionSpec("batch")

    def act(params, images):
        with jax.default_matmul_precision("highest"):
            return source.image(params, source.preparation(images))

    act = jax.shard_map(act, mesh=mesh, in_specs=(whole, split), out_specs=split)
    return jax.jit(act), jax.device_put(source.params, NamedSharding(mesh, whole))
