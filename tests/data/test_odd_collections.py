"""Collections as people have them: odd headings, separators and names."""

import io
import tarfile

import pytest
from odd_files import encoded
from PIL import Image

from lgm.data import open_images


@pytest.mark.parametrize("content", [
    "\ufefffile_name,text\r\na.png,\"one; more\"\r\nb.png,two\r\n", "file_name;text\na.png;\"one; more\"\nb.png;two\n",
    "\ufefffile_name;text\n\"a.png\";\"one; more\"\nb.png;two\n", "file_name\ttext\na.png\tone; more\nb.png\ttwo\n",
    "\n\nfile_name, text\n\na.png,one; more\nb.png,two\n"])  # fmt: skip
def test_a_csv_as_a_spreadsheet_writes_it(content, folder):
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes((folder / "a" / "0.png").read_bytes())
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text(content, encoding="utf-8", newline="")
    assert open_images(str(folder)).captions == ["one; more", "two"]


@pytest.mark.parametrize("name, content, line", [
    ("csv", "file_name,text\na.png,one".encode("utf-16"), "metadata.csv is UTF-16; save it as CSV in UTF-8"),
    ("jsonl", b'{"path": "a.png", "caption": "x"}', r"has no file_name \(it has path, caption\); every image needs")])
def test_a_table_that_names_no_files_says_what_it_has(name, content, line, folder):
    (folder / "metadata.jsonl").unlink()
    (folder / f"metadata.{name}").write_bytes(content)
    with pytest.raises(ValueError, match=line):
        open_images(str(folder))


def test_folders_named_in_kohyas_way_are_called_what_they_show(tmp_path):
    for name in ("10_a cat", "2_dog", "train/3_fox"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    images = open_images(str(tmp_path))
    assert images.captions == ["a cat", "dog", "fox"] and images.rows.values("class") == ["10_a cat", "2_dog", "3_fox"]
    (tmp_path / "bird").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "bird" / "0.png")
    assert open_images(str(tmp_path)).captions == ["10_a cat", "2_dog", "bird", "3_fox"]


def test_a_record_of_a_tar_has_one_image(tmp_path):
    def tar(name, members):
        with tarfile.open(tmp_path / name, "w") as archive:
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return str(tmp_path / name)

    picture, mask = (encoded("PNG", size=size) for size in ((8, 8), (9, 9)))
    images = open_images(tar("mask.tar", {"0.jpg": picture, "0.mask.png": mask, "0.txt": b"one"}))
    assert images.content(0) == picture and images.captions == ["one"]
    with pytest.raises(ValueError, match="img: .0001.jpg, .0002.jpg are images of one record, .*; give each"):
        open_images(tar("dots.tar", {"img.0001.jpg": picture, "img.0002.jpg": picture}))
