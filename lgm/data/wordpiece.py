"""The small tokenizer of models that learn text from scratch: lower-case WordPiece trained on the shipped captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

SHIPPED = {"emoji64": "tokenizer/emoji64.json"}
PAD, UNKNOWN, BEGIN, END = "[pad]", "[unk]", "[begin]", "[end]"


class Tokenizer:
    """Captions to fixed-length ids. `source` is "emoji64" or a `tokenizers` JSON file with the four special tokens."""

    def __init__(self, source: str = "emoji64", max_length: int = 16, truncate: bool = False):
        path = resources.files("lgm.data") / SHIPPED[source] if source in SHIPPED else Path(source)
        if not path.is_file():
            raise ValueError(f"text.tokenizer={source!r} is not there; give {', '.join(SHIPPED)} or a tokenizer.json")
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(path.read_text())
        except Exception as error:  # the library raises its own bare Exception
            line = str(error).splitlines()[0]
            raise ValueError(f"text.tokenizer={source!r} is no tokenizer.json ({line})") from None
        self.max_length, self.truncate = max_length, truncate
        self.pad = self.tokenizer.token_to_id(PAD)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.tokenizer.get_vocab_size()

    def encode(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids [B, L] int32, mask [B, L] bool, True where a token counts), begin and end tokens included.

        Raises ValueError for an empty caption and, unless `truncate`, for one of more than `max_length` tokens.
        """
        for caption in captions:
            if not caption.strip():
                raise ValueError("a caption is empty; every image and prompt needs words")
        return self._rows([encoding.ids for encoding in self.tokenizer.encode_batch(list(captions))], captions)

    @property
    def unconditional(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask [L] of no caption at all: what guidance extrapolates from."""
        ids, mask = self._rows([self.tokenizer.encode("").ids], [""])
        return ids[0], mask[0]

    def _rows(self, encoded: list[list[int]], captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.full((len(encoded), self.max_length), self.pad, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, (tokens, caption) in enumerate(zip(encoded, captions, strict=True)):
            if len(tokens) > self.max_length:
                if not self.truncate:
                    raise ValueError(
                        f"the caption {caption!r} has {len(tokens)} tokens, more than the {self.max_length} of "
                        "config.text.encoder.max_length; shorten it or raise max_length"
                    )
                tokens = [*tokens[: self.max_length - 1], tokens[-1]]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
        return ids, mask


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A WordPiece vocabulary over lower-cased words; whole words where they recur, pieces elsewhere."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase(), normalizers.StripAccents()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=[PAD, UNKNOWN, BEGIN, END],
                                        show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    special = [(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A {END}", special_tokens=special)
    return tokenizer
