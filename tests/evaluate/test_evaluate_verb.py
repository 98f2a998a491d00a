"""`lgm evaluate` by protocol: of a run, of pictures, and what it refuses, in one line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lgm.cli import main
from lgm.data import open_images
from lgm.evaluate import distance
from lgm.evaluate.statistics import Statistics, save_statistics

PROTOCOL = dict(metrics=["frechet", "kernel"], count=8, batch=2, drawing=dict(steps=2, solver="euler"),
                features=dict(name="autoencoder:emoji64"), reference=dict(source="heldout"))  # fmt: skip


@pytest.fixture
def evaluated(tiny_run, tmp_path, capsys):
    """evaluate(**changes of the protocol) -> evaluation.json of the tiny run, or the line that says what is wrong."""

    def evaluate(*words, source=None, **changes):
        path, out = tmp_path / "protocol.json", tmp_path / "evaluation.json"
        path.write_text(json.dumps(PROTOCOL | changes))
        source = [f"--workdir={tiny_run}"] if source is None else source
        code = main(["evaluate", *source, f"--protocol={path}", f"--out={out}", *words])
        err = capsys.readouterr().err
        if code:
            assert code == 2 and len(err.splitlines()) == 1 and err.startswith("lgm evaluate: "), err
            return err
        return json.loads(out.read_text())

    return evaluate


def test_a_run_by_protocol_and_its_pictures_measured_again_say_the_same(evaluated, tmp_path, capsys):
    found = evaluated(f"--pictures={tmp_path / 'drawn'}")
    assert found["drawn"] == {"images": 8, "hash": found["drawn"]["hash"], "evaluations": 4}  # 2 steps, guided
    assert found["found"]["drawing"]["guidance"] == 2.0 and found["found"]["size"] == [64, 64]
    files = sorted((tmp_path / "drawn").iterdir())
    assert [path.name for path in files] == [f"{i:06d}.png" for i in range(8)]
    # the pictures, read back and held to the same images from the data set itself
    out = tmp_path / "again.json"
    where = json.dumps({"subcategory": "face-glasses"})
    (tmp_path / "p.json").write_text(json.dumps(
        {"metrics": ["frechet", "kernel"], "features": {"name": "autoencoder:emoji64"},
         "reference": {"source": "emoji64", "where": json.loads(where)}}))  # fmt: skip
    words = [f"--protocol={tmp_path / 'p.json'}", f"--out={out}"]
    assert main(["evaluate", "images", str(tmp_path / "drawn"), *words]) == 0
    again = json.loads(out.read_text())
    assert again["metrics"] == found["metrics"] and again["intervals"] == found["intervals"]
    assert set(found["intervals"]) == {"frechet", "kernel"} and found["intervals"]["frechet"]["bias"] > 0
    assert again["drawn"]["hash"] == found["drawn"]["hash"]
    assert again["found"]["reference"]["hash"] == found["found"]["reference"]["hash"]
    assert "8 images: frechet " in capsys.readouterr().out
    # and to the statistics of those, which are written first
    kept = tmp_path / "kept.safetensors"
    assert main(["evaluate", "images", str(tmp_path / "drawn"), words[0], f"--statistics={kept}"]) == 0
    assert main(["evaluate", "images", str(tmp_path / "drawn"), *words, f"--reference={kept}", "--metric=frechet"]) == 0
    assert abs(json.loads(out.read_text())["metrics"]["frechet"]) < 1e-6  # of pictures from themselves


@pytest.mark.slow
def test_randomness_is_of_seed_and_number_whatever_the_batch(evaluated, tmp_path):
    pictures = {}
    for name, changes in (("a", dict(batch=2, count=4)), ("b", dict(batch=4, count=4, seeds=[0, 1]))):
        evaluated(f"--pictures={tmp_path / name}", metrics=["frechet"], prompts=dict(texts=["hat face"]), **changes)
        pictures[name] = {path.name: np.asarray(Image.open(path)).astype(int)
                          for path in (tmp_path / name).iterdir()}  # fmt: skip
    assert len(pictures["a"]) == 4 and len(pictures["b"]) == 8
    for number in range(4):
        one, other = pictures["a"][f"{number:06d}.png"], pictures["b"][f"seed-0-{number:06d}.png"]
        assert np.abs(one - other).max() <= 1  # another batch is another program: rounding
        assert np.abs(one - pictures["b"][f"seed-1-{number:06d}.png"]).max() > 1


def test_metrics_are_those_of_the_features(evaluated):
    """Against scipy's root of a matrix product, by the features of the images themselves."""
    import scipy.linalg

    from lgm.evaluate.drawers import autoencoder_features
    from lgm.weights import load_autoencoder

    network = autoencoder_features("autoencoder", *load_autoencoder("emoji64"), 64)
    real = open_images("emoji64", {"subcategory": "face-glasses"}).images().astype(np.uint8)
    x, y = (network.features(part).astype(np.float64) for part in (real[:10], real[10:]))
    cov = [np.cov(part, rowvar=False) + 1e-3 * np.eye(network.dim) for part in (x, y)]
    root = scipy.linalg.sqrtm(cov[0] @ cov[1]).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov[0] + cov[1] - 2 * root)
    assert distance.frechet_of_normals(x.mean(0), cov[0], y.mean(0), cov[1]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("changes", "words"), [
    (dict(system="unet"), "protocol.system='unet' is not what is measured, 'mmdit'"),
    (dict(metrics=["frechett"]), "'frechett' is no metric; did you mean 'frechet'?"),
    (dict(metrics=["frechet:x=1"]), "has no option 'x'"),
    (dict(metrics=["kernel"], count=2), "'kernel' needs 3 drawn images or more, and there are 2"),
    (dict(metrics=["precision_recall:neighbours=8"]), "'precision_recall' needs 9 drawn images or more"),
    (dict(metrics=["density_coverage:neighbours=0"]), "'density_coverage': neighbours=0 must lie in [1, 4294967295]"),
    (dict(count=10**30), "which is the most"),
    (dict(reference=dict(source="heldout", hash="00")), "protocol.reference.hash=00 is not that of what was found"),
    (dict(weights=dict(hash="00")), "protocol.weights.hash=00 is not"),
    (dict(weights=dict(images=4)), "no multiple of config.batch_size=8"),
    (dict(weights=dict(images=8)), "has no checkpoint of step 1; there are those of steps"),
    (dict(features=dict(name="autoencoder:emoji64", hash="00")), "protocol.features.hash=00 is not"),
    (dict(drawing=dict(solver="jump")), "is for models of mean velocities"),
    (dict(size=[32, 32]), "protocol.size=[32, 32] is not [64, 64]"),
    (dict(prompts=dict(source="absent")), "absent"),
])  # fmt: skip
def test_what_does_not_fit_the_run_is_one_line(evaluated, changes, words):
    assert words in evaluated(**changes)


def test_pictures_that_cannot_be_measured_are_one_line(evaluated, tmp_path, capsys):
    folder, words = tmp_path / "pictures", ["--features=autoencoder:emoji64", "--reference=emoji64"]

    def refused(*more, source=None):
        return evaluated(*words, *more, source=["images", str(source or folder)])

    folder.mkdir()
    assert "pictures" in refused()
    for i in range(2):
        Image.new("RGB", (64, 64), (40 * i, 0, 0)).save(folder / f"{i}.png")
    assert "'kernel' needs 3 drawn images" in refused("--reference=" + str(folder))
    Image.new("RGB", (48, 64)).save(folder / "2.png")
    assert "2.png has 48 x 64 pixels, " in refused("--reference=" + str(folder))
    (folder / "2.png").write_bytes((folder / "1.png").read_bytes()[:60])
    assert "2.png cannot be decoded" in refused("--reference=" + str(folder), "--size=64")
    (folder / "2.png").write_text("no picture")
    assert "2.png cannot be decoded" in refused("--reference=" + str(folder))
    (folder / "2.png").write_bytes((folder / "1.png").read_bytes())
    assert "pictures of 30 pixels do not divide by the 8" in refused("--reference=" + str(folder), "--size=30")
    line = refused("--features=emoji_contrastive", "--metric=clip_score", "--reference=" + str(folder))
    assert "0.png has no caption, which CLIP score" in line
    assert "reads no captions" in refused("--metric=retrieval", "--reference=" + str(folder))
    assert "is a pickle" in refused("--features=inception:w.pth") and "is a pickle" in refused("--features=w.pth")
    assert "give inception:PATH" in refused("--features=inception")
    assert "is a folder; give a file's name" in refused(f"--out={tmp_path}")
    assert "0.png is a file; give a name in a folder" in refused(f"--out={folder / '0.png' / 'x.json'}")
    if os.path.isdir("/proc/self"):
        assert "nothing can be written in /proc" in refused("--out=/proc/absent/x.json")
    assert "are a run's own; give" in refused("--features=autoencoder")
    assert "'heldout' is of a run's held-out images" in refused("--metric=heldout")
    assert "--count is for images that are drawn" in refused("--count=3")
    np.savez(tmp_path / "s.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert "holds statistics of 3 features" in refused(f"--reference={tmp_path / 's.npz'}", "--size=64")
    other = Statistics(np.zeros(160), np.eye(160), 9, "00", "another")
    save_statistics(tmp_path / "s.safetensors", other)
    save_statistics(tmp_path / "48.safetensors", Statistics(np.zeros(160), np.eye(160), 9, "", "", "48x48 lanczos"))
    assert "statistics of pictures at 48x48 lanczos, and what is measured is at 64x64 lanczos" in refused(
        f"--reference={tmp_path / '48.safetensors'}", "--size=64")
    assert "holds statistics of another (00), and the features are autoencoder:emoji64's" in refused(
        f"--reference={tmp_path / 's.safetensors'}", "--size=64")


def test_words_that_say_nothing_to_measure_are_one_line(tmp_path, capsys):
    for words, part in ((["pictures"], "is nothing to evaluate"), ([], "give either --workdir=RUN or --from=FOLDER"),
                        (["--from=x"], "give --protocol=FILE, or --metric=NAME"),
                        (["images", str(tmp_path), "--metric=frechet"], "give --reference=FOLDER")):
        assert main(["evaluate", *words]) == 2
        line = capsys.readouterr().err
        assert part in line and len(line.splitlines()) == 1


@pytest.mark.slow
def test_eight_devices_say_what_one_does_to_the_last_digit(evaluated, tiny_run, tmp_path):
    """Pixels, features' sums and figures; a second run of one device too."""
    changes = {"metrics": ["heldout", "frechet", "kernel"]}
    found = [evaluated(**changes) for _ in range(2)]
    found.append(on_devices(8, tmp_path, f"--workdir={tiny_run}"))
    assert [one.pop("made_on")["devices"] for one in found] == [1, 1, 8]
    assert found[0] == found[1] == found[2]


def on_devices(count, tmp_path, *words):
    """The evaluation by tmp_path / protocol.json of a process of so many devices."""
    words = [*words, f"--protocol={tmp_path / 'protocol.json'}", f"--out={tmp_path / 'devices.json'}"]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
    subprocess.run([sys.executable, "-m", "lgm.cli", "evaluate", *words], check=True,
                   env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags})  # fmt: skip
    return json.loads((tmp_path / "devices.json").read_text())


@pytest.mark.slow
def test_networks_that_are_split_over_devices_draw_the_same_to_rounding(evaluated, tiny_run, tmp_path):
    """On one device --split changes nothing, to the last digit."""
    whole, one = (evaluated(f"--pictures={tmp_path / name}", *more, count=4) for name, more in (
        ("whole", []), ("one", ["--split"])))
    assert whole == one and "split" not in one["made_on"]
    two = on_devices(2, tmp_path, f"--workdir={tiny_run}", "--split", f"--pictures={tmp_path / 'two'}")
    assert two["made_on"]["split"] and two["made_on"]["devices"] == 2 and two["hash"] == whole["hash"]
    for path in (tmp_path / "whole").iterdir():
        ours, theirs = (np.asarray(Image.open(file)).astype(int) for file in (path, tmp_path / "two" / path.name))
        assert np.abs(ours - theirs).max() <= 1  # sums of products in other parts, then rounded
    for name, value in whole["metrics"].items():  # of images that differ by one level in some pixels
        assert two["metrics"][name] == pytest.approx(value, rel=1e-2, abs=1e-2)
