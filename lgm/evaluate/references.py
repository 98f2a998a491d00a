"""The pictures that others are held to, or that are measured themselves: data sets, folders, files of statistics."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from lgm.config import sections
from lgm.data import ImageSet, open_data, open_images
from lgm.data.decoding import fitted, picture, stored_size
from lgm.evaluate.protocol import OWN
from lgm.parsing import ConfigError

STATISTICS = (".npz", ".safetensors")  # files of means and covariances


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images read at one `size` = (height, width) by one filter: scaled to cover it, and cut in the middle."""

    images: ImageSet
    size: tuple[int, int]
    resize: str = "lanczos"

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3]. Raises ValueError, one line with the file's name, for an image that is damaged."""
        return np.stack([fitted(picture(self.images.content(row), self.images.name(row)), self.size, by=self.resize)
                         for row in rows.tolist()])


def is_statistics(source: str) -> bool:
    """Whether a reference is a file of statistics and not of pictures."""
    return Path(source).suffix in STATISTICS


def open_set(source: str, where: dict[str, Any], caption: str | None, data: sections.Data | None) -> ImageSet:
    """The images of `source` that match `where`: a data set's, a folder's, or a run's own ("train" or "heldout"), whose
    config has `data`. `caption` is the field of their captions, None where those do not matter.

    Raises ValueError, one line, for what cannot be read and for images that are none.
    """
    if source in OWN:
        if data is None:
            raise ConfigError(f"{source!r} are the images of a run, and what is measured is none; name a data set or a "
                              "folder, as 'emoji64' or 'photos'")
        if where:
            raise ConfigError(f"{source!r} are a run's own images, chosen by its config; leave where={where} out")
        return open_data(data)[OWN.index(source)]
    try:
        return open_images(source, where, caption="" if caption is None else caption)
    except ValueError as error:
        raise ConfigError(str(error).replace("config.data.source=", "images of ")) from None


def common_size(images: ImageSet) -> tuple[int, int]:
    """(height, width) of all images. Raises ConfigError, one line, where they differ, for features of pictures that
    were each resized by another factor compare with nothing."""
    first = stored_size(images.content(0), images.name(0))
    for row, size in enumerate(images.sizes()):
        if tuple(size) != first:
            stored_size(images.content(row), images.name(row))  # one that cannot be read says so
            raise ConfigError(f"{images.name(row)} has {size[1]} x {size[0]} pixels, {images.name(0)} {first[1]} x "
                              f"{first[0]}; say a size, as --size={min(first)}, that all are brought to")
    return first


def pixel_hashes(images_NHWC: np.ndarray) -> np.ndarray:
    """[N, 32] uint8: the SHA-256 of each image's shape and pixels."""
    of = lambda image: hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()
    return np.stack([np.frombuffer(of(image), np.uint8) for image in images_NHWC])
