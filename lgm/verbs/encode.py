"""What is made once and kept: `lgm encode`, the latents of a config's images and the states of their captions
(`train.encoding`), and `lgm pairs`, a teacher's noise and data (`train.teaching`)."""

import json

import numpy as np

from lgm import config as schema
from lgm import files, losses
from lgm.data import Bad, open_data
from lgm.models import family_of
from lgm.parsing import ConfigError
from lgm.systems.cached_text import SETS, has_encoders
from lgm.train import encoding
from lgm.train.feeding import long_captions, said
from lgm.train.opening import over_all_devices
from lgm.train.start import open_system
from lgm.train.teaching import draw_pairs, open_teacher

STORED = {"float32": np.float32, "float16": np.float16}
TOKENIZED = 1024  # captions at once, to see which are too long
STATE = {True: "complete and verified", False: "not complete yet"}


def run(arguments, overrides) -> int:
    """Encode the images of a config, and the captions and prompts where text encoders are frozen, into --out, shards of
    --rows each; run again to go on.

    --part=I/N encodes the I-th share of N, for processes side by side; the last to finish completes the cache. Raises
    ValueError, one line, for what cannot be encoded and for a folder that is a cache of something else.
    """
    index, parts = _share(arguments)
    config = schema.load(arguments.config, overrides)
    if family_of(config.model).role == "autoencoder":
        raise ConfigError("config.model.family='autoencoder' learns from pixels; `lgm encode` is for denoisers")
    if config.data.random_crop:
        raise ConfigError("config.data.random_crop=True does not go with lgm encode, which keeps each image cut in the "
                          "middle; set it to False")
    if config.data.tags is not None and config.text.folder is not None:
        raise ConfigError("config.data.tags does not go with lgm encode and config.text.folder: a cache has what "
                          "captions say as they are; leave it out")
    system, frozen, _ = open_system(config, over_all_devices())
    bad = Bad(config.data.bad_share)
    folder = files.place(arguments.out, "--out")
    images, heldout = open_data(config.data, bad)
    sets = {"train": images, "heldout": encoding.measured(config, heldout)}
    captions = {}
    if has_encoders(system.folder):
        captions = {"train": said(images, np.arange(len(images))), "heldout": sets["heldout"].captions,
                    "prompts": encoding.prompts(config)}
        different = sorted(set().union(*captions.values()))
        with long_captions(config, len(different)):  # before the images, which take long
            for start in range(0, len(different), TOKENIZED):
                system.tokenize(different[start : start + TOKENIZED])
    for name, some in sets.items():
        whole = encoding.encode(system, frozen, some, folder / name, bad, index, parts, arguments.rows,
                                STORED[arguments.dtype])
        print(f"{folder / name}: {len(some):,} images, {STATE[whole]}", flush=True)
    for name in SETS if captions else ():
        place = folder / "text" / name
        count, whole = encoding.encode_text(system, frozen, captions[name], place, index, parts, arguments.rows,
                                            arguments.text_dtype, nothing=name == "prompts")
        print(f"{place}: {count:,} different captions, {STATE[whole]}", flush=True)
    if bad.found:
        lines = "".join(json.dumps({"reason": reason}) + "\n" for _, reason in bad.found)
        files.write_atomically(folder / f"bad_records-{index}.jsonl", lines.encode())
        print(f"{len(bad.found)} bad records are left out; see {folder}/bad_records-{index}.jsonl")
    return 0


def pairs(arguments, overrides) -> int:
    """Draw the pairs that a config's teacher gives it into --out, shards of --rows each; run again to go on.

    --part is as `run` has it. Raises ValueError, one line, for a config that takes no pairs.
    """
    index, parts = _share(arguments)
    config = schema.load(arguments.config, overrides)
    if family_of(config.model).role == "autoencoder" or config.loss.record.teacher != "pairs":
        taking = " or ".join(name for name in losses.LOSSES if losses.loss(name).teacher == "pairs")
        raise ConfigError(f"--config={arguments.config} takes no pairs of a teacher; config.loss.name={taking} would")
    folder, layout = files.place(arguments.out, "--out"), over_all_devices()
    system, _, _ = open_system(config, layout)
    teacher = open_teacher(config, system, layout)
    images, _ = open_data(config.data, Bad(config.data.bad_share))
    whole = draw_pairs(config, teacher, images.captions, folder, arguments.rows, index, parts, STORED[arguments.dtype])
    print(f"{folder}: {config.loss.teacher.pairs:,} pairs, {STATE[whole]}", flush=True)
    return 0


def _share(arguments) -> tuple[int, int]:
    """(which, of how many) shares --part says; --rows is looked at too."""
    if arguments.rows < 1:
        raise ConfigError(f"--rows={arguments.rows} must be at least 1")
    text = arguments.part
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"--part={text} is no share; write I/N, as 0/4 to 3/4")
    return int(index), int(count)
