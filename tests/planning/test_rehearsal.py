"""Config files in small: of how all is kept, and how much is little."""

import json
from pathlib import Path

import pytest

from lgm import config as schema
from lgm.parsing import ConfigError
from lgm.planning.rehearsal import STEPS, rehearsal

ROOT = Path(__file__).parents[2]
ALONE = ("autoencoder.py", "quickstart.py", "quickstart_unet.py", "emoji.py:model=mmdit,process=flow",
         "emoji.py:model=mmdit,process=eps", "emoji.py:model=unet,process=v",
         "emoji.py:model=unet,process=edm")  # fmt: skip


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
