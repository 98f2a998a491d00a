"""What is varied, which points no other one beats, and a page that needs no other file."""

import html
import json
import re

import numpy as np
import pytest

from lgm.cli import main
from lgm.evaluate import figures
from lgm.evaluate.curves import front, points, read_axis, with_values
from lgm.evaluate.evaluations import evaluations
from lgm.evaluate.page import page
from lgm.evaluate.protocol import parse_protocol
from lgm.gaussian import rectified_flow
from lgm.parsing import ConfigError
from lgm.sampler import Sampler, resolve
from lgm.sampling import guided, plain

BASE = parse_protocol({"metrics": ["kernel"], "drawing": {"steps": 9}, "weights": {"hash": "ab"}})


def row(line, axis, value, evaluations, **metrics):
    return {"run": line, "line": line, "axis": axis, "value": value, "evaluations": evaluations, "metrics": metrics,
            "images": 8, "hash": "0" * 64, "file": f"{line}-{axis}-{value}"}  # fmt: skip


def test_an_axis_is_what_it_says():
    axis = read_axis("steps=1,2; solver=dpmpp_2m")
    assert axis.values == (1, 2) and axis.label == "solver=dpmpp_2m"
    one, two = points(BASE, [axis])
    assert (one.protocol.drawing.steps, two.protocol.drawing.steps) == (1, 2)
    assert one.protocol.drawing.solver == two.protocol.drawing.solver == "dpmpp_2m"
    assert one.protocol.weights.hash == "ab"
    assert with_values(BASE, [("images", 64)]).weights.hash is None  # a hash of other weights says nothing of these
    assert read_axis("solver=euler,unipc:order=3,variant=bh1,heun").values == (
        "euler", "unipc:order=3,variant=bh1", "heun")
    assert read_axis("guidance=1.5").values == (1.5,) and read_axis("interval=(0.1,0.9)").values == ((0.1, 0.9),)


@pytest.mark.parametrize(("text", "words"), [
    ("step=1", "did you mean 'steps'"), ("steps", "should read NAME=VALUE"), ("steps=", "gives steps no value"),
    ("steps=1; guidance=1,2", "guidance is held at one value"), ("steps=1;steps=2", "held at one value"),
])
def test_what_is_no_axis_is_one_line(text, words):
    with pytest.raises(ConfigError, match=words) as error:
        read_axis(text)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"protocol.drawing.steps=0 must be at least 1"):
        points(BASE, [read_axis("steps=0")])


def test_the_front_is_of_points_that_no_other_one_beats():
    values = [(4, 0.5), (2, 0.9), (8, 0.5), (8, 0.3), (16, 0.4), (2, 1.0), (None, 0.1)]
    rows = [row("a", "steps", i, cost, kernel=value) for i, (cost, value) in enumerate(values)]
    assert front(rows, "kernel") == [1, 0, 3]
    up = [row("a", "steps", i, cost, recall=value) for i, (cost, value) in enumerate(values)]
    assert front(up, "recall") == [5]  # of recall more is better

    def beaten(i):  # by definition
        return any(rows[j]["evaluations"] and rows[j]["evaluations"] <= rows[i]["evaluations"]
                   and rows[j]["metrics"]["kernel"] <= rows[i]["metrics"]["kernel"]
                   and (rows[j]["evaluations"], rows[j]["metrics"]["kernel"]) != (rows[i]["evaluations"],
                                                                               rows[i]["metrics"]["kernel"])
                   for j in range(len(rows)))
    assert sorted(front(rows, "kernel")) == [i for i in range(6) if not beaten(i)]


@pytest.mark.parametrize(("solver", "scale", "interval", "count"), [
    ("euler", None, (0.0, 1.0), 4), ("euler", 2.0, (0.0, 1.0), 8), ("heun", None, (0.0, 1.0), 7),
    ("euler", 2.0, (0.0, 0.6), 6),  # times 1, 0.75 | 0.5, 0.25: guided in two of four steps
])
def test_evaluations_are_those_that_happen(solver, scale, interval, count):
    flow = rectified_flow()
    times, method, factor = resolve(flow, "flow", 4, {}, solver, 1)
    sampler = Sampler(times, *guided(method, scale and plain(scale), interval), factor)
    assert evaluations(sampler, flow, "flow") == count


def test_a_page_needs_no_other_file_and_marks_the_best():
    rows = [row(line, "steps", steps, 2 * steps, kernel=value / steps, kernel_error=0.01)
            for line, value in (("one <run>", 1.0), ("two", 0.5)) for steps in (1, 2)]
    image = np.zeros((8, 8, 3), np.uint8)
    drawn = {"steps": figures.curves(rows, "steps", ["kernel"]), "front": figures.pareto(rows, "kernel")}
    text = page("A & B", rows, ["kernel"], drawn, {row["file"]: {0: image} for row in rows}, {0: image}, {0: "a < b"},
                {"two": {0: {0: image}}}, {"metrics": ["kernel"]})
    assert "A &amp; B" in text and "one &lt;run&gt;" in text and "a &lt; b" in text
    assert not re.search(r"(src|href)=['\"]?(?!['\"]?data:)", text) and "<script" not in text
    assert text.count("data:image/png;base64,") == 2 + 4 + 1 + 1 + 1  # figures, points, real twice, a seed
    assert text.count("class=best") == 1 and "<span class=best>0.25 ± 0.01</span>" in text


def test_every_one_of_many_lines_has_a_look_of_its_own():
    rows = [row(str(number), "steps", 1, 1, kernel=1.0) for number in range(14)]
    assert len({figures._style(rows, line["line"]) for line in rows}) == 14


@pytest.mark.slow
def test_curves_of_a_run_and_going_on_where_they_were_stopped(tiny_run, tmp_path, capsys):
    path, out = tmp_path / "protocol.json", tmp_path / "curves"
    path.write_text(json.dumps(dict(
        metrics=["kernel"], count=4, batch=4, drawing=dict(solver="euler"),
        features=dict(name="autoencoder:emoji64"), reference=dict(source="train"))))  # fmt: skip
    words = ["evaluate", "curves", f"--workdir={tiny_run}", f"--protocol={path}", f"--out={out}", "--vary=steps=1,2"]
    assert main(words) == 0
    made = {file: file.stat().st_mtime_ns for file in (out / "evaluations").iterdir()}
    assert len(made) == 2
    assert main([*words, "--vary=images=72,96,8000"]) == 0
    said = capsys.readouterr().err
    assert "5/5  images=8000 is left out: " in said and "has no checkpoint of step 1000; there are those" in said
    after = {file: file.stat().st_mtime_ns for file in (out / "evaluations").iterdir()}
    assert len(after) == 4 and {file: after[file] for file in made} == made
    found = json.loads((out / "curves.json").read_text())
    assert [point["evaluations"] for point in found["points"]] == [2, 4, 4, 4]
    (unable,) = found["left_out"]
    assert unable["value"] == 8000 and unable["why"] in html.unescape((out / "page.html").read_text())
    assert found["points"][1]["metrics"] == found["points"][3]["metrics"]  # the last checkpoint is the newest
    assert {file.name for file in out.iterdir()} == {"curves.json", "page.html", "steps.png", "images.png", "front.png",
                                                     "evaluations", "pictures"}
    assert len(list((out / "pictures").rglob("*.png"))) == 4 * 4
    capsys.readouterr()
    assert main([*words[:-1], "--vary=images=8000,16000"]) == 2  # none of a run's points can be made
    assert len(capsys.readouterr().err.splitlines()) == 2
    for more, part in ((["--vary=steps=0"], "steps=0"), (["--from=x"], "--from is not for curves"),
                       ([f"--workdir={tiny_run}"], "names a run twice"), (["--metric=heldout"], "are of drawn images")):
        assert main([*words, *more]) == 2
        line = capsys.readouterr().err
        assert part in line and len(line.splitlines()) == 1
