"""The shipped images as TensorFlow Datasets, so that `tfds:emoji64` and `tfds:flags` are read like any other's.

    python -c 'from lgm.data.tfds_builders import Flags; Flags(file_format="array_record").download_and_prepare()'
    lgm data tfds:flags:heldout

They are prepared without TensorFlow and without a network, in ArrayRecord, the format that is read without it too,
under ~/tensorflow_datasets, $TFDS_DATA_DIR or the argument `data_dir`. Records stand in the shipped order, images are
the shipped files' bytes.
"""

import io

import numpy as np
import tensorflow_datasets as tfds

from lgm.data.images import ImageSet, open_images


class Shipped(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A shipped set with a split for each word of its field "split"."""

    VERSION = tfds.core.Version("1.0.0")
    SOURCE: str

    def _info(self) -> tfds.core.DatasetInfo:
        fields = {name: _feature(value) for name, value in open_images(self.SOURCE).rows[0].items()}
        return tfds.core.DatasetInfo(
            builder=self, description=f"{self.SOURCE}, as lgm ships it", disable_shuffling=True,
            features=tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3)), **fields}))

    def _split_generators(self, dl_manager) -> dict:
        images = open_images(self.SOURCE)
        splits = dict.fromkeys(images.rows.values("split"))
        return {split: self._generate_examples(open_images(self.SOURCE, {"split": split})) for split in splits}

    def _generate_examples(self, images: ImageSet):
        for number, row in enumerate(images.rows):
            yield number, {"image": io.BytesIO(images.content(number)), **row}


class Emoji64(Shipped):
    """6,996 captioned emoji of 64 x 64 pixels in four styles."""

    SOURCE = "emoji64"


class Flags(Shipped):
    """256 flags at their own shapes."""

    SOURCE = "flags"


def _feature(value):
    if isinstance(value, list):
        return tfds.features.Sequence(tfds.features.Text())
    return tfds.features.Text() if isinstance(value, str) else tfds.features.Scalar(np.int64)
