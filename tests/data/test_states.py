"""What frozen text encoders say, kept on disk and found by captions."""

import ml_dtypes
import numpy as np
import pytest

from lgm.data import write_index, write_shard
from lgm.data.states import STORED, States, keys, packed, quantized, row_bytes

FORM = {"text": ((5, 4), np.dtype(np.float32)), "pooled": ((3,), np.dtype(np.float32))}
MADE_OF = {"text_encoders": "abc"}
CAPTIONS = [[None, "a cat"], ["a dog", "half a pair \ud83d", "a cat, again"]]  # of two shards


def made(folder, stored, masked=False):
    """(the states of all captions, as they were computed, and as they are read from `folder`)."""
    form = FORM | ({"text_mask": ((5,), np.dtype(bool))} if masked else {})
    random, truth = np.random.default_rng(0), []
    for number, captions in enumerate(CAPTIONS):
        count = len(captions)
        rows = {"text": random.normal(size=(count, 5, 4)).astype(np.float32),
                "pooled": random.normal(size=(count, 3)).astype(np.float32)}
        if masked:
            rows["text_mask"] = np.arange(5) < 1 + number + np.arange(count)[:, None]
            rows["text_mask"][-1] = np.roll(rows["text_mask"][-1], 1)  # one that is filled up from the left
        write_shard(folder, number, {"key": keys(captions)} | packed(rows, stored), MADE_OF)
        truth.append(rows)
    write_index(folder, len(CAPTIONS), MADE_OF)
    whole = {name: np.concatenate([rows[name] for rows in truth]) for name in truth[0]}
    return whole, States({folder: MADE_OF}, form, stored)


@pytest.mark.parametrize("stored", STORED)
def test_a_captions_row_is_found_whatever_the_order(tmp_path, stored):
    truth, states = made(tmp_path, stored)
    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}.get(stored, np.float32)
    flat = np.concatenate([truth["text"].reshape(5, -1), truth["pooled"]], 1)
    chosen = states.find(["a dog", None, "a dog", "a cat, again"])
    got = np.asarray(chosen)
    assert got.dtype == kind == chosen.dtype and got.shape == chosen.shape == (4, 23) and len(states) == 5
    wanted = flat[[2, 0, 2, 4]]
    if stored == "int8":  # half a step of the row's own scale
        steps = np.concatenate([np.repeat(np.abs(truth["text"]).max(-1), 4, 1),
                                np.repeat(np.abs(truth["pooled"]).max(-1)[:, None], 3, 1)], 1)[[2, 0, 2, 4]] / 127
        assert (np.abs(got - wanted) <= 0.501 * steps).all()
    else:
        np.testing.assert_array_equal(got, wanted.astype(kind))
    np.testing.assert_array_equal(chosen[np.array([[3], [1]])], got[[[3], [1]]])
    np.testing.assert_array_equal(chosen.masks(), [[True], [False], [True], [True]])


def test_tokens_that_do_not_count_are_not_kept(tmp_path):
    truth, states = made(tmp_path, "float32", masked=True)
    chosen = states.find(["a cat", "a cat, again"])
    mask = truth["text_mask"][[1, 4]]
    np.testing.assert_array_equal(chosen.masks(), np.concatenate([[[True], [True]], mask], 1))
    text = np.asarray(chosen)[:, :20].reshape(2, 5, 4)
    np.testing.assert_array_equal(text, np.where(mask[:, :, None], truth["text"][[1, 4]], 0))
    assert [shard.slices["text"].get_shape()[1] for shard in states.shards] == [2, 4]  # the longest of each


@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_zeros_that_a_system_always_has_are_not_kept(tmp_path, stored):
    reached = np.arange(4) < np.array([2, 2, 4, 4, 0])[:, None]  # a narrow encoder, a wide one, one that is not there
    text = np.where(reached, np.random.default_rng(0).normal(size=(2, 5, 4)), 0).astype(np.float32)
    rows = packed({"text": text}, stored, reached)
    write_shard(tmp_path, 0, {"key": keys(["a", "b"])} | rows, MADE_OF)
    write_index(tmp_path, 1, MADE_OF)
    form = {"text": FORM["text"]}
    got = np.asarray(States({tmp_path: MADE_OF}, form, stored, reached).find(["b", "a"])).reshape(2, 5, 4)
    np.testing.assert_allclose(got, text[::-1], rtol=0, atol=0.01 if stored == "int8" else 0)
    assert not got[:, ~reached].any()
    assert row_bytes(form, stored, reached) == sum(array[0].nbytes for array in rows.values())


def test_a_caption_that_is_not_there_is_named(tmp_path):
    _, states = made(tmp_path, "float32")
    with pytest.raises(ValueError, match=r"the caption 'a bird' is not in .*; encode with this config again") as caught:
        states.find(["a cat", "a bird"])
    assert "\n" not in str(caught.value)


def test_floats_that_a_type_cannot_hold_are_refused():
    rows = {"text": np.full((1, 5, 4), 1e5, np.float32)}
    with pytest.raises(ValueError, match="holds 100000, which float16 cannot; bfloat16"):
        packed(rows, "float16")
    assert np.isfinite(packed(rows, "bfloat16")["text"].astype(np.float32)).all()
    values, scale = quantized(np.zeros((2, 3), np.float32))  # a row of zeros has no scale
    assert not values.any() and not scale.any()


def test_bytes_of_a_row_are_those_on_disk(tmp_path):
    for stored in STORED:
        _, states = made(tmp_path / stored, stored)
        shard = states.shards[1]
        sizes = [shard.row(name, 0).nbytes for name in shard.slices if name != "key"]
        assert row_bytes(FORM, stored) == sum(sizes)
