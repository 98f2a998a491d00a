"""Ways to damage what `lgm` reads, each a function of a random generator: JSON, safetensors, texts, files and words."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

VALUES = (None, True, False, -1, 0, 1, 2, 7, 100_000, 2**31, 10**30, 10**4000, 1.5, -0.5, 1e308, 1e-320, "", "x",
          "\ud800", "NaN", [], [0], [-1], [1, 2, 3], [[]], [None, None], ["a"], ["a", "b", "c"], {},
          {"a": {}})  # fmt: skip
BACKTRACKING = ("(a+)+$", "(.*)*x", "(\\w+\\s?)*!", "(([a-z_.])+.)+Z", "(?:a|a)+b")
NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1e400", "1e9", "99999999999999999999", "", "x", "0.5", "1")


def write(path: Path, content: bytes) -> None:
    """Take the place of a file that other folders share."""
    path.unlink()
    path.write_bytes(content)


def damage_file(rng: random.Random, path: Path) -> str:
    """Damage any file as a file; returns what was done."""
    content = path.read_bytes()
    how = rng.choice(("empty", "cut", "noise", "flip", "longer", "pipe", "folder", "device", "dangling", "loop",
                      "gone"))
    if how == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif how in ("folder", "gone"):
        path.unlink()
        if how == "folder":
            path.mkdir()
    elif how in ("device", "dangling", "loop"):
        path.unlink()
        path.symlink_to({"device": "/dev/zero", "dangling": "nowhere", "loop": path.name}[how])
    else:
        place = rng.randrange(max(1, len(content)))
        flipped = bytes([content[place] ^ 1 << rng.randrange(8)]) if content else b""
        write(path, {"empty": b"", "cut": content[:place], "noise": rng.randbytes(200), "longer": content + b"\0" * 9,
                     "flip": content[:place] + flipped + content[place + 1 :]}[how])  # fmt: skip
    return f"{path.name}: {how}"


def damage_json(rng: random.Random, path: Path) -> str:
    """Change one value of a JSON file, or its text; returns what was done."""
    text = path.read_text()
    how = rng.choice(("value",) * 8 + ("key", "twice", "nan", "deep", "list"))
    if how in ("value", "key"):
        value = json.loads(text)
        where = _any_place(rng, value)
        words = _change(rng, value, where, how)
        write(path, json.dumps(value).encode())
        return f"{path.name}: {words}"
    inner = text.strip()[1:] or "}"
    write(path, {"twice": '{"_class_name": "x", "_class_name": "y", ' + inner, "nan": '{"a": NaN, ' + inner,
                 "deep": "[" * 100_000, "list": f"[{text}]"}[how].encode())  # fmt: skip
    return f"{path.name}: {how}"


def damage_lines(rng: random.Random, path: Path) -> str:
    """Change one value of one line of a file of JSON lines; returns what was done."""
    lines = path.read_text().splitlines()
    number = rng.randrange(len(lines))
    value = json.loads(lines[number])
    words = _change(rng, value, _any_place(rng, value), rng.choice(("value", "value", "key")))
    lines[number] = json.dumps(value)
    write(path, "\n".join(lines).encode())
    return f"{path.name} line {number + 1}: {words}"


def _any_place(rng: random.Random, value: Any) -> list:
    """A path into nested values, mostly to a leaf."""
    place: list = []
    while isinstance(value, (dict, list)) and value and (not place or rng.random() < 0.8):
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        place.append(key)
        value = value[key]
    return place


def _change(rng: random.Random, value: Any, place: list, how: str) -> str:
    for key in place[:-1]:
        value = value[key]
    if not place:
        return "nothing to change"
    if how == "key":
        del value[place[-1]]
        return f"{place} gone"
    old = value[place[-1]]
    options = list(VALUES)
    if isinstance(old, (int, float)) and not isinstance(old, bool):
        options += [old + 1, old * 2, -old, float(old), str(old), [old]] * 3
    if isinstance(old, str):
        options += [old + "x", old * 1000, [old], *BACKTRACKING]
    new = value[place[-1]] = rng.choice(options)
    return f"{place} = {ascii(new)[:60]}"


def damage_tensors(rng: random.Random, path: Path) -> str:
    """Change the header of a safetensors file, or its values; returns what was done."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    how = rng.choice(("entry", "entry", "entry", "rename", "drop", "metadata", "length", "not finite", "overlap",
                      "scalar", "empty", "many", "types"))  # fmt: skip
    words = ""
    if how == "entry":
        words = _change(rng, header[name], _any_place(rng, header[name]), "value")
    elif how == "rename":
        header[rng.choice(("", "x", "." * 50, name + ".x", BACKTRACKING[0]))] = header.pop(name)
    elif how == "drop":
        del header[name]
    elif how == "metadata":
        table = {"unet.alpha_pattern": {rng.choice(BACKTRACKING): 1}, "unet.lora_alpha": rng.choice((0, "x"))}
        pattern = json.dumps(table)
        header["__metadata__"] = rng.choice((None, 1, [], {"a": 1}, {"lora_adapter_metadata": pattern},
                                             {"lora_adapter_metadata": "[" * 50_000}))  # fmt: skip
    elif how == "not finite":
        start, end = header[name]["data_offsets"]
        body[start:end] = b"\xff" * (end - start)
    elif how == "overlap":
        header[name]["data_offsets"] = header[rng.choice(names)]["data_offsets"]
    elif how == "scalar":
        header[name]["shape"] = []
    elif how == "empty":
        header[name]["shape"], header[name]["data_offsets"] = [0, 4], [0, 0]
    elif how == "many":
        header[name]["shape"] = [2**31, 2**31]
    elif how == "types":
        header[name]["dtype"] = rng.choice(("F8_E4M3", "I64", "BOOL", "F99", 5))
    text = json.dumps(header).encode()
    size = rng.choice((2**63, 0, 10**6, length + 1)) if how == "length" else len(text)
    write(path, struct.pack("<Q", size) + text + bytes(body))
    return f"{path.name}: {how} {name} {words}"
