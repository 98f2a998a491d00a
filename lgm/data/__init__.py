"""Images, captions, tokens and batches of them."""

from lgm.data.grid import save_grid
from lgm.data.images import ImageSet, open_images
from lgm.data.pipeline import batches
from lgm.data.wordpiece import Tokenizer

__all__ = ["ImageSet", "Tokenizer", "batches", "open_images", "save_grid"]
