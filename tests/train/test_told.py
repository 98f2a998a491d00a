"""What a run says of its data before it begins, and to whom it tells its metrics."""

import contextlib
import json
import signal
import types
import warnings

import numpy as np
import pytest

from lgm.data import Tokenizer
from lgm.data.tokenizer_files import CutShort
from lgm.parsing import ConfigError
from lgm.train import feeding, loop, trackers
from lgm.train.logs import MetricLog, ProgressLine, tag

LONG = "a smiling face with sunglasses and a red hat"


def config(long_captions="cut", **log):
    return types.SimpleNamespace(text=types.SimpleNamespace(long_captions=long_captions), name="x",
                                 log=types.SimpleNamespace(**{"trackers": (), **log}))  # fmt: skip


def test_captions_that_are_cut_are_counted_once_and_said_in_one_line(capsys):
    words = Tokenizer(max_length=5, truncate=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with feeding.long_captions(config(), 4):
            words.encode([LONG, LONG, "face", f"{LONG} too"])
        words.encode([LONG])  # no news while it trains
    out = capsys.readouterr().out
    assert out.startswith("captions: 2 of 4 that were looked at are longer") and out.count("\n") == 1
    with pytest.raises(ConfigError, match="6 tokens too long.*long_captions='cut'"), feeding.long_captions(
        config("refuse"), 1):  # fmt: skip
        words.encode([LONG])
    with pytest.warns(DeprecationWarning, match="other"), feeding.long_captions(config(), 1):
        warnings.warn("other", DeprecationWarning, stacklevel=1)


def test_a_later_long_caption_is_an_error_where_they_are_refused():
    with warnings.catch_warnings():
        with feeding.long_captions(config("refuse"), 1):
            pass
        with pytest.raises(CutShort, match="too long"):
            Tokenizer(max_length=5, truncate=True).encode([LONG])


def test_values_are_in_groups_on_an_axis_of_images(tmp_path):
    assert [tag(*pair) for pair in (("loss", "train"), ("heldout_loss", "heldout"), ("mfu", "train"),
                                    ("seconds/step", "train"), ("kernel_distance", "heldout"))] == [
        "train/loss", "heldout/loss", "speed/mfu", "seconds/step", "heldout/kernel_distance"]  # fmt: skip
    told = []
    tracker = types.SimpleNamespace(write=lambda *what: told.append(what), image=lambda *what: told.append(what[:2]),
                                    close=lambda end: told.append(end))  # fmt: skip
    log = MetricLog(tmp_path, 0, batch_size=8, trackers=[tracker])
    log.write(3, 24, {"loss": 1.0, "mfu": 0.5})
    log.image(24, "samples", np.zeros((2, 2, 3), np.uint8))
    log.close()
    assert told == [(24, {"train/loss": 1.0, "speed/mfu": 0.5}), (24, "samples"), "finished"]


def test_the_time_left_is_of_the_rate_since_the_first_step(capsys, monkeypatch):
    clock = iter([100.0, 110.0])  # after the first step, which took 100 s to compile; at the row
    monkeypatch.setattr("lgm.train.logs.time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    line = ProgressLine(1000, 0)
    line.note(0, {})
    for images in (10, 20, 110):
        line.advance(images)
    line.note(110, {"loss": 1.0, "s/step": 0.1})
    first, second = capsys.readouterr().err.splitlines()
    assert "left" not in first and second.endswith("loss 1  s/step 0.1  0:01:29 left")  # 890 images at 10 a second


class Recorded:
    """A module of W&B's and of MLflow's names, as these say their functions are called; what is called is kept."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*words, **named):
            self.calls.append((name, words, named))
            return types.SimpleNamespace(id="abc", info=types.SimpleNamespace(run_id="abc"), experiment_id="1",
                                         log=self.log, finish=self.finish,
                                         mark_preempting=self.mark_preempting)  # fmt: skip
        return call


def test_a_resumed_run_goes_on_in_the_trackers_runs(tmp_path, monkeypatch):
    wandb, client = Recorded(), Recorded()
    modules = {"wandb": wandb, "mlflow": types.SimpleNamespace(MlflowClient=lambda: client),
               "mlflow.entities": types.SimpleNamespace(Param=lambda key, value: (key, value))}  # fmt: skip
    monkeypatch.setattr(trackers, "importlib", types.SimpleNamespace(import_module=modules.get))
    monkeypatch.setattr(trackers.schema, "to_dict", lambda config: {"a": {"b": 1}})
    for number in (None, "abc"):
        for tracker in trackers.open_trackers(config(trackers=("wandb", "mlflow")), tmp_path):
            tracker.write(8, {"train/loss": 1.0})
            tracker.close("preempted")
        assert json.loads((tmp_path / trackers.NAME).read_text()) == {"wandb": "abc", "mlflow": "abc"}
        (named,) = [named for name, _, named in wandb.calls if name == "init"]
        assert named["id"] == number and named["resume"] == "allow"
        names = [name for name, _, _ in client.calls]
        assert names.count("create_run") == (number is None) and names[-1] == "set_terminated"
        assert ("log_metric", ("abc", "train/loss", 1.0), {"step": 8}) in client.calls
        assert ("set_terminated", ("abc", "KILLED"), {}) in client.calls  # and none that has failed
        assert ("set_tag", ("abc", "lgm.state", "preempted"), {}) in client.calls
        assert [name for name, _, _ in wandb.calls][-2:] == ["mark_preempting", "finish"]
        wandb.calls.clear(), client.calls.clear()


@pytest.mark.parametrize(("error", "end"), [
    (None, "finished"), (loop.Preempted(signal.SIGTERM, "at step 3"), "preempted"),
    (loop.Preempted(signal.SIGINT, "at step 3"), "interrupted"), (KeyboardInterrupt(), "interrupted"),
    (ValueError(), "failed"),
])
def test_trackers_are_told_how_a_run_ended(tmp_path, error, end):
    told = []
    log = MetricLog(tmp_path, 0, trackers=[types.SimpleNamespace(close=told.append)])
    with contextlib.suppress(BaseException), contextlib.closing(log):
        if error is not None:
            raise error
    assert told == [end]


def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"config.log.trackers has 'wandb'.*pip install 'lgm\[wandb\]'"):
        trackers.check_installed(config(trackers=("wandb",)))
