"""A folder of EDM noise is drawn with and exported; a run tells its network other times, and does not begin with it."""

import diffusers
import pytest
import tiny_systems

from lgm.cli import main


def test_a_folder_of_edm_noise_is_not_trained_and_says_so(tmp_path, capsys):
    parts = {k: v for k, v in tiny_systems.stable_diffusion_xl().components.items() if not k.startswith(("im", "fe"))}
    folder = tmp_path / "edm"
    diffusers.StableDiffusionXLPipeline(**parts | {"scheduler": diffusers.EDMEulerScheduler()}).save_pretrained(folder)
    capsys.readouterr()
    assert main(["import", f"--from={folder}", f"--workdir={tmp_path / 'run'}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "a network that is told log(sigma) / 4" in lines[0], lines
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "DDIMScheduler"])
def test_a_run_is_not_drawn_by_another_processs_scheduler(tiny_config, tmp_path, capsys, name):
    process = "rectified_flow" if name == "DDIMScheduler" else "ddpm"
    words = [f"--config.process.name={process}", f"--config.sampling.schedule._class_name={name}"]
    words += [] if process == "rectified_flow" else ["--config.loss.target=eps", "--config.loss.density.name=uniform"]
    assert main(["train", f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"{name} is of the process" in lines[0], lines
