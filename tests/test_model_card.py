"""Cards say what is known, in the header that hubs read, and nothing of the machine."""

import json

import pytest
import yaml

from lgm import config as schema
from lgm.model_card import Stated, card, run_sections, task_of
from lgm.parsing import ConfigError


def test_a_runs_card_has_its_training_data_and_scores_with_their_protocol(tmp_path, tiny_config):
    config = schema.load(str(tiny_config))
    evaluation = {"protocol": {"seeds": [0, 1], "count": 8}, "found": {"reference": {"source": "/home/me/photos"}},
                  "metrics": {"frechet": {"value": 12.345678, "low": 11.0}, "heldout_loss": 0.5}}  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    (tmp_path / "metrics.json").write_text("no JSON")
    text = card("mine", "A model.", "load it", Stated("apache-2.0", "someone/base"), library="diffusers",
                task=task_of(config.model, captions=True), tags=["diffusion"],
                sections=run_sections(config, str(tmp_path), 4096, "ema"))  # fmt: skip
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "diffusers", "pipeline_tag": "text-to-image", "license": "apache-2.0",
        "base_model": "someone/base", "base_model_relation": "finetune", "tags": ["diffusion", "lgm"]}  # fmt: skip
    for part in ("4,096 in batches of", "| frechet.value | 12.3457 |", "| heldout_loss | 0.5 |", '"seeds"', "photos",
                 config.data.source, config.loss.target, "| --- | --- |"):  # fmt: skip
        assert part in body, part
    assert "/home" not in text and str(tmp_path) not in text


def test_what_is_not_said_is_not_in_the_card_and_what_hubs_refuse_is_one_line():
    header = card("x", "", "", Stated(), library="jax", task="text-to-image", tags=[]).split("---\n")[1]
    assert set(yaml.safe_load(header)) == {"library_name", "pipeline_tag", "tags"}
    for stated, line in (({"license": "My License"}, "--license=My License is no license's id"),
                         ({"base_model": "/models/sd15"}, "--base-model=/models/sd15 is no name of a model")):
        with pytest.raises(ConfigError, match=line):
            Stated(**stated)
