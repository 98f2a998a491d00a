import sys

import numpy as np
import tensorflow_datasets as tfds

from lgm.data import open_images
from lgm.data.tfds_builders import Flags


def test_the_shipped_flags_are_read_as_a_tensorflow_dataset_without_tensorflow(tmp_path, monkeypatch):
    Flags(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    for split in ("train", "heldout"):
        ours, theirs = open_images(f"tfds:flags:{split}"), open_images("flags", {"split": split})
        assert len(ours) == len(theirs) > 20 and list(ours.rows) == list(theirs.rows)
        some = range(0, len(ours), 20)
        assert [ours.content(i) for i in some] == [theirs.content(i) for i in some]
    np.testing.assert_array_equal(ours.image(3, (24, 36)), theirs.image(3, (24, 36)))
    assert len(open_images("tfds:flags")) == 235 and "tensorflow" not in sys.modules
