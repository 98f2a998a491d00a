"""Training from latents and states of text that were made once is training from pixels and captions."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))

import tiny_systems  # noqa: E402

from lgm import config as schema  # noqa: E402
from lgm.cli import main  # noqa: E402
from lgm.parallel import make_layout  # noqa: E402
from lgm.train import denoise  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the text")]
CLOSE = dict(rel=1e-6)  # float32 sums of other batch sizes
WORDS = ["batch_size=2", "total_images=4", "evaluation.times=1", "evaluation.max_images=4", "evaluation.batch_size=2",
         "evaluation.distance=0", "sampling.steps=1", "log.every_images=2", "optimizer.warmup_images=0",
         "text.caption_dropout=0.4"]  # fmt: skip
FACES = ["data.resolution=16", "data.where.subcategory=face-hat", "data.heldout_where.subcategory=face-glasses",
         "data.heldout_where.split=train", "sampling.prompts=('a cat','a dog')", "sampling.negative=a bird",
         "sampling.guidance=2.0"]  # fmt: skip
FLAGS = ["data.source=flags", "data.where={'code':['au','aw','ax','az']}", "data.heldout_where={'code':['ba','bb']}",
         "data.resolution=32", "data.buckets=8", "data.latents=memory", "sampling.count=0"]  # fmt: skip


def words(verb, page, *changes):
    return [verb, f"--config={page}", *(f"--config.{word}" for word in changes)]


def start(root, pipeline):
    pipeline.save_pretrained(root / "folder")
    assert main(["import", f"--from={root / 'folder'}", f"--workdir={root / 'start'}"]) == 0
    return root / "start" / "config.py"


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_trains_alike(root, page, changes):
    """The run from pixels and captions, and that from the cache."""
    cache = f"data.cache={root / 'cache'}"
    assert main([*words("train", page, *changes), f"--workdir={root / 'pixels'}"]) == 0
    assert main([*words("train", page, *changes, cache), f"--workdir={root / 'cached'}"]) == 0
    ours, theirs = rows(root / "cached"), rows(root / "pixels")
    assert len(ours) == len(theirs) > 3
    for one, other in zip(ours, theirs, strict=True):
        for key in {"loss", "heldout_loss", "grad_norm"} & one.keys():
            assert one[key] == pytest.approx(other[key], **CLOSE), (one["step"], key)
    assert ours[1]["tflops_per_second"] / ours[1]["images_per_second"] < (
        theirs[1]["tflops_per_second"] / theirs[1]["images_per_second"])  # no encoder is in the step
    config = schema.load(str(page), [tuple(word.split("=", 1)) for word in (*changes, cache)])
    return config, denoise.make_task(config, make_layout({"data": 1}), root)


def test_a_unet_of_buckets_sizes_and_crops(tmp_path, capsys):
    page = start(tmp_path, tiny_systems.stable_diffusion_xl())
    changes = [*WORDS, *FLAGS]
    encode = [*words("encode", page, *changes), f"--out={tmp_path / 'cache'}", "--rows=3"]
    assert main([*encode, "--config.text.long_captions=refuse"]) == 2 and not (tmp_path / "cache").exists()
    assert main([*encode, "--part=1/2"]) == 0
    assert capsys.readouterr().out.count("captions: 1 of 6 that were looked at are longer") == 1
    assert main([*encode, "--part=0/2"]) == 0
    _, task = assert_trains_alike(tmp_path, page, changes)
    batch = next(task.batches)
    assert batch["micro"].shape == (2, 6) and batch["tokens"].dtype == np.float32 and task.frozen == {}


def test_a_transformer_with_prompts_and_pictures_and_what_is_refused(tmp_path, capsys):
    page = start(tmp_path, tiny_systems.z_image())
    changes = [*WORDS, *FACES]
    encode = [*words("encode", page, *changes), f"--out={tmp_path / 'cache'}"]
    assert main(encode) == 0 and "text/prompts: 4 different captions, complete and verified" in capsys.readouterr().out
    config, task = assert_trains_alike(tmp_path, page, changes)
    assert task.frozen == {}
    (ours,), (theirs,) = ((tmp_path / run / "samples").iterdir() for run in ("cached", "pixels"))
    pictures = [np.asarray(Image.open(path)).astype(int) for path in (ours, theirs)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1  # of 255: rounding

    # the run is measured and drawn from with the encoders, of prompts that no cache has too
    assert main(["evaluate", f"--workdir={tmp_path / 'cached'}", f"--out={tmp_path / 'figures.json'}"]) == 0
    last = rows(tmp_path / "cached")[-1]["heldout_loss"]
    figures = json.loads((tmp_path / "figures.json").read_text())["metrics"]
    assert figures["heldout_loss"] == pytest.approx(last, **CLOSE)
    assert main(["sample", f"--workdir={tmp_path / 'cached'}", f"--out={tmp_path / 'x.png'}", "--prompt=a fish"]) == 0

    # int8 on disk: another dtype is made anew, and what it serves is near
    whole = next(task.batches)["tokens"]
    assert main([*encode, "--text-dtype=int8"]) == 0
    layout = make_layout({"data": 1})
    short = next(denoise.make_task(config, layout, tmp_path).batches)["tokens"]
    assert 0 < np.abs(short - whole).max() < 0.01 * np.abs(whole).max()

    def refusal(*more):
        changed = schema.load(str(page), [tuple(word.split("=", 1)) for word in (*changes, *more)])
        with pytest.raises(ValueError, match=".") as caught:
            denoise.make_task(changed, layout, tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    cache = f"data.cache={tmp_path / 'cache'}"
    assert "the caption 'a fox' is not in" in refusal(cache, "sampling.prompts=('a fox',)")
    assert "the caption 'a fox' is not in" in refusal(cache, "sampling.negative=a fox")
    assert "text/train is not there" in refusal(f"data.cache={tmp_path / 'elsewhere'}")
    weights = tmp_path / "folder" / "text_encoder" / "model.safetensors"
    tokenizer = tmp_path / "folder" / "tokenizer" / "tokenizer_config.json"
    for path, name in ((tokenizer, "tokenizers"), (weights, "text_encoders")):
        content = path.read_bytes()
        path.write_bytes(content.replace(b"{", b"{ ", 1) if path.suffix == ".json" else
                         content[:-1] + bytes([content[-1] ^ 1]))
        assert f"was made with {name}=" in refusal(cache)
        path.write_bytes(content)
