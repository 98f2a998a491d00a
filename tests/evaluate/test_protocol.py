"""A protocol is parsed strictly, stored whole, and any of its values that changes changes the hash."""

import copy
import dataclasses
import json

import pytest

from lgm.evaluate import protocol as schema
from lgm.evaluate.protocol import Evaluation, Found, Protocol, parse_protocol, read_evaluation, read_protocol
from lgm.parsing import ConfigError, as_dict

FULL = dict(
    metrics=["frechet", {"name": "likelihood", "steps": 8}], version=1, name="a", system="mmdit",
    prompts=dict(texts=[], source="emoji64", where={"split": "heldout"}, caption="text"), count=8, seeds=[0, 1],
    size=[64, 48], resize="bicubic", batch=4,
    drawing=dict(solver="heun", steps=3, guidance=2.0, rule="plain", interval=[0.1, 0.9], negative="blur",
                 schedule={"shift": 3.0}, clip=4.0),
    weights=dict(kind="ema", images=96, half_life_images=32, hash="ab"), features=dict(name="inception:x", hash="cd"),
    reference=dict(source="photos", where={"category": "cats"}, hash="ef"),
    intervals=dict(draws=20, seed=1, level=0.9),
)  # fmt: skip
FOUND = dict(system="mmdit", size=[64, 48], drawing={"solver": "heun"}, prompts={"count": 3, "hash": "a"},
             weights={"hash": "b"}, features={"hash": "c"}, reference={"hash": "d"}, versions={"jax": "0"})  # fmt: skip


def places(values, path=()):
    """The path of every value in nested dicts and lists, but for names of metrics' sections."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield from places(value, (*path, key)) if isinstance(value, dict | list) and value else [(*path, key)]


def changed(values, path):
    values = copy.deepcopy(values)
    *way, last = path
    inner = values
    for key in way:
        inner = inner[key]
    old = inner[last]
    inner[last] = f"{old}x" if isinstance(old, str) else ["x"] if isinstance(old, list) else (old or 0) + 1
    return values


def evaluation(protocol=FULL, found=FOUND, **values):
    return Evaluation(parse_protocol(protocol), Found(**found), {"frechet": 0.1}, {}, {}, **values)


def test_every_field_is_in_the_test_and_in_the_file():
    def names(record, values):
        for field in dataclasses.fields(record):
            assert field.name in values, field.name
    for record, values in ((Protocol, FULL), (Found, FOUND), *(
            (type(getattr(parse_protocol(FULL), name)), FULL[name])
            for name in ("prompts", "drawing", "weights", "features", "reference", "intervals"))):
        names(record, values)
    assert as_dict(parse_protocol(FULL)) == FULL


@pytest.mark.parametrize("path", list(places(FULL)), ids=str)
def test_any_changed_value_of_a_protocol_changes_the_hash(path):
    stated = as_dict(parse_protocol(FULL))
    assert schema.digest(changed(stated, path)) != schema.digest(stated)


@pytest.mark.parametrize("path", list(places(FOUND)), ids=str)
def test_any_changed_finding_changes_the_hash_and_no_order_does(path):
    assert evaluation(found=changed(FOUND, path)).hash != evaluation().hash
    assert evaluation(dict(reversed(FULL.items())), dict(reversed(FOUND.items()))).hash == evaluation().hash


def test_an_evaluation_is_read_back_and_one_that_was_changed_is_refused(tmp_path):
    path = tmp_path / "evaluation.json"
    evaluation().write(path)
    assert read_evaluation(path) == dataclasses.replace(evaluation(), found=read_evaluation(path).found)
    assert read_protocol(path) == parse_protocol(FULL)  # an evaluation is a protocol, too
    values = json.loads(path.read_text())
    values["protocol"]["drawing"]["steps"] = 4
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="was changed after it was made"):
        read_evaluation(path)


@pytest.mark.parametrize(("change", "words"), [
    ({"metrics": []}, "protocol.metrics is empty"), ({"metrics": ["a", "a"]}, "names a twice"),
    ({"metrics": [3]}, "protocol.metrics holds 3"), ({"metrcs": []}, "metrcs is an unknown key; did you mean"),
    ({"version": 2}, "protocol.version=2 is of another lgm"), ({"seeds": []}, "protocol.seeds"),
    ({"seeds": [-1]}, "seed=-1 must lie in"), ({"count": 0}, "protocol.count=0 must be at least 1"),
    ({"resize": "nearest"}, "protocol.resize='nearest' is not one of 'lanczos'"),
    ({"drawing": {"steps": "3"}}, "protocol.drawing.steps='3' has the wrong type"),
    ({"prompts": {"texts": [" "]}}, "which is empty"),
    ({"prompts": {"texts": ["a"], "source": "b"}}, "texts and a source"),
    ({"weights": {"kind": "raw", "half_life_images": 3}}, "of averaged weights"),
    ({"intervals": {"level": 1.0}}, "protocol.intervals.level=1.0 must lie in (0, 1)"),
    ({"intervals": {"draws": 1}}, "protocol.intervals.draws=1 must be at least 2"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(change, words):
    with pytest.raises(ConfigError) as error:
        parse_protocol({"metrics": ["frechet"]} | change)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_protocols_are_one_line(tmp_path):
    path = tmp_path / "x.json"
    for content, words in (("{", "no JSON object"), ("[]", "a list instead"), ("{}", "protocol.metrics is missing")):
        path.write_text(content)
        with pytest.raises(ConfigError, match=words):
            read_protocol(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_protocol(tmp_path / "absent.json")
    path.write_text("{}")
    with pytest.raises(ConfigError, match="is no evaluation: it has no hash"):
        read_evaluation(path)
