"""Several sources as one set, served by weight."""

import json

import numpy as np
import pytest
from PIL import Image

from lgm import config as schema
from lgm import describing
from lgm.data import Bad, Quarantine, batches, open_data

MODEL = dict(family="dit", channels=32, width=16, depth=2, heads=2)


def data(source, **more):
    return schema.from_dict(dict(name="x", batch_size=4, total_images=8, model=MODEL,
                                 data=dict(source=source, resolution=8, **more))).data  # fmt: skip


@pytest.fixture
def art(tmp_path):
    """Three pictures with other columns than the folder's, and captions of two kinds."""
    root = tmp_path / "drawn"
    root.mkdir()
    rows = []
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(root / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "long": [f"drawing {i}", "a drawing"], "n": str(i), "held": i == 2})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_each_image_is_known_by_its_source(folder, art):
    made = data(dict(photos=dict(source=str(folder), heldout_where={"n": [3, 4, 5, 1]}),
                     art=dict(source=str(art), weight=3, caption="long", where={"held": False},
                              heldout_where={"held": True})))  # fmt: skip
    assert made.weights == (1.0, 3.0)
    images, heldout = open_data(made)
    assert len(images) == 8 and len(heldout) == 5
    assert np.bincount(images.parts).tolist() == [6, 2] and heldout.parts[:3].tolist() == [0, 0, 1]
    at = images.parts.tolist().index(1)
    assert images.name(at) == "art/0.png" and images.captions[at] == "drawing 0"
    assert images.rows.choices(np.array([at])) == [["drawing 0", "a drawing"]] and images.image(at).max() == 0
    assert images.rows[at] == {"file_name": "art/0.png", "text": ["drawing 0", "a drawing"], "n": "0", "held": False,
                               "long": ["drawing 0", "a drawing"]}
    first = images.rows[0]
    assert first["file_name"] == "photos/a/0.png" and first["n"] == 0 and first["tags"] == ["even"]
    np.testing.assert_array_equal(images.sizes()[images.parts == 0], [[8, 8], [8, 12]] * 3)
    assert images.take([at, 0]).parts.tolist() == [1, 0]
    again = data(schema.to_dict(schema.from_dict(dict(name="x", batch_size=4, total_images=8, model=MODEL,
                                                      data=dict(source=made.source))))["data"]["source"])
    assert again.source == made.source and again.source[1].name == "art"  # through JSON's values
    line = next(line for line in describing.shown(schema.from_dict(dict(
        name="x", batch_size=4, total_images=8, model=MODEL, data=dict(source=made.source))), True).splitlines()
        if ".source=" in line)  # fmt: skip
    assert "'weight': 3.0" in line and "Mixed(" not in line


def test_a_list_is_a_mixture_too_and_the_section_says_what_a_source_does_not(folder):
    few = dict(source=str(folder), name="few", where={"n": "<2"})
    made = data([str(folder), few], where={"n": ">0"}, caption="kind", heldout_share=0.0)
    images, _ = open_data(made)
    assert [part.name for part in made.source] == [str(folder), "few"]
    assert np.bincount(images.parts).tolist() == [5, 2] and set(images.captions) == {"face-smiling", "flag"}


def test_a_bad_record_is_named_by_its_source_and_one_of_its_source_stands_in(folder, art, tmp_path):
    (art / "1.png").write_bytes(b"no picture")
    made = data(dict(photos=str(folder), art=dict(source=str(art), caption="long")), heldout_share=0.0)
    images, _ = open_data(made)
    bad = Quarantine(tmp_path / "bad.jsonl", Bad(0.5), len(images))
    iterator = batches({}, image=images.image, bad=bad, length=len(images), batch_size=4, seed=0, parts=images.parts,
                       weights=made.weights)  # fmt: skip
    found = [next(iterator)["index"] for _ in range(12)]
    assert all((images.parts[batch] == 1).sum() == 2 for batch in found)
    assert len({*np.concatenate(found).tolist()}) == 8
    reason, = [json.loads(line)["reason"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert reason.startswith("art/1.png cannot be decoded")


@pytest.mark.parametrize(("source", "line"), [
    ({"a": {"source": "emoji64", "weight": 0}}, "config.data.source.a.weight=0.0 must be above 0"),
    ([{"source": "emoji64", "weight": -1}], r"config.data.source\[0\].weight=-1.0 must be above 0"),
    ([{"source": "emoji64", "wieght": 1}], r"config.data.source\[0\].wieght is an unknown key; did you mean 'weight'"),
    (["emoji64", "emoji64"], "config.data.source has 'emoji64' twice; give each a name of its own"),
    ([{"name": "a"}], r"config.data.source\[0\].source is missing"),
    ([3], r"config.data.source\[0\]=3 has the wrong type; give a dict"),
    ([], "config.data.source is empty; give a source, or several as"),
    (3, "config.data.source=3 has the wrong type; give str or a dict or a list of"),
    ({"a": "nowhere"}, "config.data.source.a: config.data.source='nowhere' is not there"),
    ({"a": "emoji64", "b": {"source": "emoji64", "where": {"styel": "noto"}}},
     "config.data.source.b: config.data.where.styel: emoji64 has no such field; did you mean 'style'"),
    ({"a": "emoji64", "b": {"source": "emoji64", "caption": "nam"}}, "source.b: config.data.caption='nam': emoji64"),
])  # fmt: skip
def test_what_cannot_be_is_one_line_with_the_source(source, line):
    with pytest.raises(ValueError, match=line) as caught:
        open_data(data(source))
    assert "\n" not in str(caught.value)


def test_captions_that_one_has_and_another_has_not(folder, art):
    with pytest.raises(ValueError, match="config.data.source.art: .* line 1 has no text"):
        open_data(data(dict(photos=str(folder), art=str(art))))
    (art / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="config.data.source.art has no captions, and photos has; say which") as caught:
        open_data(data(dict(photos=str(folder), art=str(art))))
    assert "\n" not in str(caught.value)
    images, _ = open_data(data(dict(photos=str(folder), art=dict(source=str(art), caption=""))))
    assert sorted(set(images.captions))[0] == ""
