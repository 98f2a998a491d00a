"""A diffusers folder measured by protocol: its pictures are those that `lgm sample` draws with the seed."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_systems import stable_diffusion_3

from lgm.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the text")]
PROMPTS = ["a red hat", "a fish", "a cat"]


def test_a_folder_of_others_by_protocol(tmp_path, capsys):
    stable_diffusion_3().save_pretrained(tmp_path / "released")
    path, out = tmp_path / "protocol.json", tmp_path / "evaluation.json"
    protocol = dict(metrics=["frechet", "kernel"], system="StableDiffusion3Pipeline", batch=2,
                    prompts=dict(texts=PROMPTS), drawing=dict(steps=2, guidance=2.0), features=dict(name="autoencoder"),
                    reference=dict(source="emoji64", where=dict(subcategory="face-hat")))  # fmt: skip
    path.write_text(json.dumps(protocol))
    words = ["evaluate", f"--from={tmp_path / 'released'}", f"--protocol={path}", f"--out={out}"]
    assert main([*words, f"--pictures={tmp_path / 'drawn'}"]) == 0
    found = json.loads(out.read_text())
    assert found["drawn"]["images"] == 3 and found["drawn"]["evaluations"] == 4  # two steps, guided
    assert found["found"]["drawing"]["steps"] == 2
    assert found["found"]["drawing"]["schedule"]["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    sample = ["sample", f"--from={tmp_path / 'released'}", f"--out={tmp_path / 'x.png'}", "--steps=2", "--guidance=2",
              *(f"--prompt={prompt}" for prompt in PROMPTS)]  # fmt: skip
    assert main(sample) == 0
    for number in range(3):
        ours, theirs = (np.asarray(Image.open(file)).astype(int) for file in
                        (tmp_path / "drawn" / f"{number:06d}.png", tmp_path / f"x-{number + 1}.png"))
        assert np.abs(ours - theirs).max() <= 1  # batches of 2 and of 3 are two programs: rounding
    capsys.readouterr()
    for change, part in ((dict(system="FluxPipeline"), "protocol.system='FluxPipeline' is not what is measured"),
                         (dict(prompts={}, reference=dict(source="heldout")), "'heldout' are the images of a run"),
                         (dict(drawing=dict(clip=2.0)), "protocol.drawing.clip=2.0 is for runs")):
        path.write_text(json.dumps(protocol | change))
        assert main(words) == 2
        line = capsys.readouterr().err
        assert part in line and len(line.splitlines()) == 1
