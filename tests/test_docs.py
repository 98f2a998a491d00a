"""The pages of docs/ and the reference from docstrings build without a warning, and hold what they should."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_pages_build_and_hold_the_schema_and_the_reference(tmp_path):
    """Opened in a browser where there is one."""
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={tmp_path}"], cwd=ROOT,
                   check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"})  # fmt: skip
    read = lambda page: (tmp_path / page / "index.html").read_text()
    assert "optimizer.weight_decay" in read("configs") and "{{" not in read("configs")
    for page, words in {"losses": ["lgm.losses.denoising", "logit_normal"], "sampling": ["lgm.sampling.solver"],
                        "models": ["lgm.models.Family", "MMDiTConfig"], "data": ["lgm.data.open_images"],
                        "config": ["lgm.registry.register"]}.items():  # fmt: skip
        for word in words:
            assert word in read(f"reference/{page}"), (page, word)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is not None:
        shot = tmp_path / "shot.png"
        subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={shot}",
                        "--window-size=1200,900", f"file://{tmp_path}/architecture/index.html"], timeout=120,
                       check=True, capture_output=True)  # fmt: skip
        assert shot.stat().st_size > 20_000
