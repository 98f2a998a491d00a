"""Tokenizers of released text encoders, read from the files beside them: CLIP's BPE, T5's unigram, BERT's WordPiece,
language models' byte-level BPE.

They give the ids that transformers gives. Texts are padded to a fixed length and cut to it before the end token; which
length, which padding token and whether the padding counts is the pipeline's to say.
"""

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from lgm.data.tokenizer_files import (
    QWEN_WORDS,
    CutShort,
    as_value_error,
    check_vocabulary,
    open_tokenizer,
    read_sentencepiece,
)
from lgm.files import local, write_atomically, write_json
from lgm.untrusted import read_object, read_text, shown

# words as CLIP splits them: contractions, runs of letters, single digits, runs of anything else
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
UNLIMITED = 1_000_000  # transformers writes 1e30 where a tokenizer has no longest length
_PROCESSOR = ("processor_config.json", "preprocessor_config.json")  # of pictures too


@dataclasses.dataclass(frozen=True, eq=False)
class TextTokenizer:
    """Texts to ids. `max_length` is the longest the text encoder takes, `pad` the id that fills a row up, from the left
    where it `pads_left`.

    `config` is what its tokenizer_config.json says, for `save` to say again, `beside` what other files do, by their
    names, where it is part of a processor of pictures too.
    """

    tokenizer: tokenizers.Tokenizer
    max_length: int
    pad: int
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    beside: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The class of transformers that reads its folder."""
        processor = self.config.get("processor_class") if self.beside else None
        return processor or self.config.get("tokenizer_class", "PreTrainedTokenizerFast")

    @property
    def pads_left(self) -> bool:
        """Whether rows are filled up from the left, as its class does or its folder says."""
        usual = "left" if str(self.config.get("tokenizer_class")).startswith("LlamaTokenizer") else "right"
        return self.config.get("padding_side", usual) == "left"

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.tokenizer.get_vocab_size()

    @functools.cached_property
    def largest_id(self) -> int:
        """The largest id of the vocabulary."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, texts: Sequence[str], length: int | None = None, special: bool = True
               ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """(ids [B, L] int32, mask [B, L] bool, True up to and with the end token); L is `length` or `max_length`.

        Without `special` no tokens are put around a text, which has its own in it. A text of more tokens is cut,
        keeping the end token where the tokenizer adds one, with a warning that says how much of it is lost.
        """
        length = self.max_length if length is None else length
        if length >= UNLIMITED:
            raise ValueError("this tokenizer knows no longest length; say how long the rows are to be")
        ids = np.full((len(texts), length), self.pad, np.int32)
        mask = np.zeros(ids.shape, bool)
        try:
            encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=special)
        except BaseException as error:  # a damaged table shows where a text leads there
            raise as_value_error(error, "the tokenizer cannot read a text") from error
        for row, encoding in enumerate(encodings):
            tokens = encoding.ids
            if len(tokens) > length:
                warnings.warn(CutShort(texts[row], len(tokens), length), stacklevel=2)
                ended = encoding.special_tokens_mask[-1]
                tokens = [*tokens[: length - 1], tokens[-1]] if ended else tokens[:length]
            if max(tokens, default=0) > self.largest_id:
                raise ValueError(f"the tokenizer adds the id {max(tokens)}, which its vocabulary has not")
            place = slice(length - len(tokens), None) if self.pads_left else slice(len(tokens))
            ids[row, place], mask[row, place] = tokens, True
        return ids, mask


def read_text_tokenizer(folder: str | Path) -> TextTokenizer:
    """The tokenizer in a folder of transformers: tokenizer.json, or vocab.json with merges.txt, or spiece.model.

    Raises ValueError, one line, where there is none or it cannot be read.
    """
    folder = local(folder)
    try:
        config = _read_json(folder / "tokenizer_config.json") | _read_json(folder / "special_tokens_map.json")
        tokenizer = _build(folder, config)
        if (template := folder / "chat_template.jinja").exists():  # which is carried; each system has its own here
            config["chat_template"] = read_text(template)
        if config.get("padding_side", "right") not in ("left", "right"):
            raise ValueError(f"padding_side={shown(config['padding_side'])} is neither left nor right")
        beside = {name: read_object(folder / name) for name in _PROCESSOR if (folder / name).exists()}
        pad, length = _content(config.get("pad_token")) or "<pad>", _length(config.get("model_max_length", UNLIMITED))
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} has no tokenizer ({Path(error.filename).name} is not there); give a folder with tokenizer.json, "
            "vocab.json and merges.txt, or spiece.model"
        ) from None
    except BaseException as error:  # the tokenizers library raises its own bare Exception, and panics
        raise as_value_error(error, f"the tokenizer in {folder} is broken") from error
    if tokenizer.token_to_id(pad) is None:
        raise ValueError(f"{folder}: the padding token {shown(pad)} is not in the vocabulary")
    return TextTokenizer(tokenizer, length, tokenizer.token_to_id(pad), config, beside)


def save_text_tokenizer(tokenizer: TextTokenizer, folder: str | Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, as transformers does."""
    # the tokens themselves, with how they are matched, stand in tokenizer.json
    known = {k: _content(v) if k.endswith("_token") else v for k, v in tokenizer.config.items()}
    known.pop("added_tokens_decoder", None)
    known["pad_token"] = tokenizer.tokenizer.id_to_token(tokenizer.pad)
    known["model_max_length"] = tokenizer.max_length
    write_atomically(Path(folder) / "tokenizer.json", tokenizer.tokenizer.to_str(pretty=True).encode())
    for name, values in {"tokenizer_config.json": known, **tokenizer.beside}.items():
        write_json(Path(folder) / name, values)


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


def qwen_bpe(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], special: Sequence[AddedToken] = ()):
    """Qwen's tokenizer: byte-level BPE, without a begin or an end."""
    tokenizer = tokenizers.Tokenizer(models.BPE(dict(vocab), list(merges)))
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    for token in special:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def _build(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    if (folder / "tokenizer.json").exists():
        return open_tokenizer(folder / "tokenizer.json")
    if (folder / "spiece.model").exists():
        return t5_unigram(*read_sentencepiece(folder / "spiece.model"))
    vocab = read_object(folder / "vocab.json")
    check_vocabulary(vocab)
    lines = read_text(folder / "merges.txt").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if odd := [merge for merge in merges if len(merge) != 2]:
        raise ValueError(f"merges.txt has {shown(' '.join(odd[0]))} where two tokens should stand")
    if str(config.get("tokenizer_class")).startswith("Qwen2Tokenizer"):
        return qwen_bpe(vocab, merges, _added(config, len(vocab)))
    return clip_bpe(vocab, merges, _special(config))


def _special(config: Mapping[str, Any]) -> list[AddedToken]:
    """The special tokens that a folder without tokenizer.json names; the last word on a token counts."""
    tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if (value := config.get(name)) is not None:
            normalized = bool(value.get("normalized", False)) if isinstance(value, Mapping) else False
            tokens[_content(value)] = AddedToken(_content(value), normalized=normalized, special=True)
    return list(tokens.values())


def _added(config: Mapping[str, Any], first: int) -> list[AddedToken]:
    """The tokens that tokenizer_config.json adds to a vocabulary, from the id `first` on. Raises ValueError for others
    than follow it one by one."""
    said = config.get("added_tokens_decoder") or {}
    if not isinstance(said, Mapping) or not all(isinstance(token, Mapping) for token in said.values()):
        raise ValueError(f"added_tokens_decoder={shown(said)} is no table of tokens")
    if list(said) != [str(first + i) for i in range(len(said))]:
        raise ValueError(f"added_tokens_decoder must number tokens from {first} on, the end of vocab.json")
    flag = lambda token, name: bool(token.get(name, False))
    names = ("lstrip", "rstrip", "normalized", "single_word", "special")
    return [AddedToken(_content(token), **{name: flag(token, name) for name in names}) for token in said.values()]


def _content(token: Any) -> str | None:
    """The text of a token that a tokenizer_config.json names. Raises ValueError for what is none."""
    text = token.get("content") if isinstance(token, Mapping) else token
    if text is not None and not (isinstance(text, str) and text):
        raise ValueError(f"{shown(token)} is no token")
    return text


def _read_json(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _length(value: Any) -> int:
    """What model_max_length says. Raises ValueError for what is no length."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 2:
        raise ValueError(f"model_max_length={shown(value)} is no length of at least 2")
    return int(min(value, UNLIMITED))
