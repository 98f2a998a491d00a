"""What a wheel holds is enough: installed into a folder, from an empty one, without the checkout."""

import concurrent.futures
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import slurm_cluster
from PIL import Image
from run_state import small_config
from slurm_cluster import last_step, shown, wait_until

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """The folder in which `lgm` runs."""
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(scope="module")
def lgm(tmp_path_factory, empty):
    """Runs `lgm` as a wheel has it; its other packages are those of this environment."""
    built, installed = (tmp_path_factory.mktemp(name) for name in ("built", "installed"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", f"--wheel-dir={built}", str(ROOT)], check=True)
    (wheel,) = built.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", f"--target={installed}", str(wheel)], check=True)

    def run(*words):
        done = subprocess.run([sys.executable, "-m", "lgm.cli", *words], cwd=empty, capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": str(installed)})  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run([sys.executable, "-c", "import lgm; print(lgm.__file__)"], cwd=empty, capture_output=True,
                           text=True, env=os.environ | {"PYTHONPATH": str(installed)})  # fmt: skip
    assert where.stdout.startswith(str(installed))
    return run


def test_the_shipped_configs_are_found_by_their_names(lgm):
    for path in (ROOT / "configs").glob("*.py"):
        assert "--config.name=" in lgm("config", f"--config=configs/{path.name}", "--diff")


def test_jobs_are_rendered_from_the_shipped_templates(lgm):
    text = lgm("launch", "--on=slurm", "--config=configs/quickstart.py", "--workdir=run", "--dry-run")
    assert "#SBATCH --job-name=quickstart" in text
    text = lgm("launch", "--on=local", "--config=configs/quickstart.py", "--workdir=run", "--dry-run")
    assert "lgm.cli train" in text


def photos(folder):
    """Pictures of a hill under a sky, as JPEGs with a caption beside each: most nearly square, two far from it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        width, height = (190, 100) if number in (3, 4) else (120, 100)
        y, x = np.mgrid[:height, :width]
        hill = y > height * (0.5 + 0.2 * np.sin(x / 30 + rng.uniform(0, 6)))
        pixels = np.where(hill[..., None], rng.integers(40, 120, 3), rng.integers(120, 250, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.jpg", quality=90)
        words = "a red hill under a blue sky" + (" seen from the old road by the river" * 3 if number == 5 else "")
        (folder / f"{number:02d}.txt").write_text(words)


def test_from_a_folder_of_photos_to_pictures(lgm, empty):
    """The walk of docs/photos.md, in small: what is there, a run, pictures that say how they were drawn."""
    begun = time.monotonic()
    photos(empty / "photos")
    said = lgm("data", "photos", "--resolution=64", "--step=32", "--sheet=photos.png")
    assert "24 images" in said, said
    assert "crops     to squares: 2 of 24 images lose more than 25%" in said and (empty / "photos.png").exists()
    small = ["model.width=32", "model.depth=2", "model.heads=2", "model.text_dim=32", "model.pooled_dim=32",
             "text.encoder.width=32", "text.encoder.depth=1", "text.encoder.heads=2", "data.resolution=64",
             "data.buckets=32", "batch_size=8", "total_images=16", "optimizer.warmup_images=0", "sampling.count=0",
             "evaluation.every_images=0", "evaluation.times=1", "log.every_images=8"]  # fmt: skip
    said = lgm("train", "--config=configs/photos.py:photos", "--workdir=runs/photos", *(f"--config.{w}" for w in small))
    assert "crops: 2 of 23 images lose more than 25%" in said, said  # one of 24 is held out
    assert "captions: 1 of 23 that were looked at are longer than a text encoder takes and are cut" in said, said
    said = lgm("sample", "--workdir=runs/photos", "--prompt=a red hill", "--count=2", "--steps=2", "--out=hill.png")
    assert said == "hill.png, a sheet of 2: hill-1.png to hill-2.png\n"
    with Image.open(empty / "hill-2.png") as picture:
        assert picture.text["prompt"] == "a red hill" and json.loads(picture.text["lgm"])["number"] == 1
    print(f"from photos to pictures: {time.monotonic() - begun:.0f} s")


def test_a_cluster_users_first_jobs(lgm, empty):
    """The walk of docs/cluster.md until a job is handed over: the shipped site, with its names filled in."""
    begun = time.monotonic()
    (empty / "site.toml").write_text(lgm("config", "--site"))
    words = ["--config=configs/quickstart.py", "--site=site.toml", "--workdir=run", "--dry-run"]
    said = lgm("launch", "--on=slurm", "--nodes=2", *words)
    assert all(part in said for part in ("#SBATCH --exclusive", "#SBATCH --mem=0", "HF_HOME=/", "srun --cpus-per-task"))
    said = lgm("launch", "--on=gke", "--topology=v5e:4x4", *words)
    assert 'bucketName: "my-bucket"' in said and "HF_HOME" not in said and 'key: "token"' in said
    lgm("launch", "sweep", "--on=slurm", "--config=configs/scaling/smoke.py", *words[1:])
    print(f"a cluster user's first jobs: {time.monotonic() - begun:.0f} s")


@pytest.fixture(scope="module")
def cluster():
    with slurm_cluster.running() as folder:
        yield folder


def place(log):
    """(what a process says of where it is) at each of its starts."""
    return re.findall(r"^process \d of \d on .*$", log.read_text(), re.M)


def test_a_run_and_a_sweep_on_two_nodes_of_a_cluster(lgm, empty, cluster):
    """The walk of docs/cluster.md from there on, on a real cluster: a run over two nodes that is watched, cancelled and
    resumed by the lines that its launch prints, and a sweep as an array."""
    begun = time.monotonic()
    told = lambda what: print(f"{time.monotonic() - begun:5.0f} s  {what}")
    site = lgm("config", "--site").replace('setup = ["module load cuda"]', "").replace("[env]", "\n".join((
        "[env]", 'JAX_PLATFORMS = "cpu"', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = "0"',
        f'JAX_COMPILATION_CACHE_DIR = "{os.environ["JAX_COMPILATION_CACHE_DIR"]}"')))  # fmt: skip
    (empty / "cluster.toml").write_text(site)
    (empty / "small.py").write_text(small_config(images=1600))
    run = empty / "runs/small"
    words = ["launch", "--on=slurm", "--config=small.py", "--site=cluster.toml", f"--workdir={run}", "--nodes=2",
             "--config.batch_size=16"]  # fmt: skip
    said = lgm(*words, "--dry-run")
    assert all(part in said for part in ("#SBATCH --nodes=2", "#SBATCH --gpus-per-node=8", "#SBATCH --exclusive"))
    assert not run.exists()
    told("the job was shown")

    lines = dict(re.findall(r"^(\w+): +(.*)$", said := lgm(*words), re.M))
    job = re.search(r"submitted (\d+) to slurm", said).group(1)
    told(f"submitted as {job}")
    wait_until(lambda: last_step(run) >= 2, "step", run)
    assert f"squeue --jobs={job}" in said and f"tail -F {run}/launch/logs/rank-0.log" in said
    assert "RUNNING" in lgm(*shlex.split(lines["watch"])[1:])  # `lgm status` is the last of what watches it
    told("a step was seen")
    subprocess.run(shlex.split(lines["cancel"]), check=True)
    wait_until(lambda: shown(job) == ["CANCELLED"] and not subprocess.run(
        ["squeue", "--noheader", f"--jobs={job}"], capture_output=True, text=True).stdout, "end", run)
    log = run / "launch/logs/rank-0.log"
    saved = int(re.search(r"stopped by SIGTERM at step (\d+)", log.read_text()).group(1))
    assert 2 <= saved < 100 and "queued again" not in (run / f"launch/job-{job}.log").read_text()
    told(f"cancelled and saved at step {saved}")

    again = re.search(r"submitted (\d+) to slurm", lgm(*shlex.split(lines["resume"])[1:])).group(1)
    wait_until(lambda: shown(again) == ["COMPLETED"], "end", run)
    told("resumed to its end")
    assert last_step(run) == 100 and "Small one: 1,600 images" in log.read_text()
    for rank, node in enumerate(("n3", "n4")):
        places = place(run / f"launch/logs/rank-{rank}.log")
        print("         " + "\n         ".join(places))
        assert len(places) == 2 and all(p.startswith(f"process {rank} of 2 on {node}: 2 CPUs (") for p in places)

    short = slurm_cluster.SWEEP.replace("(0, 1, 2)", "(0, 1)")
    planned = "machine=dict(kind='cpu', chips=1, peak=75e9, mfu=0.3), base="
    (empty / "sweep.py").write_text(short.replace("base=", planned, 1))
    sweep = empty / "runs/sweep"
    said = lgm("launch", "sweep", "--on=slurm", "--config=sweep.py", "--site=cluster.toml", f"--workdir={sweep}",
               "--at-once=2")
    job = re.search(r"submitted (\d+) to slurm", said).group(1)
    wait_until(lambda: shown(job) == ["COMPLETED"] * 2, "end", sweep)
    assert len((sweep / "runs.csv").read_text().splitlines()) == 3
    told("a sweep of two as an array")
    print("         " + "\n         ".join(place(sweep / f"launch/logs/run-{i}-rank-0.log")[0] for i in (0, 1)))


def test_from_a_released_model_to_a_lora(lgm, empty, monkeypatch):
    """The walk of docs/fine_tuning.md, with a tiny pipeline of Stable Diffusion's form: diffusers reads what comes."""
    monkeypatch.syspath_prepend(str(ROOT / "tests/interop"))
    import tiny_systems

    begun = time.monotonic()
    pipeline = tiny_systems.stable_diffusion()
    pipeline.save_pretrained(empty / "models/sd15")
    photos(empty / "mine")
    lgm("import", "--from=models/sd15", "--data=mine", "--workdir=runs/mine")
    small = ["lora.rank=2", "optimizer.lr=1e-3", "optimizer.warmup_images=0", "batch_size=4", "total_images=8",
             "sampling.count=0", "evaluation.every_images=0", "evaluation.times=1", "evaluation.max_images=4"]
    lgm("train", "--config=runs/mine/config.py", "--workdir=runs/mine", *(f"--config.{word}" for word in small))
    lgm("sample", "--workdir=runs/mine", "--prompt=a red hill", "--steps=2", "--out=mine.png")
    lgm("export", "--workdir=runs/mine", "--out=lora")
    pipeline.load_lora_weights(empty / "lora")
    assert pipeline.get_list_adapters()["unet"] and (empty / "mine.png").is_file()
    print(f"from a released model to a LoRA: {time.monotonic() - begun:.0f} s")


def test_parts_of_ones_own_are_trained_and_found_again(lgm, empty):
    """The walk of docs/own_parts.md: two processes train as one run, as a cluster's would; the run's config.json alone
    tells a later one which parts to draw with; and the code may move before the run goes on."""
    begun = time.monotonic()
    (empty / "project").mkdir()
    for name in ("own_parts.py", "own_config.py"):
        shutil.copy(ROOT / "docs/examples" / name, empty / "project")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    small = [f"--config.{word}" for word in (
        "model.width=8", "model.depth=1", "batch_size=4", "sampling.count=0", "evaluation.every_images=0",
        "evaluation.times=1", "optimizer.warmup_images=0", "data.source=squares:24", "log.every_images=4",
    )]  # fmt: skip
    words = ["train", "--workdir=runs/own", *small]
    one = lambda i: lgm(*words, "--config=project/own_config.py", "--config.total_images=8",
                        f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process-id={i}")  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor(2) as both:
        list(both.map(one, range(2)))
    said = json.loads((empty / "runs/own/config.json").read_text())
    assert said["imports"] == [str(empty / "project/own_parts.py")] and said["model"]["family"] == "patch_mixer"
    lgm("sample", "--workdir=runs/own", "--prompt=blue square", "--steps=1", "--solver=midpoint", "--out=square.png")
    (empty / "project").rename(empty / "moved")
    said = lgm(*words, "--config=moved/own_config.py", "--config.total_images=12", "--extend")
    assert "own: 12 images" in said
    print(f"parts of one's own: {time.monotonic() - begun:.0f} s")
