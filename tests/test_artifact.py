"""A sampler and decoder as StableHLO: run where there is jax alone, they draw what `lgm sample` draws."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "interop"))
import tiny_systems  # noqa: E402

from lgm import artifact, artifact_runner  # noqa: E402
from lgm.cli import main  # noqa: E402
from lgm.drawing import draw, text_to_image  # noqa: E402
from lgm.systems.folders import load_pipeline  # noqa: E402
from lgm.train.opening import load_run  # noqa: E402

# as if there were nothing but what `pip install jax` installs
ALONE = """
import importlib.metadata, runpy, sys
JAX = {"jax", "jaxlib", "numpy", "ml_dtypes", "scipy", "opt_einsum"}
REFUSED = {"lgm", *importlib.metadata.packages_distributions()} - JAX
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"no {name} here", name=name)
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("system", ["smallest_stable_diffusion", "flux", "qwen_image"])
def test_a_program_draws_with_jax_alone_what_lgm_draws(tmp_path, system):
    """DiT's, SDXL's, SD3's, Z-Image's and Flux.2's were seen to as well; these three have what the others have."""
    folder, out, picture = (tmp_path / name for name in ("folder", "program", "x.png"))
    getattr(tiny_systems, system)().save_pretrained(folder)
    assert main(["export", f"--from={folder}", "--form=stablehlo", "--steps=2", "--size=16", f"--out={out}"]) == 0
    assert {"README.md", "run.py", "manifest.json", "sampler.stablehlo", "decoder.stablehlo",
            "weights.safetensors"} == {path.name for path in out.iterdir()}  # fmt: skip
    manifest = json.loads((out / "manifest.json").read_text())
    assert all(part["platforms"] == ["cpu", "cuda", "tpu"] for part in manifest["programs"].values())
    pipeline, params = load_pipeline(folder)
    expected = text_to_image(pipeline, params, manifest["examples"]["captions"], steps=2, size=(16, 16), seed=5)
    done = subprocess.run([sys.executable, "-c", ALONE, out / "run.py", f"--out={picture}", "--seed=5"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    drawn = np.asarray(Image.open(picture), np.int32)
    assert expected[0].std() > 0.05
    assert np.abs(drawn - np.round(expected[0] * 255)).max() <= 1  # float32 in another order, then rounded
    with pytest.raises(SystemExit, match=r"ids have shape \(1, 3\)"):
        artifact_runner.draw(out, [[1, 2, 3]])


@pytest.mark.slow
def test_a_runs_program_has_its_own_text_encoder_and_its_stochastic_solvers_noise(tiny_run, tmp_path):
    run, folder = shutil.copytree(tiny_run, tmp_path / "run"), tmp_path / "program"
    values = json.loads((run / "config.json").read_text())
    values["sampling"] |= {"solver": "euler_ancestral", "steps": 3, "guidance": 2.0, "prompts": ["a", "a b", "b"]}
    (run / "config.json").write_text(json.dumps(values))
    assert main(["export", f"--workdir={run}", "--form=stablehlo", "--count=2", "--dtype=float32",
                 f"--out={folder}"]) == 0  # fmt: skip
    system, params, frozen, _ = load_run(str(run), "ema")
    expected = draw(system, params, frozen, ["a", "a b", "b"], seed=3)
    bare = dataclasses.replace(system.config, sampling=dataclasses.replace(system.config.sampling, prompts=()))
    bare = dataclasses.replace(system, config=bare)
    program = artifact.program_of_run(bare, {**params, **frozen}, artifact.Drawing())
    assert program.captions == [""] and (program.examples[0] == program.nothing[0]).all()
    drawn = artifact_runner.draw(folder, seed=3)  # in calls of two
    assert drawn.shape == expected.shape and expected.std() > 5
    assert np.abs(drawn.astype(int) - expected.astype(int)).max() <= 1
