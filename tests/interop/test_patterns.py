"""Patterns from files match what the standard library says, in a time that they cannot stretch."""

import random
import re
import time

import pytest

from lgm.interop.patterns import matches

PIECES = ["a", "b", ".", r"\.", r"\d", "(", ")", "|", "*", "+", "?", "[ab]", "[^a]", "{2}", "{1,}", "(?:", "^", "$"]


def test_random_patterns_match_as_the_standard_library_says():
    rng, compared, refused = random.Random(0), 0, 0
    for _ in range(4000):
        pattern = "".join(rng.choices(PIECES, k=rng.randint(1, 7)))
        text = "".join(rng.choices("ab.1", k=rng.randint(0, 6)))
        try:
            expected = re.fullmatch(pattern, text) is not None
        except re.error:
            with pytest.raises(ValueError, match="not understood"):
                matches(pattern, text)
            refused += 1
            continue
        try:
            assert matches(pattern, text) is expected, (pattern, text)
            compared += 1
        except ValueError as error:
            assert "not understood" in str(error)
    assert compared > 700 and refused > 700


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", r"(.*)*x", r"(\w+\s?)*!", "a*a*a*a*a*a*a*a*c"])
def test_what_backtracks_elsewhere_ends_here(pattern):
    start = time.process_time()
    matches(pattern, "a" * 500 + "!!")
    assert time.process_time() - start < 5
    with pytest.raises(ValueError, match="is no module's"):
        matches(pattern, "a" * 5000)
