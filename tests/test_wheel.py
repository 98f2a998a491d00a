"""What a wheel holds is enough: installed into a folder, from an empty one, without the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lgm(tmp_path_factory):
    """Runs `lgm` as a wheel has it; its other packages are those of this environment."""
    built, installed, empty = (tmp_path_factory.mktemp(name) for name in ("built", "installed", "empty"))
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


def test_it_trains(lgm):
    lgm("train", "--config=configs/quickstart.py", "--workdir=run", "--config.total_images=16", "--config.batch_size=8",
        "--config.data.where.subcategory=face-hat", "--config.evaluation.every_images=0",
        "--config.optimizer.warmup_images=0", "--config.sampling.count=0")  # fmt: skip
