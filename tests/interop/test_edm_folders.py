"""A folder of EDM noise is drawn with and exported; a run tells its network other times, and does not begin with it."""

import diffusers
import pytest
import tiny_systems

from lgm.cli import main
from lgm.interop.schedulers import read_schedule


def test_a_folder_of_edm_noise_is_not_trained_and_says_so(tmp_path, capsys):
    parts = {k: v for k, v in tiny_systems.stable_diffusion_xl().components.items() if not k.startswith(("im", "fe"))}
    folder = tmp_path / "edm"
    diffusers.StableDiffusionXLPipeline(**parts | {"scheduler": diffusers.EDMEulerScheduler()}).save_pretrained(folder)
    capsys.readouterr()
    assert main(["import", f"--from={folder}", f"--workdir={tmp_path / 'run'}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "a network that is told log(sigma) / 4" in lines[0], lines
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_drawn_by_another_table_of_noise_than_it_is_trained_on(tiny_config, tmp_path, capsys):
    """Which would be exported beside its weights."""
    words = ["--config.process.name=ddpm", "--config.loss.target=eps", "--config.loss.density.name=uniform",
             "--config.sampling.schedule._class_name=DDIMScheduler"]  # fmt: skip
    scheduler = "--config.sampling.schedule.beta_schedule"
    for more, line in (([], "config.process.schedule=its default is not linear"),
                       (["--config.process.schedule=linear"], "config.process.beta_start=its default is not 0.0001"),
                       ([f"{scheduler}=squaredcos_cap_v2", "--config.process.schedule=squared_cosine",
                         "--config.process.zero_terminal_snr=True"], "process.zero_terminal_snr=True is not False")):
        assert main(["train", f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}", *words, *more]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and line in lines[0], lines
    cosine = read_schedule({"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2"})
    assert cosine.unlike({"name": "ddpm", "schedule": "squared_cosine"}) is None  # whose betas decide nothing


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "DDIMScheduler"])
def test_a_run_is_not_drawn_by_another_processs_scheduler(tiny_config, tmp_path, capsys, name):
    process = "rectified_flow" if name == "DDIMScheduler" else "ddpm"
    words = [f"--config.process.name={process}", f"--config.sampling.schedule._class_name={name}"]
    words += [] if process == "rectified_flow" else ["--config.loss.target=eps", "--config.loss.density.name=uniform"]
    assert main(["train", f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"{name} is of the process" in lines[0], lines
