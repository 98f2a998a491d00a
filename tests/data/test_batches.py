import json
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgm.data import Bad, Quarantine, batches
from lgm.data.batches import cores
from lgm.data.order import grouped, permuted, shuffled


def make(count=23, batch_size=5, seed=3, **options):
    latent = np.arange(count * 4, dtype=np.float32).reshape(count, 2, 2, 1)
    return batches({"latent": latent, "tokens": np.arange(count)[:, None]}, batch_size=batch_size, seed=seed, **options)


def take(iterator, number):
    return [next(iterator) for _ in range(number)]


def same(a, b):
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True)
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(count, seed, epoch):
    assert sorted(permuted(np.arange(count), count, seed, epoch)) == list(range(count))


def test_permutations_are_evenly_spread():
    # Pearson's chi-squared of which record lands where, over its degrees of freedom: 1, with deviation (2 / df)^0.5
    orders = np.stack([permuted(np.arange(200), 200, 0, epoch) for epoch in range(400)])
    counts = np.stack([np.bincount(orders[:, place], minlength=200) for place in range(200)])
    assert abs(((counts - 2) ** 2 / 2).sum() / 199**2 - 1) < 6 * (2 / 199**2) ** 0.5
    # epochs, and seeds that follow one another, are uncorrelated: deviation 1 / sqrt(500), and six of it for 780 pairs
    rows = [permuted(np.arange(500), 500, seed, epoch) for seed in range(4) for epoch in range(10)]
    correlation = np.corrcoef(rows) - np.eye(40)
    assert np.abs(correlation).max() < 6 / 500**0.5


def test_each_record_once_an_epoch_in_a_fresh_order():
    order = [shuffled(23 * epoch, 23 * (epoch + 1), 23, seed=3) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(23)) for epoch in order)
    assert len({tuple(epoch) for epoch in order}) == 4
    served = np.concatenate([batch["index"] for batch in take(make(), 23)])  # five epochs; batches span their ends
    np.testing.assert_array_equal(served, shuffled(0, 115, 23, seed=3))


def test_records_stay_together():
    for batch in take(make(), 6):
        assert batch["index"].dtype == np.int64 and batch["latent"].dtype == np.float32
        np.testing.assert_array_equal(batch["tokens"][:, 0], batch["index"])
        np.testing.assert_array_equal(batch["latent"][:, 0, 0, 0], 4 * batch["index"])


def test_the_seed_decides_and_alone():
    assert same(take(make(), 8), take(make(), 8))
    assert not same(take(make(), 8), take(make(seed=4), 8))


GROUPS = np.arange(23) % 3


@pytest.mark.parametrize("options", [{}, {"image": lambda i: np.full((2, 2, 3), i, np.uint8)}, {"groups": GROUPS},
                                     {"groups": np.minimum(np.arange(23), 6)}])
def test_a_resumed_iterator_goes_on_exactly_wherever_it_stopped(options):
    whole = take(make(**options), 14)  # past two epochs' ends
    first = make(**options)
    for step in range(12):
        state = json.loads(json.dumps(first.get_state()))
        assert len(json.dumps(state)) < 100
        resumed = make(**options)
        take(resumed, step % 3)  # a state set on an iterator already in use, its next batches read ahead
        resumed.set_state(state)
        assert same(take(resumed, 2), whole[step : step + 2])
        assert same([next(first)], whole[step : step + 1])


@pytest.mark.parametrize("groups", [None, np.arange(24) % 2, np.minimum(np.arange(24) // 4, 3), np.arange(24)])
def test_processes_share_out_one_global_order(groups):
    options = {"count": 24, "batch_size": 6, "groups": groups}
    whole = take(make(**options), 9)
    for count in (2, 3, 6):
        parts = [take(make(**options, process_index=i, process_count=count), 9) for i in range(count)]
        joined = [{k: np.concatenate([part[n][k] for part in parts]) for k in whole[0]} for n in range(9)]
        assert same(joined, whole)


def test_a_run_goes_on_with_another_number_of_processes():
    whole = take(make(batch_size=6), 8)
    before = make(batch_size=6, process_index=1, process_count=2)
    take(before, 4)
    after = [make(batch_size=6, process_index=i, process_count=3) for i in range(3)]
    for iterator in after:
        iterator.set_state(before.get_state())
    for n in range(4, 8):
        np.testing.assert_array_equal(np.concatenate([next(it)["index"] for it in after]), whole[n]["index"])


def test_images_are_read_by_threads_of_their_own():
    seen = set()

    def image(index):
        seen.add(threading.current_thread().name)
        return np.full((2, 2, 3), index, np.uint8)

    for batch in take(make(image=image), 4):
        assert batch["image"].shape == (5, 2, 2, 3) and batch["image"].dtype == np.uint8
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
    assert threading.current_thread().name not in seen


def test_as_many_images_are_read_at_once_as_there_are_cores_or_as_is_asked_for(monkeypatch):
    def read(count, **options):
        """Images are read by `count` threads, which wait for each other, and no more."""
        readers, meeting = set(), threading.Barrier(count, timeout=60)

        def image(index):
            readers.add(threading.current_thread().name)
            meeting.wait()
            return np.zeros((2, 2, 3), np.uint8)

        next(make(batch_size=6, image=image, **options))
        return len(readers) == count

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 5}, raising=False)
    assert cores() == 3 and read(3)
    assert read(2, threads=2) and read(1, threads=1)


def test_an_image_that_cannot_be_read_ends_in_its_own_line():
    def image(index):
        raise ValueError("set/3.png cannot be decoded")

    with pytest.raises(ValueError) as caught:
        next(make(image=image))
    assert str(caught.value) == "set/3.png cannot be decoded"


@pytest.mark.parametrize(("counts", "size"), [((10, 7, 2), 3), ((1,) * 7, 3), ((2, 2), 4), ((40, 1, 0, 3), 8)])
def test_grouped_batches_hold_one_group_and_lose_no_record(counts, size):
    """Also of groups that are smaller than a batch. After e epochs of records a group has had floor(e count / size)
    batches, and its records differ by one in how often they were served."""
    groups = np.repeat(np.arange(len(counts)), counts)
    order, epochs = grouped(groups, size, seed=0), 12
    served = [sum(epoch * count // size for count in counts) for epoch in range(epochs + 1)]
    taken = [order(n) for n in range(served[-1])]
    assert all(batch.shape == (size,) and len({*groups[batch]}) == 1 for batch in taken)
    labels = np.array([groups[batch[0]] for batch in taken])
    for epoch, end in enumerate(served):
        times = np.bincount(np.concatenate([*taken[:end], np.zeros(0, np.int64)]), minlength=len(groups))
        for label, count in enumerate(counts):
            assert (labels[:end] == label).sum() == epoch * count // size
            if count:
                assert np.ptp(times[groups == label]) <= 1
    assert times.min() > 0  # no record is lost
    np.testing.assert_array_equal(order(served[-1] // 2), taken[served[-1] // 2])  # whatever was asked for before


def test_grouped_batches_come_in_shuffled_order():
    groups = np.repeat([0, 1], 60)
    order = grouped(groups, 6, seed=0)
    labels = np.array([groups[order(n)[0]] for n in range(200)]).reshape(10, 20)
    assert len({tuple(epoch) for epoch in labels}) == 10 and (labels.sum(1) == 10).all()
    assert any(not np.array_equal(order(n), grouped(groups, 6, seed=1)(n)) for n in range(3))


@pytest.mark.parametrize("options, problem", [
    ({"batch_size": 24}, "config.batch_size=24 must lie between 1 and the data set's 23 images"),
    ({"batch_size": 0}, "config.batch_size=0"),
    ({"process_count": 2}, "config.batch_size=5 is not divisible by 2 processes"),
    ({"process_count": 2, "process_index": 2}, "process_index=2"),
    ({"seed": -1}, "config.seed=-1"),
    ({"groups": np.zeros(3)}, "arrays of one length"),
])
def test_what_cannot_be_is_refused_in_one_line(options, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


def test_a_set_of_one_record():
    assert [batch["index"].tolist() for batch in take(make(count=1, batch_size=1), 3)] == [[0]] * 3


def test_the_next_good_record_stands_in_for_a_bad_one(tmp_path):
    """The same for any number of processes and after resuming; the bad ones are listed once each, with their reasons,
    and one too many ends the run in one line."""
    groups = np.arange(24) % 2

    def image(index):
        if index in (3, 5):
            raise ValueError(f"{index}.png is cut short")
        return np.full((2, 2, 3), index, np.uint8)

    def serve(name, share=0.25, **options):
        quarantine = Quarantine(tmp_path / f"{name}.jsonl", Bad(share), 24, options.get("process_index", 0),
                                options.get("process_count", 1))
        return make(count=24, batch_size=6, image=image, bad=quarantine, groups=groups,
                    derived=lambda places: {"words": 10 * places[:, None]}, **options)

    whole = take(serve("one"), 8)
    for batch in whole:
        assert not {3, 5} & {*batch["index"].tolist()} and len({*groups[batch["index"]]}) == 1
        for name, factor in (("tokens", 1), ("words", 10)):
            np.testing.assert_array_equal(batch[name][:, 0], factor * batch["index"])
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
    plain = make(count=24, batch_size=6, groups=groups)
    wanted = [np.where(np.isin(batch["index"], (3, 5)), 7, batch["index"]) for batch in take(plain, 8)]
    np.testing.assert_array_equal([batch["index"] for batch in whole], wanted)
    listed = [json.loads(line)["reason"] for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert sorted(listed) == ["3.png is cut short", "5.png is cut short"]
    take(serve("one"), 8)
    assert len((tmp_path / "one.jsonl").read_text().splitlines()) == 2
    parts = [take(serve("two", process_index=i, process_count=2), 8) for i in range(2)]
    assert same([{k: np.concatenate([part[n][k] for part in parts]) for k in whole[0]} for n in range(8)], whole)
    with pytest.raises(ValueError, match="2 such records are more than config.data.bad_share=0.05") as caught:
        take(serve("few", share=0.05), 8)
    assert "\n" not in str(caught.value)
    few = tmp_path / "few.jsonl"  # of one that readers found before the other, if any was
    assert not few.exists() or set(few.read_text().splitlines()) <= {*(tmp_path / "one.jsonl").read_text().splitlines()}


def test_threads_beyond_a_share_read_the_next_batch():
    together, met = threading.Barrier(6), threading.Event()  # passes only where six images are read at once

    def image(index):
        if not met.is_set():
            together.wait(30)
            met.set()
        return np.full((1, 1, 3), index, np.uint8)

    iterator = batches({}, image=image, length=60, batch_size=6, seed=0, process_index=1, process_count=3, threads=6)
    batch = next(iterator)
    assert batch["image"][:, 0, 0, 0].tolist() == batch["index"].tolist() and len(batch["index"]) == 2
