"""Every config file in small: of how all is kept, of how much it is little, and it trains on several processes."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lgm import config as schema
from lgm.parsing import ConfigError
from lgm.planning.rehearsal import STEPS, rehearsal
from lgm.scaling import sweep

ROOT = Path(__file__).parents[2]
ALONE = ("autoencoder.py", "quickstart.py", "quickstart_unet.py", "flags.py", "photos.py:flags",
         "emoji.py:model=mmdit,process=flow",
         "emoji.py:model=mmdit,process=eps", "emoji.py:model=unet,process=v",
         "emoji.py:model=unet,process=edm")  # fmt: skip
PODS = {"pod.py:sd3_medium": "stable_diffusion_3"}
SWEEPS = {"scaling/smoke.py": None, "scaling/one_gpu.py": None, "scaling/pod.py:mmdit-flow": "stable_diffusion_3"}
TRAINED = (*ALONE[:4], ALONE[5])  # each further form of a file is two minutes of two cores: LGM_REHEARSE=all takes all
if os.environ.get("LGM_REHEARSE") == "all":
    PODS |= {"pod.py:flux_dev": "flux", "pod.py:sdxl": "stable_diffusion_xl", "pod.py:sd35_large": "stable_diffusion_3"}
    SWEEPS["scaling/pod.py:unet-eps"], TRAINED = "stable_diffusion_xl", ALONE


@pytest.mark.parametrize("name", ALONE)
def test_how_is_kept_and_how_much_is_little(name):
    config = schema.load(str(ROOT / "configs" / name))
    small = rehearsal(config, devices=4)
    assert (small.process, small.loss, small.family, small.attention) == (config.process, config.loss, config.family,
                                                                          config.attention)  # fmt: skip
    for key in ("name", "schedule", "b1", "b2", "eps", "weight_decay", "clip_norm"):
        assert getattr(small.optimizer, key) == getattr(config.optimizer, key)
    assert small.sampling.solver == config.sampling.solver and small.sampling.schedule == config.sampling.schedule
    assert bool(small.evaluation.every_images) == bool(config.evaluation.every_images)
    assert small.steps == STEPS and small.batch_size == 8
    assert schema.from_dict(json.loads(json.dumps(schema.to_dict(small)))) == small


def test_a_folder_that_a_config_names_has_to_be_given():
    with pytest.raises(ConfigError, match="config.autoencoder names a folder; give the rehearsal a tiny one"):
        rehearsal(schema.load(str(ROOT / "configs" / "pod.py:flux_dev")))


def test_every_axis_that_splits_is_there_in_small():
    config = schema.load(str(ROOT / "configs" / "emoji.py"), (("mesh.fsdp", "32"), ("mesh.tensor", "4")))
    mesh = rehearsal(config, devices=8).mesh
    assert (mesh.data, mesh.fsdp, mesh.tensor, mesh.context, mesh.stage) == (2, 2, 2, 1, 1)
    mesh = rehearsal(config, devices=4).mesh
    assert (mesh.data, mesh.fsdp, mesh.tensor) == (1, 2, 2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny diffusers folders by the name of their maker."""
    sys.path.append(str(ROOT / "tests" / "interop"))
    import tiny_systems

    root = tmp_path_factory.mktemp("released")
    for name in sorted(set(PODS.values())):
        getattr(tiny_systems, name)().save_pretrained(root / name)
    place = root / "flux" / "transformer" / "config.json"  # diffusers' Flux does not say what size it was trained at
    if place.is_file():
        place.write_text(json.dumps(json.loads(place.read_text()) | {"sample_size": 8}))
    return root


@pytest.mark.slow
def test_every_config_file_trains_in_small_on_two_processes_of_two_devices(folders, tmp_path):
    configs = {name: (schema.load(str(ROOT / "configs" / name)), None) for name in TRAINED}
    configs |= {name: (schema.load(str(ROOT / "configs" / name)), maker) for name, maker in PODS.items()}
    for name, maker in SWEEPS.items():
        whole = sweep.load(str(ROOT / "configs" / name))
        first = {key: dataclasses.replace(one, sizes=one.sizes[:1]) for key, one in whole.architectures.items()}
        configs[name] = sweep.expand(dataclasses.replace(whole, architectures=first))[0].configs[-1], maker
    jobs = []
    for number, (config, maker) in enumerate(configs.values()):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(schema.to_dict(rehearsal(config, 4, maker and str(folders / maker)))))
        jobs.append(["train", f"--config={path}", f"--workdir={tmp_path / str(number)}"])
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    command = lambda i: [sys.executable, str(ROOT / "tests" / "processes" / "verbs.py"), str(i), "2", address,
                         str(tmp_path / "jobs.json")]  # fmt: skip
    said = [tmp_path / f"said-{i}.txt" for i in range(2)]
    processes = [subprocess.Popen(command(i), stdout=said[i].open("w"), stderr=subprocess.STDOUT,
                                  env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}) for i in range(2)]
    codes = [process.wait(1800) for process in processes]
    print(said[0].read_text())
    assert codes == [0, 0], said[0].read_text()[-3000:]
    for number, (config, _) in enumerate(configs.values()):
        rows = [json.loads(line) for line in (tmp_path / str(number) / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
        assert any(key.startswith("heldout") for row in rows for key in row)
        drawn = config.sampling.count or config.sampling.prompts
        assert bool(list((tmp_path / str(number)).glob("samples/*.png"))) == bool(drawn)
