"""Shared by all tests: a compilation cache for the session, and one tiny run that trains in seconds."""

import fcntl
import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import version

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "lgm-test-xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# tests compile far more than they compute: without LLVM's optimizations and, where XLA still has them, with its older
# emitters, which change no formula, they take half of their time; a flag that it does not know ends the process
QUICK = ["--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, *(flag for flag in QUICK if flag.split("=")[0] not in given)]).strip()

import pytest  # noqa: E402

from lgm.cli import settle_platform  # noqa: E402

settle_platform()  # before JAX asks libtpu, which is there to compile with, for TPUs


def pytest_configure(config):
    # a train step that is compiled twice fails any test; said here, for naming the class imports JAX
    config.addinivalue_line("filterwarnings", "error::lgm.train.steady.Recompiled")


# the files that take longest, which begin first: pytest's workers take file after file, and end together
# those that mostly wait, on a scheduler, first of all: beside those of several processes, which fill any core
LONG = ("launching/", "processes/", "parallel/", "planning/", "train/", "scaling/", "test_drawing.py", "test_fuzz.py")


def pytest_collection_modifyitems(items):
    here = os.path.dirname(__file__)
    place = lambda item: os.path.relpath(item.path, here)
    rank = lambda item: next((i for i, name in enumerate(LONG) if place(item).startswith(name)), len(LONG))
    items.sort(key=rank)
    # where libtpu can be installed its absence fails its tests: `[dev]` has it there
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        reason = f"libtpu, the TPU compiler, is made for Linux on x86-64, not {sys.platform} on {platform.machine()}"
        for item in filter(lambda item: item.get_closest_marker("libtpu"), items):
            item.add_marker(pytest.mark.skip(reason=reason))


TINY = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict(dict(
        name="tiny", batch_size=8, total_images=96,
        data=dict(where=dict(subcategory="face-hat"), heldout_where=dict(subcategory="face-glasses")),
        text=dict(encoder=dict(family="clip_text", vocab_size=4096, width=32, depth=1, heads=2, max_length=16)),
        model=dict(family="mmdit", channels=32, patch_size=1, width=32, depth=2, heads=2, text_dim=32, pooled_dim=32,
                   position_size=8, base_size=8),
        loss=dict(target="flow", density=dict(name="logit_normal")),
        optimizer=dict(lr=3e-3, warmup_images=16),
        ema=dict(half_life_images=32),
        sampling=dict(steps=2, count=2),
        evaluation=dict(every_images=48, times=2, batch_size=8, max_images=8),
        log=dict(every_images=16, checkpoint_every_images=24),
    ))
"""


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
    """Path of a config file: a dozen faces, a denoiser of width 32, 12 steps."""
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(TINY)
    return str(path)


@pytest.fixture(scope="session")
def tiny_run(tiny_config, tmp_path_factory):
    """The folder of a finished tiny run: trained by the first of pytest's workers that asks, copied by the others."""
    from lgm.cli import main

    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "tiny-run"
    with open(shared.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.exists():
            workdir = tmp_path_factory.mktemp("training") / "tiny"
            assert main(["train", f"--config={tiny_config}", f"--workdir={workdir}"]) == 0
            workdir.rename(shared)
    return shutil.copytree(shared, tmp_path_factory.mktemp("runs") / "tiny")
