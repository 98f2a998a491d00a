"""Train a small vocabulary on an image set's captions and keywords.

The shipped one:  python tools/train_tokenizer.py --out lgm/data/tokenizer/emoji64.json
Your own:         python tools/train_tokenizer.py --source FOLDER --out FOLDER/tokenizer.json
"""

import argparse

import numpy as np

from lgm.data import open_images
from lgm.data.wordpiece import train_tokenizer
from lgm.files import write_atomically

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--source", default="emoji64", help="an image folder or zip (default: emoji64)")
parser.add_argument("--out", required=True, help="the JSON file to write")
parser.add_argument("--vocab-size", type=int, default=4096)
arguments = parser.parse_args()

images = open_images(arguments.source)
keywords = [word for row in images.rows for word in row.get("keywords", ())]
tokenizer = train_tokenizer(images.captions, keywords, arguments.vocab_size)
write_atomically(arguments.out, tokenizer.to_str().encode())
lengths = np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(images.captions)])
print(f"{tokenizer.get_vocab_size()} entries; captions have {lengths.min()} to {lengths.max()} tokens, "
      f"{lengths.mean():.1f} on average, begin and end included")
