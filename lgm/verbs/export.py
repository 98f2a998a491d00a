"""`lgm export` and `lgm import`: from runs and folders to folders, and from folders to runs."""

import functools

from lgm import config as schema
from lgm.artifact import Drawing
from lgm.data import open_data
from lgm.exporting import WHOLE, Origin, Wanted, check_new, export_autoencoder, export_folder, export_run
from lgm.files import place, write_atomically
from lgm.importing import import_folder
from lgm.interop.diffusers_configs import write_autoencoder
from lgm.interop.lora_files import lora_of
from lgm.model_card import CARD, Stated, card, run_sections
from lgm.models import build, family_of
from lgm.parallel import on_first
from lgm.parsing import ConfigError
from lgm.pictures import read_size
from lgm.train.autoencode import reconstruct_all
from lgm.train.opening import open_run, over_all_devices
from lgm.train.restoring import restore_weights
from lgm.verbs.shared import finished, first
from lgm.weights import save_autoencoder, standardized


def run(arguments, overrides) -> int:
    size = None if arguments.size is None else read_size(arguments.size)
    wanted = Wanted(arguments.form, arguments.dtype, Stated(arguments.license, arguments.base_model),
                    Drawing(arguments.steps, arguments.guidance, arguments.count, size))
    if arguments.folder is None:
        for name in ("single_file", "lora"):
            if getattr(arguments, name):
                raise ConfigError(f"--{name.replace('_', '-')} goes with --from=DIFFUSERS_DIR, not with --workdir")
        return export(arguments.workdir, arguments.out, arguments.weights or "ema", wanted)
    if arguments.weights:
        raise ConfigError("--weights goes with --workdir=DIR; a diffusers folder has one set of weights")
    if first():
        print(export_folder(arguments.folder, arguments.out, loras=[lora_of(text) for text in arguments.lora or []],
                            single_file=arguments.single_file or [], wanted=wanted))
    return finished()


def export(workdir: str, out: str, weights: str, wanted: Wanted) -> int:
    """Write a run, a denoiser's or an autoencoder's, in the form that is wanted; say in one line what was written."""
    if family_of(schema.read(workdir).model).role == "autoencoder":
        for flag, word in (("dtype", wanted.dtype), ("form", wanted.form)):
            if word is not None:
                raise ConfigError(f"--{flag}={word} goes with a denoiser's run")
        line = _export_autoencoder(workdir, out, weights, wanted)
    else:
        check_new(out)
        config, system, frozen, trained, step = open_run(workdir, weights)
        needed = frozen if wanted.form in WHOLE else {"autoencoder": frozen["autoencoder"]}
        trained, needed = on_first((trained, needed))
        origin = Origin(workdir, step * config.batch_size, weights)
        line = export_run(system, trained, needed, out, wanted, origin) if first() else ""
    if line:
        print(line)
    return finished()


def _export_autoencoder(workdir: str, out: str, weights: str, wanted: Wanted) -> str:
    """Write an autoencoder with its latents' statistics: diffusers' AutoencoderKL where it is one, else our own."""
    config = schema.read(workdir)
    if place(out, "--out").exists() and not place(out).is_dir():
        raise ConfigError(f"--out={out} is a file; give a folder")
    model, layout = build(config.model), over_all_devices()
    params, _ = restore_weights(workdir, {"autoencoder": model.abstract()}, weights, layout.whole)
    images, _ = open_data(config.data)
    _, latents = reconstruct_all(config, model, params, images)
    params = on_first(params)
    if not first():
        return ""
    text = functools.partial(card, config.name, "An autoencoder of images, to train denoisers of its latents.",
                             "`config.autoencoder=\"path/of/this/folder\"` of a denoiser's run.", wanted.stated,
                             tags=["autoencoder"], sections=run_sections(config, workdir, 0, weights))  # fmt: skip
    try:
        write_autoencoder(config.model)
    except ValueError as error:
        save_autoencoder(out, standardized(config.model, latents), params["autoencoder"], "float32")
        write_atomically(place(out, "--out") / CARD, text(library="lgm").encode())
        return f"wrote {out}, for config.autoencoder; no folder of diffusers: {error}"
    return export_autoencoder(out, config.model, params["autoencoder"], latents, text(library="diffusers"))


def import_(arguments, overrides) -> int:
    path = import_folder(arguments.folder, arguments.workdir, arguments.data, arguments.dtype)
    print(f"wrote {path}; train it with `lgm train --config={path} --workdir={arguments.workdir}`")
    return 0
