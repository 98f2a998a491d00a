import json

import numpy as np
import pytest
from PIL import Image

from lgm.cli import main


def said(capsys, *words):
    code = main(["data", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_what_a_folder_holds_is_said(folder, tmp_path, capsys):
    with open(folder / "metadata.jsonl", "a") as file:
        file.write('{"file_name": "a/none.png", "text": "x"}\n')
    (folder / "a/3.png").write_bytes((folder / "a/3.png").read_bytes()[:60])
    code, out, err = said(capsys, folder, "--resolution=64", "--step=16", f"--sheet={tmp_path / 'sheet.png'}")
    assert code == 0 and not err
    for part in ("folder with metadata, 6 images", "columns   file_name, text, kind, n, tags",
                 "8 to 12 (median 8) px wide, 8 px high", "width / height 1.00 to 1.50; 2 sizes",
                 "64x64 3, 48x80 2", "captions  6 of 6 in 'text': 9 letters, 4 tokens", "row 0 a/0.png",
                 "bad       2 (all were read)", "line 7 names a/none.png", "a/3.png cannot be decoded"):
        assert part in out, (part, out)
    assert np.asarray(Image.open(tmp_path / "sheet.png")).shape[2] == 3


def test_a_shipped_set_and_another_caption(capsys):
    code, out, _ = said(capsys, "emoji64", "--check=50", "--caption=name", "--resolution=64", "--step=8")
    assert code == 0 and "6,996 images" in out and "splits    train 6,801, heldout 195" in out
    assert "50 of 50 in 'name'" in out and "64x64 50" in out and "bad       none (50 were read)" in out


@pytest.mark.parametrize("make, line", [
    (lambda path: None, "is not there; give emoji64, flags"),
    (lambda path: path.mkdir(), "no images and no shards: it is empty"),
    (lambda path: (path.mkdir(), (path / "notes.md").write_text("x")), "it holds notes.md"),
    (lambda path: path.write_text("hello"), "is not a readable zip"),
])
def test_what_is_no_data_is_one_clear_line(tmp_path, capsys, make, line):
    make(tmp_path / "it")
    code, out, err = said(capsys, tmp_path / "it")
    assert code == 2 and not out and line in err and err.count("\n") == 1 and err.startswith("lgm data: ")


def test_what_a_config_makes_of_its_sources_is_said(folder, tmp_path, capsys):
    page = tmp_path / "page.json"
    source = {"mine": {"source": str(folder), "weight": 3, "where": {"n": ">=2", "width": ">8"},
                       "caption": ["text", "kind"]}, "flags": {"source": "flags", "where": {"code": "a*"}}}
    page.write_text(json.dumps({
        "name": "x", "batch_size": 4, "total_images": 400, "model": {"family": "dit", "channels": 32},
        "data": {"source": source, "latents": "step", "buckets": 8, "heldout_where": {"n": 1}}}))  # fmt: skip
    code, out, err = said(capsys, f"--config={page}", "--config.data.source.flags.heldout_where={'code': 'pe'}",
                          "--config.data.flip=True")
    assert code == 0 and not err, err
    for part in (f"mine: {folder}, folder with metadata, 6 images",
                 "train     2 (n='>=2' leaves 4, width='>8' leaves 2); weight 3, 75.000% of what is served; each 150 ",
                 "held out  1 (n=1 leaves 1)", "flags: folder with metadata, 256 images",
                 "held out  1 (code='pe' leaves 1)", "; 1 to 2 of each, one drawn each time",
                 "anew      each time an image is served: flip", "buckets ", "near      no held-out image is",
                 "bad       none before any image is decoded"):
        assert part in out, (part, out)
    for words, line in (([], "give a PATH"), ([folder, f"--config={page}"], "give a PATH"),
                        ([folder, "--config.data.flip=True"], "--config.data.flip goes with --config=PAGE")):
        code, out, err = said(capsys, *words)
        assert code == 2 and line in err and err.count("\n") == 1
