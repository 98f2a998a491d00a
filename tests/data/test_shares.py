"""Sources served by weight."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgm.data.shares import Turns, mixed


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(1, 12), st.integers(0, 10**9))
def test_turns_are_shares_to_within_a_block_wherever_one_looks(weights, unit, start):
    """Whoever has the share s of n turns has had n s of them but for a block's; the count that is stated with a turn is
    that of the turns before it."""
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    turns = Turns(shares, unit, (0,))
    whose, which = turns(0, 300)
    for part, share in enumerate(shares):
        mine = np.flatnonzero(whose == part)
        np.testing.assert_array_equal(which[mine], np.arange(len(mine)))
        had = np.cumsum(whose == part)
        assert np.abs(had - np.arange(1, 301) * float(share)).max() < turns.length + len(shares)
    later = turns(start, start + 50)
    np.testing.assert_array_equal(turns(start + 20, start + 50), np.array(later)[:, 20:])
    for part, share in enumerate(shares):  # no drift, however late
        mine = later[0] == part
        if mine.any():
            assert abs(later[1][mine][0] - (start + np.argmax(mine)) * float(share)) < turns.length + len(shares) + 1


def test_each_image_of_a_source_once_in_its_own_epochs():
    """Weights that are no ratio of the sources' sizes; a source of fewer images than it has in a batch is served as
    evenly."""
    parts = np.repeat([0, 1, 2], [50, 7, 2])
    order = mixed(parts, [0.2, 0.5, 0.3], 8, seed=5)
    served = np.concatenate([order(n) for n in range(250)])
    for part, (count, weight) in enumerate(((50, 0.2), (7, 0.5), (2, 0.3))):
        mine = served[parts[served] == part]
        assert abs(len(mine) - 2000 * weight) <= 8
        for epoch in range(len(mine) // count):
            assert sorted(mine[epoch * count : (epoch + 1) * count]) == np.flatnonzero(parts == part).tolist()
    each = np.array([np.bincount(parts[order(n)], minlength=3) for n in range(250)])
    assert np.ptp(each, axis=0).max() <= 4 and len({tuple(row) for row in each}) > 1
    np.testing.assert_array_equal(order(123), served[8 * 123 : 8 * 124])  # whatever was asked for before
    other = mixed(parts, [0.2, 0.5, 0.3], 8, seed=6)
    assert any(not np.array_equal(order(n), other(n)) for n in range(3))


def test_a_tiny_share_is_served_as_exactly():
    order = mixed(np.repeat([0, 1], [30, 10]), [1.0, 1e-3], 4, seed=0)
    rare = np.array([(order(n) >= 30).sum() for n in range(2600)])
    assert rare.sum() in (10, 11) and rare.max() == 1


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.1, 0.7)])
def test_with_groups_batches_are_of_one_and_weights_hold(weights):
    parts = np.repeat([0, 1], [40, 25])
    groups = np.concatenate([np.arange(40) % 3, np.full(20, 1), np.full(5, 4)])
    order = mixed(parts, weights, 6, seed=1, groups=groups)
    taken = [order(n) for n in range(1200)]
    assert all(len({*groups[batch]}) == 1 for batch in taken)
    times = np.bincount(np.concatenate(taken), minlength=65)
    share = weights[0] / sum(weights)
    assert abs(times[:40].sum() / times.sum() - share) < 0.01
    for part in range(2):
        for group in range(5):
            some = times[(parts == part) & (groups == group)]
            assert not len(some) or np.ptp(some) <= 1  # each as often as any other of its source and group
        mine = times[parts == part]
        assert mine.min() > 0.9 * mine.mean() - 2 and mine.max() < 1.1 * mine.mean() + 2  # and over groups, to a batch
