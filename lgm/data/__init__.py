"""Images, captions, tokens and batches of them."""

from lgm.data.batches import batches
from lgm.data.cache import read_cache, write_index, write_shard
from lgm.data.class_names import class_names
from lgm.data.grid import save_grid
from lgm.data.images import ImageSet, open_images
from lgm.data.mixture import open_data, open_heldout
from lgm.data.quarantine import Quarantine
from lgm.data.sources import Bad
from lgm.data.wordpiece import Tokenizer

__all__ = ["Bad", "ImageSet", "Quarantine", "Tokenizer", "batches", "class_names", "open_data", "open_heldout",
           "open_images", "read_cache", "save_grid", "write_index", "write_shard"]  # fmt: skip
