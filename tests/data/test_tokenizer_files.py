"""Tokenizer files that would hang or end the process that reads them are one line."""

import json

import pytest

from lgm.data.text_tokenizers import CLIP_WORDS, read_text_tokenizer
from lgm.data.tokenizer_files import is_plain, open_tokenizer, read_sentencepiece

WORD_LEVEL = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "<pad>": 1}, "unk_token": "a"},
              "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}


@pytest.mark.parametrize(("changes", "line"), [
    ({"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}}, "might take for ever"),
    ({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}}, "might take for ever"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "precompiled_charsmap is damaged"),
    ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "'FixedLength' is not known"),
    ({"model": UNIGRAM | {"vocab": []}}, "has no vocabulary"),
    ({"model": UNIGRAM | {"unk_id": 9}}, "unk_id=9 is none of 2 pieces"),
    ({"model": UNIGRAM | {"vocab": [["<unk>", 0.0], ["", -1.0]]}}, "is no text with its log-probability"),
    ({"model": {"type": "WordLevel", "vocab": {"a": -1}}}, "the id of 'a' is -1"),
    ({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 0}}}, "two tokens have one id"),
    ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5}}, "draws tokens at random"),
    ({"model": 3}, "it has no model"),
    ({"added_tokens": [{"id": 2**40, "content": "x"}]}, "added token"),
    ({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
                         "pair": [], "special_tokens": {}}}, "names 'x'"),
])  # fmt: skip
def test_a_file_of_other_parts_is_one_line(tmp_path, changes, line):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(WORD_LEVEL))
    assert open_tokenizer(path).encode("a").ids == [0]
    path.write_text(json.dumps(WORD_LEVEL | changes))
    with pytest.raises(ValueError, match=line) as error:
        open_tokenizer(path)
    assert "\n" not in str(error.value)


def test_patterns_that_cannot_backtrack_are_read_and_no_others():
    for pattern in (CLIP_WORDS, r"\s+", " {2,}", "['’]", r"[\p{L}]+|[^\s\p{L}]+"):
        assert is_plain(pattern)
    for pattern in ("(a+)+$", "a+a+", r"(\w+\s?)*!", "(.*)(.*)x", "", r"\1+", "a" * 2000):
        assert not is_plain(pattern)


@pytest.mark.parametrize("content", [b"\x80" * 1_000_000, b"\n\xff\xff\xff\xff\x0f", b"\x0f", b"\n\x02\x0a\xff", b""])
def test_a_damaged_sentencepiece_model_is_a_value_error(tmp_path, content):
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises((ValueError, KeyError)):
        read_sentencepiece(tmp_path / "spiece.model")
    with pytest.raises(ValueError, match="is broken"):
        read_text_tokenizer(tmp_path)


@pytest.mark.parametrize(("changes", "line"), [
    ({"model_max_length": 0}, "model_max_length=0"), ({"model_max_length": "x"}, "model_max_length='x'"),
    ({"pad_token": 3}, "3 is no token"), ({"pad_token": "absent"}, "padding token 'absent'"),
])  # fmt: skip
def test_what_stands_beside_a_tokenizer_is_checked(tmp_path, changes, line):
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORD_LEVEL))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 5, **changes}))
    with pytest.raises(ValueError, match=line):
        read_text_tokenizer(tmp_path)
