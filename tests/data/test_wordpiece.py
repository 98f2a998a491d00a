import numpy as np
import pytest

from lgm.data import Tokenizer, open_images
from lgm.data.wordpiece import train_tokenizer


@pytest.fixture(scope="module")
def captions():
    return open_images("emoji64").captions


def words(tokenizer, caption):
    return tokenizer.tokenizer.encode(caption).tokens[1:-1]


def test_every_word_of_the_shipped_captions_is_one_token(captions):
    tokenizer = Tokenizer(max_length=17)
    assert 2000 <= tokenizer.vocab_size <= 4096
    ids, mask = tokenizer.encode(captions)
    assert ids.shape == mask.shape == (6996, 17) and ids.dtype == np.int32 and mask.dtype == bool
    assert not (ids == tokenizer.unknown).any()
    pieces = {number for token, number in tokenizer.tokenizer.get_vocab().items() if token.startswith("##")}
    assert not np.isin(ids, list(pieces)).any()


def test_rows_begin_end_and_are_padded():
    tokenizer = Tokenizer(max_length=16)
    ids, mask = tokenizer.encode(["grinning face emoji, noto style", "cat"])
    assert mask.sum(1).tolist() == [7, 3]
    for row in range(2):
        length = mask[row].sum()
        assert mask[row, :length].all()
        assert ids[row, 0] == tokenizer.begin and ids[row, length - 1] == tokenizer.end
        assert (ids[row, length:] == tokenizer.pad).all()
    none, none_mask = tokenizer.unconditional
    assert none.shape == none_mask.shape == (16,) and none.dtype == np.int32
    assert none[:2].tolist() == [tokenizer.begin, tokenizer.end] and none_mask.sum() == 2


def test_case_accents_and_joining_marks_do_not_count():
    tokenizer = Tokenizer()
    for caption in ("Grinning Face emoji, FLUENT-3D style", "grinning  face emoji fluent_3d style."):
        assert words(tokenizer, caption) == ["grinning", "face", "emoji", "fluent", "3d", "style"]
    assert words(tokenizer, "côte d’ivoire") == words(tokenizer, "cote d'ivoire")
    assert words(tokenizer, "keycap: #") == ["keycap", "#"] and words(tokenizer, "keycap: *") == ["keycap", "*"]


def test_a_word_never_seen_is_spelt_and_no_text_makes_a_special_token():
    tokenizer = Tokenizer(max_length=32)
    ids, mask = tokenizer.encode(["zzyzx quokkas", "[end] [pad] face"])
    assert tokenizer.unknown not in ids[mask]
    assert (ids[1] == tokenizer.end).sum() == 1 and tokenizer.pad not in ids[1][mask[1]]


def test_a_caption_too_long_is_named_with_its_count_or_cut():
    caption = "a " * 30
    with pytest.raises(ValueError, match=r"'a a .*' has 32 tokens, more than the 16 of config.text.encoder.max_length"):
        Tokenizer(max_length=16).encode(["cat", caption])
    cut = Tokenizer(max_length=16, truncate=True)
    ids, mask = cut.encode([caption])
    assert mask.all() and ids[0, -1] == cut.end and ids[0, 0] == cut.begin


@pytest.mark.parametrize("caption, problem", [
    ("", "is empty"), ("  ", "is empty"), ("...", "is empty"), ("日本語", "no word that the tokenizer knows")
])
def test_a_caption_without_words_is_refused(caption, problem):
    with pytest.raises(ValueError, match=problem):
        Tokenizer().encode(["cat", caption])


def test_training_anew_gives_the_shipped_vocabulary(captions):
    keywords = [word for row in open_images("emoji64").rows for word in row["keywords"]]
    assert train_tokenizer(captions, keywords).to_str() == Tokenizer().tokenizer.to_str()


def test_a_vocabulary_of_ones_own(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(train_tokenizer(["ein Ährenfeld", "日 本"], vocab_size=300, pieces=10).to_str())
    tokenizer = Tokenizer(str(path), max_length=8)
    assert words(tokenizer, "Ein Ährenfeld 日") == ["ein", "ahrenfeld", "日"]
    assert tokenizer.vocab_size <= 300


def test_files_that_are_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="is not there; give emoji64"):
        Tokenizer(str(tmp_path / "absent.json"))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="is no tokenizer.json"):
        Tokenizer(str(tmp_path / "x.json"))
    with pytest.raises(ValueError, match="max_length=2"):
        Tokenizer(max_length=2)
