"""Tokenizers of released encoders: the ids that transformers gives, on small vocabularies trained here."""

import json
import random
import struct

import numpy as np
import pytest
import transformers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from lgm.data.text_tokenizers import clip_bpe, read_sentencepiece, read_text_tokenizer, save_text_tokenizer
from lgm.data.tokenizer_files import KNOWN, TEKKEN_WORDS

CORPUS = [
    "a photo of a cat and a dog in the rain",
    "two dogs don't bark; they're asleep (really), aren't they?",
    "an oil painting of the sea, 1889, by a lighthouse!",
    "naïve café by the Zürich lake — “quoted”",
    "日本語の猫 と 犬 😀",
]
TEXTS = [
    *CORPUS,
    "",
    "  spaces \t and\nlines  ",
    "UPPER Case, we'll I'M",
    "unseen: Привет 🦊 e\u0301 \u00a0nbsp",
    "a <|endoftext|> b <|startoftext|> </s> <pad> <extra_id_3>",
    "!! hello!",
    "word " * 60,
]


def nasty(count: int) -> list[str]:
    """Random mixtures of scripts, signs, digits and spaces."""
    rng = random.Random(0)
    ranges = [(32, 127), (32, 127), (0xA0, 0x180), (0x400, 0x450), (0x1F600, 0x1F620), (0x4E00, 0x4E20), (9, 14)]
    letter = lambda: chr(rng.randrange(*rng.choice(ranges)))
    return ["".join(letter() for _ in range(rng.randint(1, 40))) for _ in range(count)]


def equal_to_transformers(folder, length):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = read_text_tokenizer(folder)
    texts = TEXTS + nasty(200)
    expected = theirs(texts, padding="max_length", max_length=length, truncation=True, return_tensors="np")
    with pytest.warns(UserWarning, match="too long; its end is ignored"):
        ids, mask = ours.encode(texts, length)
    assert ids.dtype == np.int32 and mask.dtype == bool
    np.testing.assert_array_equal(ids, expected.input_ids)
    np.testing.assert_array_equal(mask, expected.attention_mask)
    assert ours.vocab_size == len(theirs) and ours.max_length == theirs.model_max_length
    assert ours.pad == theirs.pad_token_id


def equal_to_each_other(folder, other):
    """What transformers reads from both gives the same ids."""
    first, second = (transformers.AutoTokenizer.from_pretrained(f) for f in (folder, other))
    assert first(TEXTS).input_ids == second(TEXTS).input_ids


@pytest.fixture(scope="module")
def clip_files(tmp_path_factory):
    """vocab.json and merges.txt of a byte-level BPE with marked word ends, as CLIP's files are laid out."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>",
                                  show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(alphabet) + [f"{byte}</w>" for byte in sorted(alphabet)]
    tokens += [t for t in state["vocab"] if t not in set(tokens)] + ["<|startoftext|>", "<|endoftext|>"]
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    merges = "\n".join(" ".join(merge) for merge in state["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    return folder


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"], ids=["clip_l", "bigg"])
def test_clip_equals_transformers_from_the_original_files_and_from_saved_ones(clip_files, tmp_path, pad):
    token = lambda content: {"content": content, "lstrip": False, "normalized": True, "rstrip": False,
                             "single_word": False}  # fmt: skip
    special = {"bos_token": token("<|startoftext|>"), "eos_token": token("<|endoftext|>"), "pad_token": pad}
    config = {**special, "unk_token": "<|endoftext|>", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text((clip_files / name).read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    equal_to_transformers(tmp_path, 24)
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    equal_to_transformers(tmp_path / "saved", 24)
    save_text_tokenizer(read_text_tokenizer(tmp_path), tmp_path / "ours")
    equal_to_transformers(tmp_path / "ours", 24)
    equal_to_each_other(tmp_path, tmp_path / "ours")


def test_qwen_equals_transformers_from_the_original_files_and_from_saved_ones(tmp_path):
    """The released folder has no tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False)
    config = {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 131072, "pad_token": added[0],
              "eos_token": added[2], "bos_token": None, "unk_token": None,
              "added_tokens_decoder": {str(len(state["vocab"]) + i): flags | dict(content=token, special=i < 3)
                                       for i, token in enumerate(added)}}  # fmt: skip
    (tmp_path / "vocab.json").write_text(json.dumps(state["vocab"]))
    merges = "\n".join(" ".join(merge) for merge in state["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    equal_to_transformers(tmp_path, 24)
    save_text_tokenizer(read_text_tokenizer(tmp_path), tmp_path / "ours")
    equal_to_transformers(tmp_path / "ours", 24)
    equal_to_each_other(tmp_path, tmp_path / "ours")
    config["added_tokens_decoder"].popitem()
    config["added_tokens_decoder"]["1"] = flags | dict(content="x", special=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="added_tokens_decoder must number tokens from [0-9]+ on, the end of vocab.js"):
        read_text_tokenizer(tmp_path)


@pytest.mark.parametrize("words", [TEKKEN_WORDS, KNOWN[1]], ids=["tekken", "as once converted"])
def test_mistral_equals_transformers_padded_from_the_left_and_its_processor_is_written_again(tmp_path, words):
    """Marks stand in the texts themselves, where no token is to be put around them."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(words), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    marks = ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]"]
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=marks, show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        padding_side="left", model_max_length=4096)  # fmt: skip
    theirs.save_pretrained(tmp_path)
    equal_to_transformers(tmp_path, 24)
    ours = read_text_tokenizer(tmp_path)
    text = "<s>[INST]two dogs[/INST]"
    expected = theirs([text], padding="max_length", max_length=24, add_special_tokens=False).input_ids
    np.testing.assert_array_equal(ours.encode([text], 24, special=False)[0], expected)
    assert ours.kind == json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"]
    config = ours.config | {"tokenizer_class": "LlamaTokenizerFast", "processor_class": "PixtralProcessor"}
    del config["padding_side"]  # which the class has
    said = {"patch_size": 14, "processor_class": "PixtralProcessor"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "processor_config.json").write_text(json.dumps(said))
    again = read_text_tokenizer(tmp_path)
    assert again.kind == "PixtralProcessor"
    np.testing.assert_array_equal(again.encode([text], 24, special=False)[0], expected)
    save_text_tokenizer(again, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "processor_config.json").read_text()) == said
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "top"}))
    with pytest.raises(ValueError, match="padding_side='top' is neither left nor right"):
        read_text_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def unigram():
    """(pieces with log-probabilities) of a small unigram model in T5's order of special tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
                                      show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    return [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]


def sentencepiece_model(pieces) -> bytes:
    """The protobuf message that sentencepiece would write."""

    def field(number, content):
        size, length = len(content), b""
        while size >= 128:
            size, length = size >> 7, length + bytes([size & 127 | 128])
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    piece = lambda text, score: field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18\x01"
    normalizer = field(3, field(1, b"identity") + b"\x18\x01")
    return b"".join(field(1, piece(*p)) for p in pieces) + field(2, b"\x18\x01") + normalizer


def test_t5_equals_transformers_from_tokenizer_json_and_from_the_sentencepiece_model(unigram, tmp_path):
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]  # the order that T5's files have
    theirs = transformers.T5Tokenizer(vocab=unigram + sentinels, model_max_length=512)
    theirs.save_pretrained(tmp_path)
    equal_to_transformers(tmp_path, 24)

    save_text_tokenizer(read_text_tokenizer(tmp_path), tmp_path / "ours")
    equal_to_transformers(tmp_path / "ours", 24)
    equal_to_each_other(tmp_path, tmp_path / "ours")

    (tmp_path / "spiece.model").write_bytes(sentencepiece_model(unigram))
    pieces, charsmap = read_sentencepiece(tmp_path / "spiece.model")
    assert charsmap == b"" and [p for p, _ in pieces] == [p for p, _ in unigram]
    np.testing.assert_allclose([s for _, s in pieces], [s for _, s in unigram], rtol=1e-7)
    expected = theirs(TEXTS, padding="max_length", max_length=200, truncation=True).input_ids
    (tmp_path / "tokenizer.json").unlink()
    with pytest.warns(UserWarning, match="101 tokens too long"):
        np.testing.assert_array_equal(read_text_tokenizer(tmp_path).encode(TEXTS, 200)[0], expected)


def test_the_end_token_survives_the_cut(clip_files):
    vocab = json.loads((clip_files / "vocab.json").read_text())
    tokenizer = clip_bpe(vocab, [])
    assert tokenizer.encode("cats").tokens == ["<|startoftext|>", "c", "a", "t", "s</w>", "<|endoftext|>"]
    ours = read_text_tokenizer_with_pad(clip_files)
    with pytest.warns(UserWarning, match="'a photo of a cat and a dog .* is [0-9]+ tokens too long"):
        ids, mask = ours.encode([CORPUS[0]], 6)
    assert ids[0, -1] == vocab["<|endoftext|>"] and ids[0, 0] == vocab["<|startoftext|>"] and mask.all()


def read_text_tokenizer_with_pad(folder):
    config = {"pad_token": "<|endoftext|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return read_text_tokenizer(folder)


def test_what_cannot_be_read_is_one_line(clip_files, unigram, tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer .vocab.json is not there."):
        read_text_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text((clip_files / "vocab.json").read_text())
    (tmp_path / "merges.txt").write_text((clip_files / "merges.txt").read_text() + "cut")
    with pytest.raises(ValueError, match="is broken .merges.txt has 'cut' where two tokens should stand."):
        read_text_tokenizer(tmp_path)
    (tmp_path / "spiece.model").write_bytes(sentencepiece_model(unigram)[:-3])
    with pytest.raises(ValueError, match="is broken .the sentencepiece model is cut short."):
        read_text_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="is broken") as error:
        read_text_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="knows no longest length"):
        read_text_tokenizer_with_pad(clip_files).encode(["a"])
