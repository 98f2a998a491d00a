"""Which images `where` leaves, by what is said of them and by what they are."""

import json

import pytest

from lgm.data import Bad, open_images


@pytest.fixture
def scored(folder):
    """Six images, 8 x 8 and 8 x 12, with scores of which one is words and one is absent."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for row, score in zip(rows, [0.5, 2, "4.5", 6.25, "high", None], strict=True):
        row |= {} if score is None else {"score": score}
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(("where", "numbers"), [
    ({"score": ">=2"}, [1, 2, 3]),
    ({"score": ">0.5 <=4.5"}, [1, 2]),
    ({"score": "<1, >-3"}, [0]),
    ({"score": [">5", "high"]}, [3, 4]),
    ({"n": "<2", "score": "< 1"}, [0]),
    ({"width": ">8"}, [1, 3, 5]),
    ({"width": 12, "score": ">=2"}, [1, 3]),
    ({"pixels": "<=64", "height": ">=8"}, [0, 2, 4]),
])  # fmt: skip
def test_by_a_number_of_the_table_or_of_the_image(scored, where, numbers):
    images = open_images(str(scored), where)
    assert [row["n"] for row in images.rows] == numbers
    assert [words.partition("=")[0] for words, _ in images.left] == sorted(where, key=lambda name: name in (
        "width", "pixels", "height"))
    assert images.left[-1][1] == len(numbers)


def test_one_that_cannot_be_read_is_found_bad_and_not_small(scored):
    (scored / "a/1.jpeg").write_bytes(b"")
    bad = Bad(0.5)
    images = open_images(str(scored), {"width": ">=9"}, bad=bad)
    assert [row["n"] for row in images.rows] == [1, 3, 5] and not bad.found
    assert len(images.whole(bad)) == 2 and "a/1.jpeg cannot be decoded" in bad.found[0][1]


@pytest.mark.parametrize(("where", "line"), [
    ({"score": ">=five"}, "config.data.where.score='>=five' is no comparison; write numbers after"),
    ({"score": ">=2 or <1"}, "config.data.where.score='>=2 or <1' is no comparison"),
    ({"score": ["<", 3]}, "config.data.where.score='<' is no comparison"),
    ({"score": ">7"}, "config.data.where.score='>7' leaves no image of .*; there are 0.5 to 6.25"),
    ({"width": ">=9 <12"}, "config.data.where.width='>=9 <12' leaves no image of .*; there are 8 to 12"),
    ({"n": 0, "width": 9}, "config.data.where.width=9 leaves no image of .*; there are 8"),
    ({"kind": "<3"}, "there are no numbers"),
    ({"wide": ">3"}, "config.data.where.wide: .* has no such field; did you mean 'width'"),
])  # fmt: skip
def test_what_cannot_be_is_one_line_with_the_key(scored, where, line):
    with pytest.raises(ValueError, match=line) as caught:
        open_images(str(scored), where)
    assert "\n" not in str(caught.value)
