"""Train the shipped vocabulary on the captions of emoji64: python tools/train_tokenizer.py --out tokenizer.json"""

import argparse

from lgm.data import open_images
from lgm.data.wordpiece import train_tokenizer
from lgm.files import write_atomically

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", required=True)
parser.add_argument("--vocab-size", type=int, default=3000)
arguments = parser.parse_args()

rows = open_images("emoji64").rows
texts = [text for row in rows for text in (row["text"], *row["keywords"])]
tokenizer = train_tokenizer(texts, arguments.vocab_size)
write_atomically(arguments.out, tokenizer.to_str(pretty=True).encode())
lengths = [len(tokenizer.encode(row["text"]).ids) for row in rows]
print(f"{tokenizer.get_vocab_size()} entries; captions have {min(lengths)} to {max(lengths)} tokens")
