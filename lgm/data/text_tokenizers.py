"""Tokenizers of released text encoders, read from the files beside them: CLIP's BPE, T5's unigram, BERT's WordPiece.

They give the ids that transformers gives. Texts are padded to a fixed length and cut to it before the end token; which
length, which padding token and whether the padding counts is the pipeline's to say.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from lgm.files import write_atomically

# words as CLIP splits them: contractions, runs of letters, single digits, runs of anything else
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
UNLIMITED = 1_000_000  # transformers writes 1e30 where a tokenizer has no longest length


@dataclasses.dataclass(frozen=True, eq=False)
class TextTokenizer:
    """Texts to ids. `max_length` is the longest the text encoder takes, `pad` the id that fills a row up.

    `config` is what its tokenizer_config.json says, for `save` to say again.
    """

    tokenizer: tokenizers.Tokenizer
    max_length: int
    pad: int
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(ids [B, L] int32, mask [B, L] bool, True up to and with the end token); L is `length` or `max_length`.

        A text of more tokens is cut, keeping the end token, with a warning that says how much of it is lost.
        """
        length = self.max_length if length is None else length
        if length >= UNLIMITED:
            raise ValueError("this tokenizer knows no longest length; say how long the rows are to be")
        ids = np.full((len(texts), length), self.pad, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, encoding in enumerate(self.tokenizer.encode_batch(list(texts))):
            tokens = encoding.ids
            if len(tokens) > length:
                lost = len(tokens) - length
                warnings.warn(f"the text {texts[row]!r} is {lost} tokens too long; its end is ignored", stacklevel=2)
                tokens = [*tokens[: length - 1], tokens[-1]]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
        return ids, mask


def read_text_tokenizer(folder: str | Path) -> TextTokenizer:
    """The tokenizer in a folder of transformers: tokenizer.json, or vocab.json with merges.txt, or spiece.model.

    Raises ValueError, one line, where there is none or it cannot be read.
    """
    folder = Path(folder)
    try:
        config = _read_json(folder / "tokenizer_config.json") | _read_json(folder / "special_tokens_map.json")
        tokenizer = _build(folder, config)
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} has no tokenizer ({Path(error.filename).name} is not there); give a folder with tokenizer.json, "
            "vocab.json and merges.txt, or spiece.model"
        ) from None
    except Exception as error:  # the tokenizers library raises its own bare Exception
        raise ValueError(f"the tokenizer in {folder} is broken ({_first_line(error)}); download it again") from error
    pad = _content(config.get("pad_token")) or "<pad>"
    if tokenizer.token_to_id(pad) is None:
        raise ValueError(f"{folder}: the padding token {pad!r} is not in the vocabulary")
    length = min(int(config.get("model_max_length", UNLIMITED)), UNLIMITED)
    return TextTokenizer(tokenizer, length, tokenizer.token_to_id(pad), config)


def save_text_tokenizer(tokenizer: TextTokenizer, folder: str | Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, as transformers does."""
    # the tokens themselves, with how they are matched, stand in tokenizer.json
    known = {k: _content(v) if k.endswith("_token") else v for k, v in tokenizer.config.items()}
    known.pop("added_tokens_decoder", None)
    known["pad_token"] = tokenizer.tokenizer.id_to_token(tokenizer.pad)
    known["model_max_length"] = tokenizer.max_length
    write_atomically(Path(folder) / "tokenizer.json", tokenizer.tokenizer.to_str(pretty=True).encode())
    write_atomically(Path(folder) / "tokenizer_config.json", (json.dumps(known, indent=2) + "\n").encode())


def clip_bpe(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], special: Sequence[AddedToken] = ()):
    """CLIP's tokenizer: lower-cased byte-level BPE with marked word ends, between a begin and an end token."""
    begin, end = "<|startoftext|>", "<|endoftext|>"
    bpe = models.BPE(dict(vocab), list(merges), continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=end)
    tokenizer = tokenizers.Tokenizer(bpe)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special) or [AddedToken(begin, normalized=True), AddedToken(end)])
    number = lambda token: (token, tokenizer.token_to_id(token))
    tokenizer.post_processor = processors.RobertaProcessing(number(end), number(begin), False, False)
    return tokenizer


def t5_unigram(vocab: Sequence[tuple[str, float]], charsmap: bytes | None, special: Sequence[AddedToken] = ()):
    """T5's tokenizer: a unigram model over whitespace-separated words, then the end token.

    `charsmap` is sentencepiece's compiled table of Unicode normalization.
    """
    tokenizer = tokenizers.Tokenizer(models.Unigram([tuple(v) for v in vocab], unk_id=2, byte_fallback=False))
    if charsmap:
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    mark = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), mark])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.add_special_tokens([AddedToken(token) for token in ("<pad>", "</s>", "<unk>")])
    tokenizer.add_special_tokens(list(special) or [f"<extra_id_{i}>" for i in reversed(range(100))])
    end = ("</s>", tokenizer.token_to_id("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[end])
    return tokenizer


def read_sentencepiece(path: str | Path) -> tuple[list[tuple[str, float]], bytes]:
    """(pieces with their log-probabilities, compiled normalization) of a sentencepiece model, a protobuf message."""
    pieces, charsmap = [], b""
    for field, value in _protobuf(Path(path).read_bytes()):
        if field == 1:
            piece = dict(_protobuf(value))
            pieces.append((piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0]))
        elif field == 3:
            charsmap = dict(_protobuf(value)).get(2, b"")
    return pieces, charsmap


def _build(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    if (folder / "tokenizer.json").is_file():
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
    if (folder / "spiece.model").is_file():
        return t5_unigram(*read_sentencepiece(folder / "spiece.model"))
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if odd := [merge for merge in merges if len(merge) != 2]:
        raise ValueError(f"merges.txt has {' '.join(odd[0])!r} where two tokens should stand")
    return clip_bpe(vocab, merges, _special(config))


def _special(config: Mapping[str, Any]) -> list[AddedToken]:
    """The special tokens that a folder without tokenizer.json names; the last word on a token counts."""
    tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if (value := config.get(name)) is not None:
            normalized = bool(value.get("normalized", False)) if isinstance(value, Mapping) else False
            tokens[_content(value)] = AddedToken(_content(value), normalized=normalized, special=True)
    return list(tokens.values())


def _content(token: str | Mapping[str, Any] | None) -> str | None:
    return token["content"] if isinstance(token, Mapping) else token


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _protobuf(message: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of every field of a protobuf message; nested messages and strings come as bytes."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = message[at]
            value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
            if byte < 0x80:
                return value, at

    at = 0
    while at < len(message):
        key, at = varint(at)
        if key & 7 == 0:
            value, at = varint(at)
        else:
            length, at = varint(at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            value, at = message[at : at + length], at + length
            if at > len(message):
                raise ValueError("the sentencepiece model is cut short")
        yield key >> 3, value


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
