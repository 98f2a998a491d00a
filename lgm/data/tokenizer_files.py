"""tokenizer.json and spiece.model as somebody else wrote them: looked through before the tokenizers library reads them.

That library is fast because it trusts what it reads: a pattern may backtrack without end, and a table that is out of
joint ends the process. So what a file is made of must be what the tokenizers of CLIP, T5 and BERT are made of.
"""

import base64
import binascii
import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from lgm.untrusted import parse_object, read_bytes, read_text, shown


class CutShort(UserWarning, ValueError):
    """A text that is longer than a text encoder takes, whose end is ignored; where that is refused, an error."""

    def __init__(self, text: str, tokens: int, most: int):
        super().__init__(f"the text {text!r} is {tokens - most} tokens too long; its end is ignored")
        self.text = text


# a pattern that cannot backtrack: alternatives of characters and sets of them, of which only the last may repeat
_ONE = r"(?:\\p\{\w{1,20}\}|\\\D|\[(?:\\\D|[^\]\[\\])+\]|[^\\\[\](){}|*+?.^$])"
# words as Qwen's byte-level tokenizers split them, who look ahead by one character
QWEN_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+")  # fmt: skip
# as Mistral's do, and as transformers converted those once
TEKKEN_WORDS = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
                r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
                r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")  # fmt: skip
KNOWN = (QWEN_WORDS, QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|"), TEKKEN_WORDS)
_PLAIN = re.compile(rf"{_ONE}+(?:[*+?]|\{{\d{{1,2}},?\d{{0,2}}\}})?")
PARTS = {
    "normalizer": ("BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled",
                   "Prepend", "Replace", "Sequence", "Strip", "StripAccents"),
    "pre_tokenizer": ("BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Sequence", "Split",
                      "Whitespace", "WhitespaceSplit"),
    "post_processor": ("BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"),
    "decoder": ("BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Sequence", "Strip",
                "WordPiece"),
}  # fmt: skip
MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
LARGEST_ID = 1 << 24
_LONGEST_VARINT = 10  # bytes


def open_tokenizer(path: str | Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json, which neither pads nor cuts. Raises ValueError, one line."""
    text = read_text(path)
    try:
        values = parse_object(text)
        check(values)
    except ValueError as error:
        raise ValueError(f"{path} is no tokenizer.json ({error})") from None
    if values.get("truncation") or values.get("padding"):  # which are the pipeline's to say
        text = json.dumps(values | {"truncation": None, "padding": None})
    try:
        return tokenizers.Tokenizer.from_str(text)
    except BaseException as error:  # the library raises its own bare Exception, and panics are none
        raise as_value_error(error, f"{path} is no tokenizer.json") from None


def as_value_error(error: BaseException, words: str) -> BaseException:
    """A ValueError, one line, for what the tokenizers library raised; what it did not raise as it is."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return ValueError(f"{words} ({(str(error) or type(error).__name__).splitlines()[0]})")
    return error


def check(values: Mapping[str, Any]) -> None:
    """Raise ValueError, one line, for what no tokenizer of CLIP, T5 or BERT has."""
    for place, known in PARTS.items():
        for part in _parts(values.get(place), place):
            if part.get("type") not in known:
                raise ValueError(f"{place} {shown(part.get('type'))} is not known")
            _check_part(part, place)
    model = values.get("model")
    if not isinstance(model, dict):
        raise ValueError("it has no model")
    kind = model.get("type") or ("Unigram" if isinstance(model.get("vocab"), list) else "BPE")
    if kind not in MODELS:
        raise ValueError(f"model {shown(kind)} is not known")
    if model.get("dropout"):
        raise ValueError(f"dropout={model['dropout']!r} draws tokens at random")
    if kind == "Unigram":
        check_pieces(model.get("vocab"), model.get("unk_id"))
    else:
        check_vocabulary(model.get("vocab"))
    tokens = values.get("added_tokens") or []
    if not isinstance(tokens, list):
        raise ValueError("added_tokens is no list")
    for token in tokens:
        if not isinstance(token, dict) or not _is_text(token.get("content")) or not _is_id(token.get("id")):
            raise ValueError(f"added token {shown(token)}")


def check_vocabulary(vocab: Any) -> None:
    """Raise ValueError unless `vocab` gives each token, a text, an id of its own."""
    if not isinstance(vocab, dict) or not vocab:
        raise ValueError("it has no vocabulary")
    if bad := [token for token, number in vocab.items() if not _is_id(number)]:
        raise ValueError(f"the id of {shown(bad[0])} is {shown(vocab[bad[0]])}")
    if len(set(vocab.values())) != len(vocab):
        raise ValueError("two tokens have one id")


def check_pieces(pieces: Any, unknown: Any) -> None:
    """Raise ValueError unless `pieces` are pairs of a text and a finite number, and `unknown` the place of one."""
    if not isinstance(pieces, list) or not pieces:
        raise ValueError("it has no vocabulary")
    for piece in pieces:
        if not (isinstance(piece, (list, tuple)) and len(piece) == 2 and _is_text(piece[0])
                and isinstance(piece[1], (int, float)) and abs(piece[1]) < 1e30):  # fmt: skip
            raise ValueError(f"piece {shown(piece)} is no text with its log-probability")
    if len({piece[0] for piece in pieces}) != len(pieces):
        raise ValueError("two pieces have one text")
    if not _is_id(unknown) or unknown >= len(pieces):
        raise ValueError(f"unk_id={shown(unknown)} is none of {len(pieces)} pieces")


def is_plain(pattern: str) -> bool:
    """Whether a regular expression is one that is matched in a time linear in its text."""
    return pattern in KNOWN or len(pattern) < 1000 and all(map(_PLAIN.fullmatch, re.split(r"(?<!\\)\|", pattern)))


def read_sentencepiece(path: str | Path) -> tuple[list[tuple[str, float]], bytes]:
    """(pieces with their log-probabilities, compiled normalization) of a sentencepiece model, a protobuf message."""
    pieces, charsmap = [], b""
    for field, value in _protobuf(read_bytes(path)):
        if field == 1:
            piece = dict(_protobuf(value))
            pieces.append((piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0]))
        elif field == 3:
            charsmap = dict(_protobuf(value)).get(2, b"")
    check_pieces(pieces, 2)
    _check_charsmap(charsmap)
    return pieces, charsmap


def _parts(part: Any, place: str, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """A part and those of a sequence of them."""
    if part is None and depth == 0:
        return
    if not isinstance(part, dict) or depth > 4:
        raise ValueError(f"{place} {shown(part)}")
    yield part
    inner = part.get({"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors",
                      "decoder": "decoders"}[place])  # fmt: skip
    for each in inner if isinstance(inner, list) else []:
        yield from _parts(each, place, depth + 1)


def _check_part(part: Mapping[str, Any], place: str) -> None:
    pattern = part.get("pattern")
    if pattern is not None:
        words = pattern.get("Regex", pattern.get("String")) if isinstance(pattern, dict) else None
        if not _is_text(words) or "Regex" in pattern and not is_plain(words):
            raise ValueError(f"{place} of pattern {shown(pattern)}, which might take for ever; only alternatives of "
                             "characters and sets, of which the last may repeat, are read")
    if part["type"] == "Precompiled":
        try:
            _check_charsmap(base64.b64decode(part.get("precompiled_charsmap") or "", validate=True))
        except (binascii.Error, TypeError, ValueError):
            raise ValueError("precompiled_charsmap is damaged") from None
    if part["type"] == "TemplateProcessing":
        texts = [*(part.get("single") or []), *(part.get("pair") or [])]
        known = part.get("special_tokens") or {}
        special = [text["SpecialToken"]["id"] for text in texts if isinstance(text, dict) and "SpecialToken" in text]
        if absent := [name for name in special if name not in known]:
            raise ValueError(f"TemplateProcessing names {shown(absent[0])}, which is none of its special_tokens")


def _check_charsmap(charsmap: bytes) -> None:
    """Raise ValueError unless sentencepiece's normalization is a trie of 32-bit units whose every step stays in it, and
    the texts that it leads to, each with its end."""
    if not charsmap:
        return
    size = int.from_bytes(charsmap[:4], "little")
    texts = charsmap[4 + size :]
    if size % 4 or size < 4 or 4 + size > len(charsmap) or not texts.endswith(b"\0"):
        raise ValueError("its compiled normalization is damaged")
    texts.decode()
    units = struct.unpack(f"<{size // 4}I", charsmap[4 : 4 + size])
    for place, unit in enumerate(units):
        if unit >> 31:
            inside = (unit & 0x7FFFFFFF) < len(texts)  # a leaf: where its text begins
        else:
            offset = (unit >> 10) << ((unit & (1 << 9)) >> 6)
            inside = not offset or (place ^ offset) & ~0xFF < len(units)
        if not inside:
            raise ValueError("its compiled normalization is damaged")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST_ID


def _protobuf(message: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of every field of a protobuf message; nested messages and strings come as bytes."""

    def varint(at: int) -> tuple[int, int]:
        value = 0
        for place, byte in enumerate(message[at : at + _LONGEST_VARINT]):
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return value, at + place + 1
        raise ValueError("the sentencepiece model is damaged")

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
