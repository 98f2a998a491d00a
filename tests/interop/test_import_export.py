"""`lgm import`, `train` and `export`: a released system goes in, is trained, and diffusers reads what comes out."""

import dataclasses
import json
import shutil

import diffusers
import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny_systems
from PIL import Image
from tiny_systems import GUIDANCE, PROMPTS, STEPS

from lgm import config as schema
from lgm.cli import main
from lgm.drawing import draw
from lgm.systems.folders import load_pipeline
from lgm.train.opening import load_run
from lgm.train.start import open_system

LEAST_PSNR = 45.0  # images of 8 bits, rounded

SMALL = ["batch_size=2", "total_images=6", "data.resolution=16", "data.where.subcategory=face-hat",
         "data.heldout_where.subcategory=face-hat", "data.heldout_where.split=train", "evaluation.times=1",
         "evaluation.max_images=2", "evaluation.batch_size=2", "sampling.steps=4", "sampling.guidance=3.0",
         "sampling.count=1", "log.every_images=2", "optimizer.warmup_images=0"]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:the text")  # captions are long for a tokenizer of bytes


def train(run, *overrides, config=None):
    words = [f"--config.{word}" for word in (*SMALL, *overrides)]
    return main(["train", f"--config={config or run / 'config.py'}", f"--workdir={run}", *words])


def photos(folder, count):
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (20, 16), (80 * number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"photo {number}")


def weights_of(folder, place="unet"):
    return safetensors.numpy.load_file(folder / place / "diffusion_pytorch_model.safetensors")


def run_noise(seed, count, shape):
    """x_T of image i of a run: a function of (seed, i)."""
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), i), 0) for i in range(count)]
    return np.stack([np.asarray(jax.random.normal(key, shape)) for key in keys])


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "sd"
    tiny_systems.smallest_stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def imported(released, tmp_path_factory):
    """A run that was only imported."""
    run = tmp_path_factory.mktemp("imported") / "run"
    assert main(["import", f"--from={released}", f"--workdir={run}"]) == 0
    return run


@pytest.fixture(scope="module")
def tuned(imported, tmp_path_factory):
    """The same run, trained for three steps with the learning rate changed on the command line."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    shutil.copytree(imported, run)
    assert train(run, "optimizer.lr=1e-2") == 0
    return run


@pytest.mark.slow
def test_a_run_may_be_imported_onto_a_folder_of_ones_own(released, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", 3)
    assert main(["import", f"--from={released}", f"--workdir={tmp_path / 'run'}", "--data=photos"]) == 0
    data = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert data["source"] == str(tmp_path / "photos") and data["where"] == data["heldout_where"] == {}
    assert main(["import", f"--from={released}", f"--workdir={tmp_path / 'other'}", "--data=nowhere"]) == 2
    assert "'nowhere' is not there" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_an_imported_run_draws_with_the_weights_it_will_start_from(released, imported):
    config = schema.read(imported)
    assert config.init_from == config.autoencoder == config.text.folder == str(released)
    system, params, frozen, images_seen = load_run(str(imported), "ema")
    assert images_seen == 0
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(released)
    noise = run_noise(5, 2, (8, 8, 4))
    drawn = draw(system, params, frozen, PROMPTS, seed=5, steps=STEPS, guidance=GUIDANCE)
    expected = tiny_systems.their_images(theirs, noise)
    assert tiny_systems.psnr(drawn / 255, expected) > LEAST_PSNR


def test_the_weights_of_an_imported_run_are_the_folders_bit_for_bit(released, imported, tmp_path):
    assert main(["export", f"--workdir={imported}", f"--out={tmp_path / 'same'}"]) == 0
    for place in ("unet", "vae"):
        before, after = weights_of(released, place), weights_of(tmp_path / "same", place)
        assert {k: v.tobytes() for k, v in before.items()} == {k: v.tobytes() for k, v in after.items()}
    assert main(["export", f"--workdir={imported}", "--form=original", f"--out={tmp_path / 'original'}"]) == 0
    read = lambda **words: load_pipeline(released, **words)[1]
    jax.tree.map(np.testing.assert_array_equal, read(single_file=tmp_path / "original" / "model.safetensors"), read())
    card = (tmp_path / "same" / "README.md").read_text()
    assert "library_name: diffusers" in card and "from_pretrained" in card and str(tmp_path) not in card
    assert f"started from | {released.name} |" in card and str(released.parent) not in card


def test_a_run_computes_in_what_the_folders_weights_are_of(released, tmp_path):
    """And says so in its config; float16's is bfloat16, whatever the autoencoder is of."""
    for type_, told, expected in ((np.float32, [], "float32"), (np.float16, [], "bfloat16"),
                                  (np.float16, ["--dtype=float32"], "float32")):
        folder, run = (tmp_path / f"{name}-{np.dtype(type_).name}{len(told)}" for name in ("sd", "run"))
        shutil.copytree(released, folder)
        tensors = {name: tensor.astype(type_) for name, tensor in weights_of(folder).items()}
        safetensors.numpy.save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors")
        assert main(["import", f"--from={folder}", f"--workdir={run}", *told]) == 0
        assert schema.read(run).model.dtype == expected
        assert f"'dtype': '{expected}'" in (run / "config.py").read_text()


@pytest.mark.slow
def test_once_trained_the_config_may_not_change(tuned, capsys):
    assert train(tuned, "optimizer.lr=1e-3") != 0
    assert "holds a run with config.optimizer.lr=0.01" in capsys.readouterr().err


@pytest.mark.slow
def test_an_exported_run_is_read_by_diffusers_and_draws_the_runs_image(released, tuned, tmp_path):
    folder = tmp_path / "out"
    assert main(["export", f"--workdir={tuned}", f"--out={folder}"]) == 0
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(theirs) is diffusers.StableDiffusionPipeline
    noise = run_noise(5, 2, (8, 8, 4))
    expected = tiny_systems.their_images(theirs, noise)
    system, params, frozen, _ = load_run(str(tuned), "ema")
    drawn = draw(system, params, frozen, PROMPTS, seed=5, steps=STEPS, guidance=GUIDANCE)
    assert tiny_systems.psnr(drawn / 255, expected) > LEAST_PSNR
    before = tiny_systems.their_images(diffusers.StableDiffusionPipeline.from_pretrained(released), noise)
    assert tiny_systems.psnr(before, expected) < 35  # training shows
    for place in ("vae", "text_encoder"):  # frozen
        old, new = (safetensors.numpy.load_file(next((f / place).glob("*.safetensors"))) for f in (released, folder))
        assert all(v.tobytes() == new[k if k in new else f"text_model.{k}"].tobytes() for k, v in old.items())

    assert main(["export", f"--workdir={tuned}", f"--out={tmp_path / 'raw'}", "--weights=raw"]) == 0
    start, ema, raw = weights_of(released), weights_of(folder), weights_of(tmp_path / "raw")
    assert any(not np.array_equal(ema[k], raw[k]) for k in ema)
    assert max(np.abs(start[k] - raw[k]).max() for k in raw) < 0.05  # three steps of Adam at 0.01 from where it began


@pytest.mark.slow
def test_a_run_starts_from_another_run(tuned):
    config = dataclasses.replace(schema.read(tuned), init_from=str(tuned))
    system, _, start = open_system(config)
    ours, theirs = jax.tree.leaves(start(None)["denoiser"]), jax.tree.leaves(load_run(str(tuned), "ema")[1]["denoiser"])
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, heads=(4,)))
    with pytest.raises(ValueError, match=r"config.model.heads=\[4\], but that of config.init_from="):
        open_system(other)


@pytest.mark.parametrize(("overrides", "part"), [
    (["model.layers_per_block=2"], "config.model.layers_per_block=2, but that of config.init_from="),
    (["init_from=/nowhere"], "config.init_from='/nowhere' is neither a diffusers folder"),
    (["text.folder=/nowhere"], "model_index.json is not there"),
    (["autoencoder=/nowhere"], "config.autoencoder='/nowhere' is not there"),
    (["init_from=None", "lora.rank=4"], "config.lora needs config.init_from"),
    (["lora.targets=('nothing',)"], "targets: 'nothing' matches no matrix"),
    (["lora.rank=0"], "rank=0 must be at least 1"),
    (["lora.ranks=1"], "config.lora.ranks is an unknown key; did you mean 'rank'"),
])  # fmt: skip
def test_what_cannot_be_trained_is_one_line(imported, tmp_path, capsys, overrides, part):
    run = tmp_path / "run"
    assert train(run, *overrides, config=imported / "config.py") != 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("lgm train: ") and part in lines[0], lines
    assert not run.exists()


def truncate(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def rename_the_class(folder):
    path = folder / "model_index.json"
    path.write_text(path.read_text().replace("StableDiffusionPipeline", "AudioPipeline"))


def misshape(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors | {"conv_in.weight": np.zeros((2, 2), np.float32)}, path)


@pytest.mark.parametrize(("damage", "part"), [
    (truncate, "it is cut short or corrupt"),
    (misshape, "tensor 'conv_in.weight' has shape (2, 2)"),
    (rename_the_class, "_class_name='AudioPipeline' is not known"),
    (shutil.rmtree, "model_index.json is not there"),
])  # fmt: skip
def test_what_cannot_be_imported_is_one_line(released, tmp_path, capsys, damage, part):
    folder, run = tmp_path / "sd", tmp_path / "run"
    shutil.copytree(released, folder)
    damage(folder)
    assert main(["import", f"--from={folder}", f"--workdir={run}"]) != 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("lgm import: ") and part in lines[0], lines
    assert not run.exists()


def test_folders_that_are_there_are_left_alone(released, imported, capsys):
    before = (imported / "config.json").read_bytes()
    assert main(["import", f"--from={released}", f"--workdir={imported}"]) != 0
    assert main(["export", f"--workdir={imported}", f"--out={released}"]) != 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("is there already" in line for line in lines)
    assert (imported / "config.json").read_bytes() == before


def test_a_run_with_an_encoder_of_its_own_is_exported_for_lgm_itself(tiny_run, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["export", f"--workdir={tiny_run}", f"--out={folder}"]) == 0
    line = capsys.readouterr().out.strip()
    assert "diffusers has no such pipeline" in line and "\n" not in line
    prompt = "--prompt=cowboy hat face emoji, noto style"
    for source, out in ((f"--workdir={tiny_run}", "a.png"), (f"--from={folder}", "b.png")):
        assert main(["sample", source, prompt, f"--out={tmp_path / out}", "--seed=3"]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    capsys.readouterr()
    sample = ["sample", f"--from={folder}", prompt, f"--out={tmp_path / 'c.png'}"]
    assert main([*sample, "--tile=64"]) != 0
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert main(sample) != 0
    values = json.loads((folder / "config.json").read_text())
    values["model"]["depth"] = 3
    (folder / "config.json").write_text(json.dumps(values))
    shutil.copy(folder / "autoencoder" / "autoencoder.safetensors", path)
    assert main(sample) != 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and not (tmp_path / "c.png").exists()
    parts = ("--tile goes with a diffusers folder", "cut short", "another architecture")
    assert all(part in line for line, part in zip(lines, parts, strict=True)), lines


def test_a_run_draws_at_other_sizes(tiny_run, tmp_path, capsys):
    sample = ["sample", f"--workdir={tiny_run}", "--prompt=cowboy hat face emoji, noto style", "--steps=2"]
    assert main([*sample, f"--out={tmp_path / 'wide.png'}", "--size=32x64"]) == 0
    with Image.open(tmp_path / "wide.png") as image:
        assert image.size == (64, 32) and json.loads(image.text["lgm"])["size"] == "32x64"
    assert np.asarray(Image.open(tmp_path / "wide.png")).std() > 1
    capsys.readouterr()
    assert main([*sample, f"--out={tmp_path / 'odd.png'}", "--size=60x64"]) != 0
    assert capsys.readouterr().err == "lgm sample: an image of 60 x 64 cannot be drawn; use multiples of 8 pixels\n"
    assert not (tmp_path / "odd.png").exists()
