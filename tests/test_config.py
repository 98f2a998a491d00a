"""Config files parse, survive JSON, and say what a run will be."""

import json
from pathlib import Path

import pytest

from lgm import config as schema
from lgm.models import build
from lgm.parsing import ConfigError

FOLDER = Path(__file__).parent.parent / "configs"
FILES = [str(path) for path in sorted(FOLDER.glob("*.py"))]  # sweeps, in a folder below, have tests of their own
EMOJI = [f"{FOLDER}/emoji.py:model={model},process={process}"
         for model in ("mmdit", "unet") for process in ("flow", "eps", "v", "edm")]


@pytest.mark.parametrize("spec", FILES + EMOJI)
def test_every_config_parses_builds_and_survives_json(spec):
    config = schema.load(spec)
    assert schema.from_dict(json.loads(json.dumps(schema.to_dict(config)))) == config
    assert build(config.model).count() > 0


def test_overrides_take_python_literals_or_words():
    pairs = [("optimizer.lr", "1e-2"), ("sampling.prompts", "['a', 'b']"), ("optimizer.schedule", "linear")]
    config = schema.load(f"{FOLDER}/quickstart.py", pairs)
    assert config.optimizer.lr == 1e-2
    assert config.sampling.prompts == ("a", "b")
    assert config.optimizer.schedule == "linear"


def test_both_generations_of_the_emoji_config_are_of_one_size():
    sizes = [build(schema.load(spec).model).count() for spec in (EMOJI[0], EMOJI[5])]
    assert max(sizes) / min(sizes) < 1.05


def test_a_config_file_that_fails_says_how(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        schema.load(str(bad))
    with pytest.raises(ConfigError, match="get_config"):
        bad.write_text("x = 1\n")
        schema.load(str(bad))


@pytest.mark.parametrize("key", ["name", "sampling.negative", "sampling.prompts", "data.caption"])
def test_half_of_a_surrogate_pair_is_named_by_its_key(key):
    """As bytes of a command line that are no UTF-8 arrive, and as JSON can hold it."""
    text = "caf\udce9"
    with pytest.raises(ConfigError, match=rf"config.{key}(\[0\])?='caf\\udce9' is no Unicode text; write it in UTF-8"):
        schema.load(f"{FOLDER}/quickstart.py", [(key, str([text]) if key.endswith("prompts") else text)])
