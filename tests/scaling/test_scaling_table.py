"""CSV files of runs: what is read, derived and dropped, and the one line for what is not a table."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgm.cli import main
from lgm.scaling import table
from lgm.scaling.table import Limits, read

HEADER = "family,seed,params,images,flops,loss"
GOOD = ["a,0,1e6,1e7,6e13,1.5", "a,0,2e6,1e7,1.2e14,1.4", "b,0,1e6,1e7,6e13,1.6"]


def write(path, lines, header=HEADER):
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


@pytest.mark.parametrize(("text", "parts"), [
    ("", ["is empty", "loss"]),
    ("\n\n", ["is empty"]),
    (HEADER, ["no row"]),
    (HEADER + "\na,0,1e6,1e7,6e13,1.5", ["row 2", "only row"]),
    ("params,images,flops\n1,2,3", ["'loss' is missing", "params, images, flops"]),
    ("params,loss\n1,2", ["'images' or 'tokens' and 'flops' are missing", "params, loss"]),
    ("images,flops,loss\n1,2,3\n2,3,4", ["'params' is missing", "--tokens-per-image"]),
    ("\n".join([HEADER, *GOOD, "a,0,3e6,many,6e13,1.5"]), ["row 5", "'images'", "'many' is not a number"]),
    ("\n".join([HEADER, *GOOD, "a,0,3e6,,6e13,1.5"]), ["row 5", "'images' is empty"]),
    ("\n".join([HEADER, *GOOD, "a,0,3e6,1e7,6e13,low"]), ["row 5", "'loss'", "'low' is not a number"]),
    ("\n".join([HEADER, *GOOD, "a,0,3e6,1e7,6e13,-1.5"]), ["row 5", "'loss'", "must be positive"]),
    ("\n".join([HEADER, "a,0,3e6,1e7,6e13,nan", "a,0,4e6,1e7,6e13,"]), ["all 2 rows are dropped", "no finite loss"]),
    ("params,images,loss_\n1,2,3\n2,3,4", ["'loss' is missing; did you mean --loss=loss_?"]),
    ("params,images,val_loss\n1,2,3\n2,3,4", ["did you mean --loss=val_loss?"]),
    ("paramz,images,loss\n1,2,3\n2,3,4", ["'paramz' is not read: rename it where it is 'params'"]),
    ("params;images;loss\n1;2;3", ["row 2 is the only row"]),
    ("params;images;loss\n1;2;3\n1;2,5.1;3", ["row 3, column 'images': '2,5.1' is not a number"]),
    ("\n".join([HEADER, *GOOD, "a,0,3e6,1e7,inf,1.5"]), ["row 5", "'flops'", "not finite"]),
    ("\n".join([HEADER, *GOOD, "a,0,-3e6,1e7,6e13,1.5"]), ["row 5", "'params'", "must be positive"]),
    ("\n".join([HEADER, *GOOD, "a,0,3e6,1e7,6e13,0"]), ["row 5", "'loss'", "must be positive"]),
    ("\n".join([HEADER, *GOOD, "a,0,2e6,1e7,1.2e14,1.3"]), ["row 5", "repeats", "of row 3 with another loss"]),
    ("\n".join([HEADER, *GOOD, "a,0,3e6,1e7"]), ["row 5 has 4 cells", "6 columns"]),
    ("\n".join([HEADER, *GOOD, ",0,3e6,1e7,6e13,1.5"]), ["row 5", "'family' is empty"]),
    ("loss,loss,params,images\n1,2,3,4", ["'loss' appears twice"]),
    ('params,images,loss\n1,2,"3', ["row 2"]),
])
def test_a_bad_table_is_one_line_and_nothing_is_written(text, parts, tmp_path, capsys):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    assert main(["fit", f"--data={path}", f"--out={tmp_path / 'out'}"]) != 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"lgm fit: {path}")
    for part in parts:
        assert part in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_text_or_not_there(tmp_path, capsys):
    (tmp_path / "x.csv").write_bytes(b"loss,params\n\xff\xfe")
    for name in ("x.csv", "nowhere.csv"):
        assert main(["fit", f"--data={tmp_path / name}", f"--out={tmp_path / 'out'}"]) != 0
        line, = capsys.readouterr().err.splitlines()
        assert name in line


def test_any_two_of_three_kinds_give_the_third(tmp_path):
    whole = read(write(tmp_path / "a.csv", ["1e6,256e7,1.536e16,1.5", "2e6,256e7,3.072e16,1.4"],
                       "params,tokens,flops,loss")).families[0]
    for header, cells, tokens_per_image in [
        ("params,tokens,loss", ["1e6,256e7,1.5", "2e6,256e7,1.4"], None),
        ("params,flops,loss", ["1e6,1.536e16,1.5", "2e6,3.072e16,1.4"], None),
        ("tokens,flops,loss", ["256e7,1.536e16,1.5", "256e7,3.072e16,1.4"], None),
        ("images,flops,loss", ["1e7,1.536e16,1.5", "1e7,3.072e16,1.4"], 256),
        ("params,images,loss", ["1e6,1e7,1.5", "2e6,1e7,1.4"], 256),
    ]:
        runs = read(write(tmp_path / "b.csv", cells, header), tokens_per_image).families[0]
        tokens = runs.d * (256 if runs.unit == "images" else 1)
        for got, want in ((runs.n, whole.n), (tokens, whole.d), (runs.flops, whole.flops)):
            assert got == pytest.approx(want, rel=1e-12)


def test_images_without_tokens_have_no_flops(tmp_path):
    runs = read(write(tmp_path / "a.csv", ["1e6,1e7,1.5", "2e6,1e7,1.4"], "params,images,loss")).families[0]
    assert runs.flops is None and runs.unit == "images"


def test_frozen_encoders_cost_what_a_flag_says(tmp_path, capsys):
    path = write(tmp_path / "a.csv", ["1e6,1e7,6e13,1e13,1.5", "2e6,1e7,1.2e14,0.0,1.4"],
                 "params,images,flops,frozen_flops,loss")
    assert read(path).families[0].flops.tolist() == [6e13, 1.2e14]
    counted = read(path, frozen=True).families[0]
    assert counted.flops.tolist() == [7e13, 1.2e14] and "FLOPs are flops + frozen_flops" in counted.notes
    bare = write(tmp_path / "b.csv", GOOD)
    assert main(["fit", f"--data={bare}", f"--out={tmp_path / 'fit'}", "--frozen"]) == 2
    assert "--frozen needs columns 'flops' and 'frozen_flops'" in capsys.readouterr().err


def test_dropped_rows_keep_their_reasons(tmp_path):
    rows = ["1e6,1e7,6e13,1.5", "2e6,1e7,1.2e14,1.4", "3e6,1e6,1.8e13,3.9", "4e6,1e7,2.4e14,1.2"]
    path = write(tmp_path / "a.csv", rows, "params,images,flops,loss")
    runs = read(path, limits=Limits(min_params=1.5e6, max_loss=2.0)).families[0]
    assert runs.row.tolist() == [3, 5]
    assert [row for row, _ in runs.dropped] == [2, 4]
    assert "--min-params" in runs.dropped[0][1] and "--max-loss" in runs.dropped[1][1]


def test_runs_that_diverged_or_are_there_twice_are_dropped_with_the_reason(tmp_path):
    rows = [*GOOD, GOOD[1], "a,0,4e6,1e7,6e13,nan", "a,0,5e6,1e7,6e13,", "a,0,6e6,1e7,6e13,-inf",
            "a,0,4e6,1e7,6e13,1.1"]
    runs = read(write(tmp_path / "a.csv", rows)).families[0]
    assert runs.row.tolist() == [2, 3, 9] and runs.loss.tolist() == [1.5, 1.4, 1.1]
    reasons = dict(runs.dropped)
    assert reasons.pop(5) == "the same run is in an earlier row" and set(reasons) == {6, 7, 8}
    assert set(reasons.values()) == {"no finite loss: the run diverged or has not ended"}


def test_a_learning_rate_under_which_a_seed_diverged_is_not_the_best(tmp_path):
    rows = ["1e6,1e7,0,1e-3,1.5", "1e6,1e7,1,1e-3,1.52", "1e6,1e7,0,3e-3,1.4", "1e6,1e7,1,3e-3,nan"]
    runs = read(write(tmp_path / "a.csv", rows, "params,images,seed,learning_rate,loss")).families[0]
    assert runs.row.tolist() == [2, 3]


def test_a_best_learning_rate_at_the_end_of_those_tried_is_told(tmp_path):
    rows = [f"{n},1e7,{rate},{loss}" for n, losses in (("1e6", (1.6, 1.5, 1.55)), ("2e6", (1.5, 1.4, 1.3)))
            for rate, loss in zip((1e-3, 2e-3, 4e-3), losses, strict=True)]
    runs = read(write(tmp_path / "a.csv", rows, "params,images,learning_rate,loss")).families[0]
    assert runs.loss.tolist() == [1.5, 1.3]
    note, = runs.notes
    assert "lowest or the highest of those tried at 1 of 2 sizes" in note
    inside = [row for row in rows if not row.startswith("2e6,1e7,0.004")] + ["2e6,1e7,0.008,1.45", "2e6,1e7,0.004,1.3"]
    assert read(write(tmp_path / "b.csv", inside, "params,images,learning_rate,loss")).families[0].notes == ()


def test_columns_that_are_not_read_tell_rows_of_one_seed_apart(tmp_path):
    rows = ["1e6,1e7,0,32,1.5", "1e6,1e7,0,64,1.4"]
    assert len(read(write(tmp_path / "a.csv", rows, "params,images,seed,batch_size,loss")).families[0]) == 2


def test_case_does_not_matter_and_near_misses_are_told(tmp_path):
    runs = read(write(tmp_path / "a.csv", ["u,1e6,1e7,1.5", "v,2e6,1e7,1.4"], "Familly,Params,IMAGES,Loss")).families[0]
    assert runs.n.tolist() == [1e6, 2e6] and runs.unit == "images"
    assert runs.notes == ("column 'Familly' is not read: rename it where it is 'family'",)


def test_only_the_best_learning_rate_is_fitted_but_all_of_its_seeds(tmp_path):
    rows = ["1e6,1e7,0,1e-3,1.5", "1e6,1e7,1,1e-3,1.52", "1e6,1e7,0,3e-3,1.49", "1e6,1e7,1,3e-3,1.6",
            "2e6,1e7,0,3e-3,1.3"]
    runs = read(write(tmp_path / "a.csv", rows, "params,images,seed,learning_rate,loss")).families[0]
    assert runs.row.tolist() == [2, 3, 6]
    assert {reason for _, reason in runs.dropped} == {"another learning rate is better at this size and data"}


def test_rows_of_one_training_run_share_a_number(tmp_path):
    rows = ["x,1e6,1e7,1.5", "x,1e6,2e7,1.4", "y,2e6,1e7,1.3"]
    runs = read(write(tmp_path / "a.csv", rows, "run,params,images,loss")).families[0]
    assert runs.run[0] == runs.run[1] != runs.run[2]


def test_a_byte_order_mark_blank_lines_and_other_columns_are_no_trouble(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfparams, images ,loss,note\r\n\r\n1e6,1e7,1.5,first\r\n2e6,1e7, 1.4,\r\n")
    runs = read(path).families[0]
    assert runs.n.tolist() == [1e6, 2e6] and runs.loss.tolist() == [1.5, 1.4] and runs.row.tolist() == [3, 4]


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_other_separators_come_with_decimal_commas(tmp_path, mark):
    path = tmp_path / "a.csv"
    path.write_text("\n".join(mark.join(row) for row in (("params", "images", "loss"), ("1e6", "1e7", "1,5"),
                                                         ("2000000", "1e7", "1.25"))))
    runs = read(path).families[0]
    assert runs.loss.tolist() == [1.5, 1.25] and runs.n.tolist() == [1e6, 2e6]
    assert runs.notes[0] == f"cells are separated by {mark!r}"


def test_names_that_can_mean_one_thing_are_read_and_said(tmp_path):
    runs = read(write(tmp_path / "a.csv", ["1e6,1e7,1.5", "2e6,1e7,1.4"], "N_Params,tokens_seen,loss")).families[0]
    assert runs.n.tolist() == [1e6, 2e6] and runs.unit == "tokens"
    assert runs.notes[:2] == ("column 'N_Params' is read as params", "column 'tokens_seen' is read as tokens")
    with pytest.raises(ValueError, match="are missing"):  # which of two is it?
        read(write(tmp_path / "b.csv", ["1e6,2e6,1e7,1.5", "2e6,3e6,1e7,1.4"], "n_params,num_params,tokens_seen,loss"))


def test_families_are_named_by_any_columns(tmp_path):
    lines = ["a,x,0,1e6,1e7,1.5", "a,y,0,1e6,1e7,1.6", "b,x,0,1e6,1e7,1.7", "b,x,1,1e6,1e7,1.7"]
    path = write(tmp_path / "a.csv", lines, "project,kind,seed,params,images,loss")
    assert [f.family for f in read(path, family="project").families] == ["a", "b"]
    assert [f.family for f in read(path, family="project,kind").families] == ["a x", "a y", "b x"]
    whole = read(path).families[0]
    assert set(whole.unread) == {"project", "kind"} and whole.unread["kind"].tolist() == ["x", "y", "x", "x"]
    with pytest.raises(ValueError, match="'projekt', of --family-column, is missing; did you mean 'project'"):
        read(path, family="projekt")


def test_the_end_of_a_learning_curve_is_one_row(tmp_path):
    lines = [f"{run},{size},{d},{loss}" for run, size in (("x", "1e6"), ("y", "2e6"))
             for d, loss in ((100, 3), (950, 2.2), (1000, 2.0))]
    runs = read(write(tmp_path / "a.csv", lines, "run,params,images,loss"), rows="last").families[0]
    assert runs.n.tolist() == [1e6, 2e6] and runs.d.tolist() == [1000, 1000] and runs.loss.tolist() == [2.1, 2.1]


positive = st.floats(1e-3, 1e25, allow_subnormal=False)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(positive, positive, positive), min_size=2, max_size=20, unique=True))
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "runs.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("params", "tokens", "loss"), *rows])
    runs = table.read(path).families[0]
    np.testing.assert_array_equal(np.stack([runs.n, runs.d, runs.loss], -1), np.array(rows))
    np.testing.assert_allclose(runs.flops, 6 * runs.n * runs.d)
