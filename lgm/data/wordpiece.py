"""The small tokenizer of models that learn text from scratch: lower-case words, whole where they recur, else pieces."""

import collections
import string
import warnings
from collections.abc import Iterable, Sequence
from importlib import resources

import numpy as np
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors, trainers

from lgm.data.tokenizer_files import CutShort, open_tokenizer
from lgm.files import local

SHIPPED = {"emoji64": "tokenizer/emoji64.json"}
PAD, UNKNOWN, BEGIN, END = SPECIAL = ("[pad]", "[unk]", "[begin]", "[end]")


class Tokenizer:
    """Captions to fixed-length ids. `source` is "emoji64" or a file that `train_tokenizer` made."""

    def __init__(self, source: str = "emoji64", max_length: int = 16, truncate: bool = False):
        asked = f"config.text.tokenizer={source!r}"
        path = resources.files("lgm.data") / SHIPPED[source] if source in SHIPPED else local(source)
        if not path.is_file():
            raise ValueError(f"{asked} is not there; give {', '.join(SHIPPED)} or a tokenizer.json")
        try:
            self.tokenizer = open_tokenizer(path)
        except ValueError as error:
            raise ValueError(f"{asked}: {error}") from None
        if absent := [token for token in SPECIAL if self.tokenizer.token_to_id(token) is None]:
            raise ValueError(f"{asked} has no {', '.join(absent)}; make it with tools/train_tokenizer.py")
        if max_length < 3:
            raise ValueError(f"max_length={max_length} leaves no room for words between begin and end; give at least 3")
        self.max_length, self.truncate = max_length, truncate
        self.pad, self.unknown, self.begin, self.end = map(self.tokenizer.token_to_id, SPECIAL)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.tokenizer.get_vocab_size()

    def encode(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids [B, L] int32, mask [B, L] bool, True where a token counts), begin and end tokens included.

        Raises ValueError for a caption without words, one of which no word is known and, unless `truncate`, one of more
        than `max_length` tokens; a truncated one keeps its end token and is warned of (`CutShort`).
        """
        encodings = self.tokenizer.encode_batch(list(captions))
        rows = []
        for caption, encoding in zip(captions, encodings, strict=True):
            words = [token for token in encoding.ids if token not in (self.begin, self.end)]
            if not words:
                raise ValueError(f"the caption {caption!r} is empty; every image and prompt needs words")
            if all(token == self.unknown for token in words):
                raise ValueError(
                    f"the caption {caption!r} holds no word that the tokenizer knows; give config.text.tokenizer a "
                    "vocabulary trained on such captions"
                )
            if len(encoding.ids) > self.max_length and not self.truncate:
                raise ValueError(
                    f"the caption {caption!r} has {len(encoding.ids)} tokens, more than the {self.max_length} of "
                    "config.text.encoder.max_length; shorten it or raise max_length"
                )
            if len(encoding.ids) > self.max_length:
                warnings.warn(CutShort(caption, len(encoding.ids), self.max_length), stacklevel=2)
            rows.append(encoding.ids)
        return self._padded(rows)

    @property
    def unconditional(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask [L] of no caption at all: what guidance extrapolates from."""
        ids, mask = self._padded([[self.begin, self.end]])
        return ids[0], mask[0]

    def _padded(self, rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.full((len(rows), self.max_length), self.pad, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, tokens in enumerate(rows):
            tokens = tokens if len(tokens) <= self.max_length else [*tokens[: self.max_length - 1], tokens[-1]]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
        return ids, mask


def train_tokenizer(captions: Iterable[str], other: Iterable[str] = (), vocab_size: int = 4096, pieces: int = 1024
                    ) -> tokenizers.Tokenizer:
    """A vocabulary in which a caption's word is one token.

    It holds, in order and up to `vocab_size`: the special tokens, every character and its continuation, `pieces`
    word pieces learnt from all texts (for words never seen), the words of `captions` and the words of `other` texts,
    each by falling frequency. Case, accents and punctuation that joins or separates words do not count: "Fluent-3D,"
    is "fluent 3d".
    """
    captions, other = list(captions), list(other)
    tokenizer = _untrained({token: number for number, token in enumerate(SPECIAL)})
    ranked = [_words_by_frequency(tokenizer, texts) for texts in (captions, other)]
    seen = {character for words in ranked for word in words for character in word}
    characters = sorted(seen | set(string.ascii_lowercase + string.digits + string.punctuation))
    alphabet = [*SPECIAL, *characters, *(f"##{c}" for c in characters if c not in string.punctuation)]
    trainer = trainers.WordPieceTrainer(vocab_size=len(alphabet) + pieces, special_tokens=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*captions, *other], trainer)
    learnt = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = dict.fromkeys([*alphabet, *(token for token, _ in learnt), *ranked[0], *ranked[1]])
    return _untrained({token: number for number, token in enumerate(list(tokens)[:vocab_size])})


def _untrained(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFKD(),
        normalizers.Lowercase(),
        normalizers.StripAccents(),
        normalizers.Replace(Regex("['’]"), ""),  # worker's -> workers
        normalizers.Replace(Regex(r'[-–—_,.:;!?"“”()\[\]]'), " "),
    ])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(token, vocabulary[token]) for token in (BEGIN, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A {END}", special_tokens=special)
    return tokenizer


def _words_by_frequency(tokenizer: tokenizers.Tokenizer, texts: Iterable[str]) -> list[str]:
    counts = collections.Counter()
    for text in texts:
        words = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        counts.update(word for word, _ in words)
    return sorted(counts, key=lambda word: (-counts[word], word))
