"""A denoiser with a folder's text encoders on several real processes: trained, gone on with on another mesh, started
from, adapted, taught by, drawn, measured and exported, each against what one process makes of it."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from run_state import final

from lgm.cli import main
from lgm.data import open_images
from lgm.drawing import draw_latents
from lgm.train.opening import load_run

sys.path += [str(Path(__file__).parents[1] / name) for name in ("interop", "scaling")]
import tiny_sweep  # noqa: E402
import tiny_systems  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the text")]
PROGRAM = Path(__file__).parent / "verbs.py"
WORDS = ["batch_size=4", "total_images=24", "data.where.subcategory=face-hat", "data.heldout_where.split=train",
         "data.heldout_where.subcategory=face-glasses", "evaluation.times=2", "evaluation.levels=2",
         "evaluation.max_images=6", "evaluation.batch_size=4", "evaluation.log_snr=(-4.0,4.0)",
         "evaluation.distance=4", "sampling.steps=2", "sampling.count=2", "log.every_images=4", "log.keep=9",
         "log.checkpoint_every_images=8", "optimizer.warmup_images=0", "optimizer.lr=1e-3"]  # fmt: skip
CLOSE = dict(rel=2e-4)  # six steps of Adam, whose sums over devices are taken in another order
PIXELS = dict(rel=5e-3)  # a distance of four images of 8 bits: an error of 1e-7 may turn a pixel by a whole level
PROMPTS = ["--prompt=cowboy hat face", "--prompt=a red hat"]


def several(count, jobs, folder, *poison, devices=1):
    """(exit codes, what each wrote) of `count` processes of so many devices that run the verbs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = lambda i: [sys.executable, str(PROGRAM), str(i), str(count), address, str(path), *poison]
    said = [folder / f"said-{i}.txt" for i in range(count)]  # a full pipe would stop one while another is waited for
    processes = [subprocess.Popen(command(i), stdout=said[i].open("w"), stderr=subprocess.STDOUT, env=environment)
                 for i in range(count)]  # fmt: skip
    codes = [process.wait(1200) for process in processes]
    return codes, [path.read_text() for path in said]


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def train(config, workdir, *words):
    return ["train", f"--config={config}", f"--workdir={workdir}", *(f"--config.{word}" for word in words)]


def swept(root, workdir):
    """One run of a sweep by itself, as a job of `lgm launch sweep` starts it."""
    path = tiny_sweep.write(root, ("seeds=(0, 1)", "seeds=(0,)"), ("distance=3, ", ""))
    return ["sweep", f"--config={path}", f"--workdir={workdir}", "--only=0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def config(root):
    """A config file of SD3 in small, made by `lgm import`."""
    tiny_systems.stable_diffusion_3().save_pretrained(root / "released")
    assert main(["import", f"--from={root / 'released'}", f"--workdir={root / 'start'}"]) == 0
    return root / "start" / "config.py"


@pytest.fixture(scope="module")
def base(root, config):
    """A run trained on four processes."""
    codes, texts = several(4, [train(config, root / "base", *WORDS, "mesh.data=2", "mesh.fsdp=2")], root)
    assert codes == [0] * 4, texts
    return root / "base"


@pytest.fixture(scope="module")
def alone(root, config):
    """The same run on this process."""
    assert main(train(config, root / "alone", *WORDS)) == 0
    return root / "alone"


@pytest.fixture(scope="module")
def after(root, config, base):
    """What two processes of two devices make of that run, one verb after another."""
    resumed = root / "resumed"
    shutil.copytree(base, resumed)
    for step in (4, 6):
        shutil.rmtree(resumed / "checkpoints" / str(step))
    plain = [*WORDS, "sampling.count=0", "evaluation.distance=0"]  # what others of these runs show is left out
    short = [*plain, "total_images=8"]
    by_base = f"loss.teacher={{'workdir':'{base}','pairs':10,'steps':2}}"
    cache = f"data.cache={root / 'cache'}"
    assert main(["encode", f"--config={config}", f"--out={root / 'cache'}", *(f"--config.{w}" for w in WORDS)]) == 0
    jobs = [
        train(config, root / "cached", *WORDS, "sampling.count=0", cache, "mesh.data=2", "mesh.fsdp=2"),
        train(config, resumed, *WORDS, "mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2"),
        train(config, root / "lora", *short, f"init_from={base}", "lora.rank=2", "mesh.data=1", "mesh.fsdp=4"),
        train(config, root / "reflow", *short, f"init_from={base}", "loss.name=reflow", by_base),
        train(config, root / "reflow", *short, f"init_from={base}", "loss.name=reflow", by_base),
        ["sample", f"--workdir={base}", f"--out={root / 'two.png'}", *PROMPTS],
        ["evaluate", f"--workdir={base}", f"--out={root / 'two.json'}"],
        ["export", f"--workdir={base}", f"--out={root / 'two'}"],
        swept(root, root / "swept"),
        train(config, root / "nan", *plain),
    ]
    codes, texts = several(2, jobs, root, "poison", devices=2)
    print(texts[0])
    assert codes == [2, 2], texts
    return root, texts


def assert_alike(ours, theirs, tolerance, first=0):
    ours, theirs = ([row for row in found if row["step"] >= first] for found in (ours, theirs))
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        for key in {"loss", "heldout_loss", "v_loss", "frechet_distance"} & other.keys():
            bound = PIXELS if key == "frechet_distance" else tolerance
            assert one[key] == pytest.approx(other[key], **bound), (one["step"], key)


def test_four_processes_train_what_one_does(base, alone):
    assert {"heldout_loss", "v_loss", "kernel_distance"} <= rows(base)[0].keys()
    assert (base / "samples" / "000000024.png").is_file()
    assert_alike(rows(base), rows(alone), CLOSE)


def test_two_processes_go_on_with_a_checkpoint_of_four_on_another_mesh(base, after):
    root, _ = after
    assert_alike(rows(root / "resumed"), rows(base), CLOSE)
    assert final(root / "resumed")[0] == final(base)[0] == 6


def test_two_processes_train_from_a_cache_what_four_do_from_pixels(base, after):
    root, _ = after
    assert_alike(rows(root / "cached"), rows(base), CLOSE)
    assert final(root / "cached")[0] == 6


def test_an_adapter_starts_from_the_runs_averaged_weights(base, after):
    root, _ = after
    last = [row for row in rows(base) if "heldout_loss" in row][-1]["heldout_loss"]
    assert rows(root / "lora")[0]["heldout_loss"] == pytest.approx(last, rel=1e-5)
    assert final(root / "lora")[0] == 2


def test_a_teachers_pairs_are_drawn_once_and_are_those_of_one_process(base, after):
    root, texts = after
    assert sum(text.count("drawing 10 pairs") for text in texts) == 1  # of two processes that started twice
    (shard,) = (root / "reflow" / "pairs").glob("shard-*")
    found = safetensors.numpy.load_file(shard)
    config = json.loads((root / "reflow" / "config.json").read_text())
    captions = open_images("emoji64", where=config["data"]["where"], resolution=16).captions[:10]
    system, params, frozen, _ = load_run(str(base), "ema")
    latents, noise = draw_latents(system, params, frozen, captions, 0, solver="heun", steps=2, guidance=1.0)
    np.testing.assert_array_equal(found["noise"], noise)
    np.testing.assert_allclose(found["latent"], latents, atol=1e-4 * np.abs(latents).max())
    assert np.isfinite([row["loss"] for row in rows(root / "reflow") if "loss" in row]).all()


def test_pictures_figures_and_exports_are_those_of_one_process(base, after, tmp_path):
    root, _ = after
    assert main(["sample", f"--workdir={base}", f"--out={tmp_path / 'one.png'}", *PROMPTS]) == 0
    one, two = (np.asarray(Image.open(path)).astype(int) for path in (tmp_path / "one.png", root / "two.png"))
    assert one.shape == two.shape and np.abs(one - two).max() <= 1  # a level of 255: rounding

    assert main(["evaluate", f"--workdir={base}", f"--out={tmp_path / 'one.json'}"]) == 0
    one, two = (json.loads(path.read_text())["metrics"] for path in (tmp_path / "one.json", root / "two.json"))
    assert one.keys() == two.keys() and {"heldout_loss", "v_loss", "frechet_distance"} <= one.keys()
    for key, value in one.items():
        assert two[key] == (pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value), key

    assert main(["export", f"--workdir={base}", f"--out={tmp_path / 'one'}"]) == 0
    files = lambda folder: {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files(tmp_path / "one") == files(root / "two")  # bit for bit


def test_a_sweeps_run_on_two_processes_is_that_of_one(after, tmp_path):
    root, _ = after
    assert main(swept(root, tmp_path / "one")) == 0
    results = lambda folder: {path.relative_to(folder): json.loads(path.read_text())["figures"]
                              for path in folder.glob("runs/*/*/result.json")}  # fmt: skip
    one, two = results(tmp_path / "one"), results(root / "swept")
    assert one.keys() == two.keys() and len(one) == 2  # a trunk's two cooldowns
    for place, row in one.items():
        assert {"v_loss", "vlb_bits"} <= row.keys() == two[place].keys()
        for key, value in row.items():
            like = pytest.approx(value, rel=2e-3, abs=1e-5) if isinstance(value, float) else value
            assert two[place][key] == like, (place, key)


def test_a_planted_nan_is_reported_once_with_its_parameter(after):
    root, texts = after
    report = json.loads((root / "nan" / "failure" / "report.json").read_text())
    assert report["non_finite_gradients"] == ["denoiser/out/kernel"]
    for text in texts:
        lines = [line for line in text.splitlines() if line.startswith("lgm train:")]
        assert len(lines) == 1 and "first in the gradient of denoiser/out/kernel" in lines[0], text
    assert sorted(np.load(root / "nan" / "failure" / "batch.npz")["index"])[0] == 0
