"""Draws pictures with the programs beside this file, by jax alone: python run.py --out=x.png

sampler.stablehlo makes latents of noise and token ids, decoder.stablehlo pictures of latents; manifest.json says what
they take, weights.safetensors holds the weights. The programs run on CPU, CUDA and TPU, whichever jax finds. Captions
are told as token ids, for there is no tokenizer here: --ids=FILE is a JSON object {"ids": [[...]], "mask": [[...]]},
one row a picture; without it the examples of manifest.json are drawn.
"""

import argparse
import dataclasses
import json
import struct
import zlib
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import ml_dtypes
import numpy as np

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I32": np.int32, "I64": np.int64}


def read_weights(path):
    """{name: array} of a safetensors file: an 8-byte length, a JSON header, the bytes."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", 8 + length)
    cut = lambda start, end: data[start:end]
    return {name: cut(*at["data_offsets"]).view(DTYPES[at["dtype"]]).reshape(at["shape"])
            for name, at in header.items()}  # fmt: skip


def load_program(folder, name):
    """(the function of (weights, inputs) that a program is, what manifest.json says of it)."""
    said = json.loads((Path(folder) / "manifest.json").read_text())["programs"][name]
    specs = lambda table: {key: jax.ShapeDtypeStruct(tuple(shape), dtype) for key, (shape, dtype) in table.items()}
    given, in_tree = jax.tree.flatten(((specs(said["weights"]), specs(said["inputs"])), {}))
    made, out_tree = jax.tree.flatten(specs(said["outputs"]))
    avals = lambda leaves: tuple(jax.make_jaxpr(lambda *x: x)(*leaves).in_avals)
    known = {
        "fun_name": name, "in_tree": in_tree, "in_avals": avals(given), "out_tree": out_tree, "out_avals": avals(made),
        "platforms": tuple(said["platforms"]), "mlir_module_serialized": (Path(folder) / said["file"]).read_bytes(),
        "calling_convention_version": said["calling_convention"], "module_kept_var_idx": tuple(said["kept"]),
        "nr_devices": 1, "uses_global_constants": said["platform_index"], "_has_named_shardings": False,
        **dict.fromkeys(("in_shardings_hlo", "_in_named_shardings"), (None,) * len(given)),
        **dict.fromkeys(("out_shardings_hlo", "_out_named_shardings"), (None,) * len(made)),
        **dict.fromkeys(("ordered_effects", "unordered_effects", "disabled_safety_checks"), ()),
    }  # fmt: skip
    fields = {field.name: known.get(field.name) for field in dataclasses.fields(jax.export.Exported)}
    return jax.jit(jax.export.Exported(**fields).call), said


def draw(folder, ids=None, mask=None, seed=0, noise=None):
    """uint8 pictures [B, H, W, 3] of token ids [B, L] with their mask, from `noise` [B, h, w, C] or that of a seed."""
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    weights = read_weights(Path(folder) / "weights.safetensors")
    sampler, said = load_program(folder, "sampler")
    shape = tuple(said["inputs"]["noise"][0])
    if ids is None:
        ids, mask = manifest["examples"]["ids"], manifest["examples"]["mask"]
    ids = np.asarray(ids, np.int32)
    mask = np.ones(ids.shape, bool) if mask is None else np.asarray(mask, bool)
    if ids.ndim != 2 or ids.shape[1:] != tuple(said["inputs"]["ids"][0])[1:] or mask.shape != ids.shape:
        raise SystemExit(f"ids have shape {ids.shape}, their mask {mask.shape}; rows of "
                         f"{said['inputs']['ids'][0][1]} are what this program takes")
    noise = _noise(seed, range(len(ids)), shape[1:]) if noise is None else np.asarray(noise, np.float32)
    if noise.shape != (len(ids), *shape[1:]):
        raise SystemExit(f"noise has shape {noise.shape}; {len(ids)} pictures take {(len(ids), *shape[1:])}")
    none = {key: np.asarray([manifest["no_caption"][key]] * shape[0]) for key in ("ids", "mask")}
    decoder, pictures = load_program(folder, "decoder")[0], []
    part = lambda said: {name: jnp.asarray(weights[name]) for name in said["weights"]}
    own, decoding = part(said), part(manifest["programs"]["decoder"])
    for first in range(0, len(ids), shape[0]):
        rows = np.minimum(np.arange(first, first + shape[0]), len(ids) - 1)
        given = {"noise": noise[rows], "ids": ids[rows], "mask": mask[rows], "rows": rows.astype(np.int32),
                 "no_ids": none["ids"].astype(np.int32), "no_mask": none["mask"].astype(bool),
                 "seed": np.int32(seed)}  # fmt: skip
        latents = sampler(own, given)["latents"]
        pictures.append(np.asarray(decoder(decoding, {"latents": latents})["images"])[: len(ids) - first])
    return np.concatenate(pictures)


def _noise(seed, rows, shape):
    """That of image i of a seed is a function of (seed, i) alone."""
    of = lambda row: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), 0)
    return np.stack([np.asarray(jax.random.normal(of(row), shape)) for row in rows])


def png(image):
    """The bytes of a PNG of uint8 [H, W, 3]."""
    height, width, _ = image.shape
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(image))
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="the PNG to write; of several pictures side by side")
    parser.add_argument("--ids", help="a JSON file of token ids and their mask, instead of the examples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", help="a .npy of x_T [B, h, w, C] instead of the seed's")
    arguments = parser.parse_args()
    said = json.loads(Path(arguments.ids).read_text()) if arguments.ids else {}
    noise = None if arguments.noise is None else np.load(arguments.noise, allow_pickle=False)
    images = draw(Path(__file__).resolve().parent, said.get("ids"), said.get("mask"), arguments.seed, noise)
    Path(arguments.out).write_bytes(png(np.concatenate(list(images), 1)))
    print(f"wrote {arguments.out}, {len(images)} pictures of {images.shape[2]} x {images.shape[1]}")


if __name__ == "__main__":
    main()
