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
