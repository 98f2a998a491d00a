"""What a family's record says is so, and a family from outside the package is trained, drawn from, counted and swept
without a word about it in the package."""

import json
import os
import sys

import jax
import pytest

from lgm import config as schema
from lgm.cli import main
from lgm.exporting import open_exported
from lgm.models import FAMILIES, build, classes, count, families, family, family_of
from lgm.models.listing import preset
from lgm.parsing import ConfigError, parse
from lgm.planning.plan import plan
from lgm.scaling import ladders, sweep

OWN = "own_family:NET"
FACES = dict(where=dict(subcategory="face-hat"), heldout_where=dict(subcategory="face-glasses"))
TEXT = dict(encoder=dict(family="clip_text", vocab_size=4096, width=16, depth=1, heads=1, max_length=16))
RUN = dict(name="own", batch_size=4, total_images=12, model=dict(family=OWN, width=8), data=FACES,
           sampling=dict(count=0, steps=2), evaluation=dict(max_images=4, times=2), ema=dict(half_life_images=10**9))


def smallest(record):
    """A configuration of the family's smallest member."""
    return parse(record.config, record.small(record.config()), "model")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_record_is_found_by_its_name_and_by_its_configuration(name):
    record = family(name)
    config = smallest(record)
    assert record.name == name and family_of(config) is record
    assert build(config).module is record.module
    assert isinstance(config, classes(name)[0])


@pytest.mark.parametrize("record", families("denoiser"), ids=lambda record: record.name)
def test_a_record_says_what_its_network_takes_and_what_is_embedding(record):
    config = smallest(record)
    model, told = build(config), record.conditioning(config)
    x, t, cond = record.inputs(config, 2, 8, 5)
    y = jax.eval_shape(model.apply, model.abstract(), x, t, cond)
    assert y.shape == x.shape == (2, 8, 8, config.channels)
    for part in ("text", "pooled", "micro", "beside"):
        array = getattr(cond, part)
        assert (0 if array is None else array.shape[-1]) == getattr(told, part)
    if told.variance:
        both = jax.eval_shape(lambda *args: model.apply(*args, method="with_variance"), model.abstract(), x, t, cond)
        assert both.shape[-1] == 2 * config.channels
    rest = {name: part for name, part in model.abstract().items() if name not in record.embeddings}
    assert 0 < count(rest) < model.count()
    assert record.tokens(config, 8, 8) * (record.patch(config) if record.patch else 2) ** 2 == 64


def test_a_family_from_outside_is_a_config_like_any_other():
    config = schema.from_dict(RUN)
    assert config.family == OWN and schema.from_dict(json.loads(json.dumps(schema.to_dict(config)))) == config
    assert family_of(config.model) is family(OWN) and build(config.model).count() == 33 * 8 + 8 + 8 * 32 + 32
    with pytest.raises(ConfigError, match="config.model.wide is an unknown key"):
        schema.from_dict(RUN | {"model": dict(family=OWN, wide=8)})
    with pytest.raises(ConfigError, match="config.model.width=0 must be at least 1"):
        schema.from_dict(RUN | {"model": dict(family=OWN, width=0)})
    with pytest.raises(ConfigError, match="pooled_dim=8 must equal the 16"):
        schema.from_dict(RUN | {"model": dict(family=OWN, pooled_dim=8), "text": TEXT})


@pytest.mark.parametrize(("name", "why"), [
    ("own_famly:NET", "own_famly cannot be imported"), ("own_family:NAT", "NAT of own_family is no lgm.models.Family"),
    ("own_family:NOT_ONE", "NOT_ONE of own_family is no"), ("own_family", "give package.module:RECORD"),
    ("mdit", "did you mean 'mmdit'"), (3, "config.model.family=3"), (None, "config.model.family=None"),
])
def test_what_is_no_family_is_one_line(name, why):
    with pytest.raises(ConfigError, match="config.model.family=") as caught:
        schema.from_dict(RUN | {"model": dict(family=name)})
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_a_family_from_outside_has_a_ladder_counts_and_a_place_in_sweeps():
    two, four = (ladders.shape(OWN, size, channels=32) for size in (2, 4))
    assert (two.width, four.width) == (16, 32)
    rung = ladders.measure(two, 8)
    assert rung.params == rung.non_embedding == build(two).count()
    assert rung.forward == 2 * 64 * (33 * 16 + 16 * 32)
    plan = sweep.Sweep(
        "s", dict(RUN, evaluation=dict(levels=2)) | dict.fromkeys(("name", "model", "total_images")),
        {"own": sweep.Architecture(OWN, (1, 2), 1e-3)}, {"flow": sweep.Objective({"name": "rectified_flow"}, {})},
        images=(40,),
    )  # fmt: skip
    runs = sweep.expand(plan)
    assert [run.configs[0].model.width for run in runs] == [8, 16]
    assert runs[1].shape.flops == ladders.measure(runs[1].configs[0].model, 8).training
    assert preset("mmdit/sd3_medium") == ladders.shape("mmdit", 24)


@pytest.mark.parametrize("section", [{"model": {"family": "this:NET"}}, {"text": {"encoder": {"family": "this:NET"}}}])
def test_a_folder_does_not_choose_what_is_imported(section, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(section))
    with pytest.raises(ConfigError, match="module this, whose code would be run; .* LGM_TRUST=this"):
        open_exported(str(tmp_path))
    assert "this" not in sys.modules


@pytest.mark.slow
def test_a_family_from_outside_is_trained_drawn_from_and_exported(tmp_path):
    path, run = tmp_path / "own.json", tmp_path / "run"
    path.write_text(json.dumps(RUN | dict(text=TEXT, model=dict(family=OWN, width=8, pooled_dim=16))))
    assert main(["train", f"--config={path}", f"--workdir={run}"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 3
    prompt = "--prompt=cowboy hat face emoji, noto style"
    assert main(["sample", f"--workdir={run}", prompt, f"--out={tmp_path / 'a.png'}", "--steps=2"]) == 0
    assert main(["export", f"--workdir={run}", f"--out={tmp_path / 'folder'}"]) == 0
    assert main(["sample", f"--from={tmp_path / 'folder'}", prompt, f"--out={tmp_path / 'b.png'}", "--steps=2"]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.slow
@pytest.mark.libtpu
def test_a_family_from_outside_is_planned_for_a_machine_that_is_not_here(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))
    config = schema.from_dict(RUN | {"mesh": {"fsdp": 2}})
    found = plan(config, "v5e:2x2")
    assert found.fits and found.model_flops * 4 == pytest.approx(4 * 3 * ladders.measure(config.model, 8).forward, 1e-6)
