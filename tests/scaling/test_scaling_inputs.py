"""Tables as people keep them: JSON lines, and what MLflow, W&B and TensorBoard leave, give the fit of the CSV.

TensorBoard's files are written by torch's writer. MLflow's are made here in the forms in which mlflow 3.17 was seen to
write its file store and its database, W&B's as its runs leave them beside what they send (offline, wandb 0.31 leaves a
log of its own, which is refused); what other versions write this cannot show.
"""

import csv
import json
import sqlite3

import numpy as np
import pytest

from lgm.cli import main
from lgm.scaling import inputs, laws, table

LAW = laws.theta(400.0, 410.0, 1.69, 0.34, 0.28)
RUNS = [(n, d, float(laws.loss(LAW, n, d))) for n in np.geomspace(1e7, 1e9, 4).tolist()
        for d in np.geomspace(1e9, 3e10, 3).tolist()]


def as_csv(root):
    with (root / "runs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["params", "tokens", "loss"])
        writer.writerows(RUNS)
    return root / "runs.csv"


def as_jsonl(root):
    rows = [{"config": {"n_params": n, "mixture": ["a", "b"]}, "data": {"tokens": d}, "eval": {"loss": loss},
             "ok": True} for n, d, loss in RUNS]
    (root / "runs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return root / "runs.jsonl"


def as_json(root):
    (root / "runs.json").write_text(json.dumps([dict(params=n, tokens=d, loss=loss) for n, d, loss in RUNS]))
    return root / "runs.json"


def as_mlflow(root):
    for number, (n, d, loss) in enumerate(RUNS):
        run = root / "mlruns" / "0" / f"{number:032x}"
        for name in ("params", "metrics/eval", "tags", "artifacts"):
            (run / name).mkdir(parents=True)
        (run / "meta.yaml").write_text(f"run_id: {run.name}\nlifecycle_stage: active\n")
        (run / "params" / "params").write_text(repr(n))
        (run / "params" / "tokens").write_text(repr(d))
        (run / "metrics" / "eval" / "loss").write_text(f"1790000000000 9.5 0\n1790000000001 {loss!r} 100\n")
    return root / "mlruns"


def as_database(root):
    base = sqlite3.connect(root / "mlflow.db")
    base.execute("create table runs (run_uuid text, name text, lifecycle_stage text, start_time integer)")
    base.execute("create table params (run_uuid text, key text, value text)")
    base.execute("create table latest_metrics (run_uuid text, key text, value real, timestamp integer, step integer)")
    for number, (n, d, loss) in enumerate(RUNS):
        base.execute("insert into runs values (?, ?, 'active', ?)", (f"{number:032x}", f"run-{number}", number))
        base.executemany("insert into params values (?, ?, ?)", [(f"{number:032x}", "params", repr(n)),
                                                                 (f"{number:032x}", "tokens", repr(d))])
        base.execute("insert into latest_metrics values (?, 'loss', ?, 1, 1)", (f"{number:032x}", loss))
    base.execute("insert into runs values ('gone', 'gone', 'deleted', 1)")
    base.commit()
    base.close()
    return root / "mlflow.db"


def as_wandb(root):
    for number, (n, d, loss) in enumerate(RUNS):
        files = root / "wandb" / f"offline-run-20261130_0900{number:02d}-abc{number}" / "files"
        files.mkdir(parents=True)
        (files / "config.yaml").write_text(f"_wandb:\n    value:\n        cli_version: 0.28.0\nmodel:\n    value:\n"
                                           f"        n_params: {n!r}\ntokens:\n    value: {d!r}\n")
        (files / "wandb-summary.json").write_text(json.dumps({"_step": 9, "_runtime": 3.5, "eval": {"loss": loss}}))
    return root / "wandb"


def as_tensorboard(root):
    from torch.utils.tensorboard import SummaryWriter

    for number, (n, d, loss) in enumerate(RUNS):
        with SummaryWriter(str(root / "tb" / f"run{number}")) as writer:
            writer.add_scalar("train/rate", 0.1, 1)
            writer.add_hparams({"params": n, "tokens": d, "kind": "a"}, {"loss": 9.0, "other": 1.0}, run_name="hp")
        with SummaryWriter(str(root / "tb" / f"run{number}" / "hp")) as writer:
            writer.add_scalar("loss", loss, 2)
    return root / "tb"


FORMS = {form.__name__: form for form in (as_csv, as_jsonl, as_json, as_mlflow, as_database, as_wandb, as_tensorboard)}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_runs_are_read_from_every_form(form, tmp_path):
    (runs,) = table.read(FORMS[form](tmp_path)).families
    found = sorted(zip(runs.n.tolist(), runs.d.tolist(), runs.loss.tolist(), strict=True))
    # TensorBoard's scalars are float32
    np.testing.assert_allclose(found, sorted(RUNS), rtol=1e-6 if form == "as_tensorboard" else 0)
    assert runs.unit == "tokens" and not runs.dropped


def test_a_folder_of_runs_is_fitted_from_the_command_line(tmp_path, capsys):
    words = ["--budget=1e20", "--draws=100", "--loss=loss"]
    assert main(["fit", f"--data={as_wandb(tmp_path)}", f"--out={tmp_path / 'fit'}", *words]) == 0
    assert "column 'n_params' is read as params" in capsys.readouterr().out
    data = json.loads((tmp_path / "fit" / "fit.json").read_text())["data"]
    assert data["file"] == "wandb" and data["rows"] == len(RUNS) and len(data["sha256"]) == 64


def test_names_that_two_columns_share_are_told_whole(tmp_path):
    (tmp_path / "runs.jsonl").write_text("\n".join(
        json.dumps({"train": {"loss": 9.0}, "eval": {"loss": loss}, "params": n, "tokens": d}) for n, d, loss in RUNS))
    assert {"train/loss", "eval/loss", "params", "tokens"} == set(inputs.read(tmp_path / "runs.jsonl").header)
    (runs,) = table.read(tmp_path / "runs.jsonl", loss="eval/loss").families
    assert runs.loss.max() < 9
    with pytest.raises(ValueError, match="column 'loss' is missing; did you mean --loss="):
        table.read(tmp_path / "runs.jsonl")


def test_runs_that_never_began_are_left_out_and_those_without_a_loss_dropped(tmp_path):
    path = as_jsonl(tmp_path)
    path.write_text(path.read_text() + '{"name": "crashed"}\n{"config": {"n_params": 5e7}, "data": {"tokens": 1e9}}\n')
    read = table.read(path)
    (runs,) = read.families
    assert len(runs) == len(RUNS) and [row for row, _ in runs.dropped] == [len(RUNS) + 3]
    assert "1 runs without any number are left out" in runs.notes


BAD = {
    "no runs": (lambda root: (root / "x").mkdir() or root / "x", "is a folder without runs of MLflow"),
    "no object": (lambda root: _write(root / "a.jsonl", '{"loss": 1}\n[1, 2]\n'), "line 2"),
    "half an object": (lambda root: _write(root / "a.jsonl", '{"loss": 1}\n{"loss"'), "line 2"),
    "no list": (lambda root: _write(root / "a.json", '{"loss": 1}'), "is not a list of objects"),
    "deep": (lambda root: _write(root / "a.json", "[" * 100_000), "is not JSON"),
    "another database": (lambda root: _database(root / "a.db"), "is no database of MLflow"),
    "a cut database": (lambda root: _write(root / "a.db", "SQLite format 3\0" + "x" * 200), "is no database of MLflow"),
    "bad YAML": (lambda root: _wandb(root, "a: [1", "{}"), "is not YAML"),
    "bad summary": (lambda root: _wandb(root, "a: {value: 1}", "{"), "wandb-summary.json"),
    "offline W&B": (lambda root: _write(root / "run-1.wandb", ":W&B").parent, "holds offline runs of W&B"),
    "bad metric": (lambda root: _metric(root, "nothing"), "does not end in a line of time, value and step"),
}


def _write(path, text):
    path.write_text(text)
    return path


def _database(path):
    base = sqlite3.connect(path)
    base.execute("create table runs (name text)")
    base.commit()
    base.close()
    return path


def _wandb(root, config, summary):
    files = root / "wandb" / "run-1" / "files"
    files.mkdir(parents=True)
    (files / "config.yaml").write_text(config)
    (files / "wandb-summary.json").write_text(summary)
    return root / "wandb"


def _metric(root, text):
    place = root / "mlruns" / "0" / "1" / "metrics"
    place.mkdir(parents=True)
    (place / "loss").write_text(text)
    return root / "mlruns"


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_table_is_one_line(kind, tmp_path, capsys):
    make, part = BAD[kind]
    assert main(["fit", f"--data={make(tmp_path)}", f"--out={tmp_path / 'fit'}"]) == 2
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1 and not (tmp_path / "fit").exists()
