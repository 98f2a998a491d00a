"""`lgm inspect`: full-size models as tables of parameters, without an array of them."""

import jax
import pytest
import tiny_systems
import torch
import transformers

from lgm.cli import main
from lgm.models.listing import preset, presets


def counts(table: str) -> tuple[list[int], int]:
    """(the last column, the total that the last line states)."""
    header, *rows, total = table.splitlines()
    assert header.split() == ["parameter", "shape", "axes", "count"]
    return [int(row.split()[-1].replace(",", "")) for row in rows], int(total.split()[0].replace(",", ""))


def test_full_size_flux_and_t5_are_printed_without_making_them(capsys):
    before = len(jax.live_arrays())
    assert main(["inspect", "--preset=flux_dev", "--preset=t5/t5_v1_1_xxl"]) == 0
    assert len(jax.live_arrays()) == before
    flux, t5 = capsys.readouterr().out.strip().split("\n\n")
    flux, t5 = flux.removeprefix("flux_dev\n"), t5.removeprefix("t5/t5_v1_1_xxl\n")
    assert "double/image/heads/qkv/kernel    19 x 3072 x 9216   layers, fused, -            537,919,488" in flux
    rows, total = counts(flux)
    assert sum(rows) == total == 11_901_408_320 and "23.8 GB in bfloat16" in flux
    config = transformers.T5Config(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                                   feed_forward_proj="gated-gelu", tie_word_embeddings=False)  # fmt: skip
    with torch.device("meta"):
        theirs = sum(p.numel() for p in transformers.T5EncoderModel(config).parameters())
    rows, total = counts(t5)
    assert sum(rows) == total == theirs


def test_a_folders_networks_are_summed_up_by_level(tmp_path, capsys):
    theirs = tiny_systems.flux()
    theirs.save_pretrained(tmp_path / "flux")
    assert main(["inspect", f"--from={tmp_path / 'flux'}", "--levels=1"]) == 0
    tables = dict(part.split("\n", 1) for part in capsys.readouterr().out.strip().split("\n\n"))
    assert set(tables) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    for place, table in tables.items():
        rows, total = counts(table)
        assert sum(rows) == total == sum(p.numel() for p in getattr(theirs, place).parameters())
    names = [line.split()[0] for line in tables["transformer"].splitlines()[1:-1]]
    assert names == ["double", "guidance", "modulation", "out", "patches", "pooled", "single", "text", "time"]


def test_every_preset_is_found_by_its_whole_name():
    for name, config in presets().items():
        assert preset(name) == config


@pytest.mark.parametrize(("words", "line"), [
    (["--preset=flux_dv"], "there is no preset 'flux_dv'; did you mean 'flux_dev'?"),
    (["--preset=sd15"], "preset 'sd15' may be autoencoder/sd15 or unet/sd15; give one of them"),
    (["--preset=flux_dev", "--levels=0"], "levels=0 must be at least 1"),
    (["--from=/nowhere"], "model_index.json is not there"),
])  # fmt: skip
def test_what_cannot_be_shown_is_one_line(capsys, words, line):
    assert main(["inspect", *words]) != 0
    printed = capsys.readouterr()
    assert line in printed.err and len(printed.err.splitlines()) == 1 and not printed.out
