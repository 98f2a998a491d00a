"""A pod's run in small: the same path through the code in a minute on any machine, before the pod is paid for.

What a config says of how things are done stays: process, loss, precision, remat, attention, which mesh axes split what,
how text is read, when latents are made, every kind of evaluation and picture, the optimizer and its schedule. What it
says of how much becomes as small as that path allows.
"""

import json
from typing import Any

from lgm import config as schema
from lgm.config import Config
from lgm.models import family_of
from lgm.parsing import ConfigError

STEPS = 3
HOW = ("dtype", "remat", "group", "unroll", "qk_norm", "jump")  # how a model computes, whatever its size
LARGE = ("init_from", "autoencoder", "text")  # where a config may name a folder of a released system
IMAGES = {"where": {"subcategory": "face-hat"}, "heldout_where": {"subcategory": "face-glasses"}}  # 12 and 4 of emoji64


def rehearsal(config: Config, devices: int = 1, folder: str | None = None) -> Config:
    """`config` in small, for `devices`: three steps with a checkpoint, held-out figures and pictures.

    `folder`, a tiny diffusers folder of the same system, stands in for whatever folder the config names. Images are a
    few of emoji64's. `lgm train` reads its `lgm.config.to_dict` as a JSON file. Raises ConfigError, one line, where the
    config names a folder and none is given.
    """
    values = json.loads(json.dumps(schema.to_dict(config)))
    model, text = values["model"], values.get("text") or {}
    named = [key for key in LARGE if _names_a_folder(values.get(key))]
    if named and folder is None:
        raise ConfigError(f"config.{named[0]} names a folder; give the rehearsal a tiny one of the same system")
    values["data"] |= {"source": "emoji64", "caption": "text", **IMAGES}
    if named:
        from lgm.importing import config_of

        theirs = config_of(folder, config.name)
        values["model"] = theirs["model"] | {key: model[key] for key in HOW if key in model and key in theirs["model"]}
        values["data"]["resolution"] = theirs["data"]["resolution"]
        for key in named:
            values[key] = text | {"folder": folder} if key == "text" else folder
    else:
        values["model"] |= family_of(config.model).small(config.model)
        if text.get("encoder"):
            text["encoder"] |= {"width": 32, "depth": 1, "heads": 2}
            values["model"] |= {key: 32 for key in ("text_dim", "pooled_dim") if model.get(key)}
    if values["data"]["crop"]:
        side = values["data"]["resolution"]
        values["data"]["crop"] = (side if isinstance(side, int) else min(side)) // 2
    if values["optimizer"].get("mup_base"):  # a base of the same size: every factor is 1, and is looked up all the same
        values["optimizer"]["mup_base"] = {key: values["model"][key] for key in values["optimizer"]["mup_base"]}
    values["mesh"] = _mesh(values["mesh"], devices)
    values["accumulate"] = min(config.accumulate, 2)
    size = 2 * devices * values["accumulate"]
    values |= {"batch_size": size, "total_images": STEPS * size}
    values["log"] |= {"every_images": size, "checkpoint_every_images": 2 * size}
    values["optimizer"] |= {key: min(values["optimizer"][key], size) for key in ("warmup_images", "decay_images")}
    few = lambda section, **most: {key: min(section[key], count) for key, count in most.items()}
    evaluation, drawn = values["evaluation"], values["sampling"]
    evaluation |= few(evaluation, times=2, noises=1, batch_size=4, max_images=4, levels=2, distance=3)
    evaluation["every_images"] = size if evaluation["every_images"] else 0
    drawn |= few(drawn, steps=2, count=2) | {"every_images": 2 * size if drawn["every_images"] else 0}
    return schema.from_dict(values)


def _names_a_folder(value: Any) -> bool:
    """Whether a section or value of a config names a folder that is no part of the package."""
    if isinstance(value, dict):
        return bool(value.get("folder"))
    return isinstance(value, str) and value != Config.autoencoder


def _mesh(mesh: dict[str, Any], devices: int) -> dict[str, Any]:
    """Every axis that splits something splits it in two, as far as there are devices."""
    from lgm.parallel import AXES

    small, left = {axis: 1 for axis in AXES}, devices
    for axis in sorted(AXES, key=lambda axis: axis == "data"):  # data last: it takes what is left
        if mesh[axis] != 1 and left > 1 and left % 2 == 0:
            small[axis], left = 2, left // 2
    free = "data" if mesh["data"] != 1 else next((axis for axis in AXES if small[axis] > 1), "data")
    small[free] *= left
    return mesh | small | {"dcn": {}}
