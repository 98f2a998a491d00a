"""From a diffusers folder to the config of a run that goes on from it."""

import pprint
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgm import config as schema
from lgm import files
from lgm.data import open_images
from lgm.files import write_atomically, write_json
from lgm.interop.components import open_checked
from lgm.interop.schedulers import write_schedule
from lgm.interop.tensor_files import open_weights
from lgm.models import family_of
from lgm.parsing import ConfigError, as_dict
from lgm.systems.folders import load_pipeline


def import_folder(folder: str, workdir: str, data: str | None = None, dtype: str | None = None) -> Path:
    """Make `workdir` a run that starts from a diffusers folder: config.json, and config.py to train it with, on the
    images of `data` (what config.data.source takes; by default the shipped ones), computed with in `dtype`, by default
    as `computes_in` says.

    The denoiser is what is trained; the folder's text encoders and autoencoder stay frozen, and are read from it.
    Returns the path of config.py. Raises ValueError, one line, for a folder that cannot be read or a run that is there.
    """
    run, source = files.place(workdir, "--workdir"), files.place(folder, "--from")
    source = str(source if files.is_remote(source) else source.resolve())
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ConfigError(f"--workdir={workdir} is there already; give the name of a new folder")
    files.check_writable(run, "--workdir")
    if data is not None:
        open_images(data)  # what is none shows now, not when it trains
        data = str(Path(data).resolve()) if Path(data).exists() else data
    values = config_of(source, run.name, data)
    values["model"]["dtype"] = dtype or computes_in(source)
    config = schema.from_dict(values)
    pipeline, _ = load_pipeline(source, only=())
    for place, model in pipeline.models.items():  # what is damaged shows now, not when it trains
        open_checked(files.local(source) / place, pipeline.classes[place], model)
    write_json(run / "config.json", schema.to_dict(config))
    path = run / "config.py"
    write_atomically(path, _page(values, folder, workdir).encode())
    return path


def computes_in(folder: str) -> str:
    """What a folder's denoiser is to compute in: "bfloat16" where most of its weights are of 16 bits or fewer, as its
    text encoders then do too; float16, which overflows in training, as well."""
    pipeline, _ = load_pipeline(folder, only=())
    place = pipeline.system.denoiser
    sizes = {2: 0, 4: 0}
    for entry in open_weights(files.local(folder) / place).entries.values():
        sizes[2 if entry.dtype.itemsize <= 2 else 4] += entry.nbytes // entry.dtype.itemsize
    return "bfloat16" if sizes[2] > sizes[4] else "float32"


def config_of(folder: str, name: str, images: str | None = None) -> dict[str, Any]:
    """A run's config, as plain values, that goes on from a diffusers folder at the size that it was trained at."""
    pipeline, _ = load_pipeline(folder, only=())
    autoencoder = pipeline.models["vae"].config
    model = pipeline.denoiser.config
    if pipeline.inpaints:
        seen = model.channels + pipeline.conditioning.beside
        raise ConfigError(f"--from={folder} holds a U-Net that inpaints (in_channels={seen}), "
                          "and no data set here has masks to train one with; `lgm sample` and `lgm export` take it")
    if pipeline.schedule.process["name"] == "edm":
        raise ConfigError(f"--from={folder} holds a network that is told log(sigma) / 4, as its scheduler says; "
                          "a run tells it 1000 t; `lgm sample` and `lgm export` take it")
    flow = pipeline.schedule.process["name"] == "rectified_flow"
    density = {"name": "logit_normal", "shift": pipeline.schedule.shift} if flow else {
        "name": "discrete", "steps": pipeline.schedule.process["steps"]}  # fmt: skip
    defaults, spec = pipeline.defaults, pipeline.conditioning
    data, text, variance = {"source": images}, {}, {"variance": 1.0} if spec.variance else {}
    if images is None:
        data = {"source": "emoji64", "where": {"split": "train"}, "heldout_where": {"split": "heldout"}}
    if spec.classes:  # the shipped images have classes of their own, a folder's are what its images are called
        field = "subcategory" if images is None else "text"
        data |= {"caption": field} if images is None else {}
        text["classes"] = sorted({str(row.get(field, "")) for row in open_images(data["source"]).rows})[: spec.classes]
    return {
        "name": name,
        "batch_size": 8,
        "total_images": 8_000,
        "init_from": folder,
        "autoencoder": folder,
        "data": {**data, "resolution": pipeline.sample_size * autoencoder.factor},
        "text": {"folder": folder, "caption_dropout": 0.1 if pipeline.extrapolates else 0.0, **text},
        "model": {"family": family_of(model).name, **as_dict(model)},
        "process": dict(pipeline.schedule.process),
        "loss": {"target": pipeline.schedule.target, "density": density, **variance},
        "optimizer": {"lr": 1e-5, "warmup_images": 800, "schedule": "constant", "weight_decay": 0.01},
        "ema": {"half_life_images": 2_000},
        "sampling": {
            "solver": pipeline.schedule.solver,
            "steps": defaults.steps,
            "guidance": defaults.guidance,
            "rule": defaults.rule,
            "schedule": write_schedule(pipeline.schedule),
            "count": 4,
            "every_images": 800,
        },
        "evaluation": {"batch_size": 8, "max_images": 64},
    }


def _page(values: Mapping[str, Any], folder: str, workdir: str) -> str:
    """A config file that says `values`."""
    body = pprint.pformat(dict(values), width=110, sort_dicts=False).replace("\n", "\n    ")
    return f'''"""Fine-tuning of {folder}.

    lgm train --config={workdir}/config.py --workdir={workdir}

or only low-rank changes to it, which `lgm export` writes as a LoRA:

    lgm train --config={workdir}/config.py --workdir={workdir} --config.lora.rank=16 --config.optimizer.lr=1e-4
"""

from ml_collections import ConfigDict


def get_config():
    values = {body}
    return ConfigDict(values)
'''
