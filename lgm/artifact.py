"""A sampler and a decoder as StableHLO programs, lowered for CPU, CUDA and TPU together, that jax alone runs.

The folder holds sampler.stablehlo and decoder.stablehlo (portable bytecode), weights.safetensors, manifest.json with
what they take and give, and run.py, which needs jax and no more (`artifact_runner`). Text encoders are within the
sampler, which is told token ids; tokenizers are not.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from lgm import artifact_runner, sampling
from lgm.casting import cast
from lgm.drawing import folder_sampler, solve_as_one
from lgm.files import write_json
from lgm.interop.keymap import flatten, unflatten
from lgm.interop.tensor_files import save
from lgm.models import Params
from lgm.parallel import make_layout, using
from lgm.parsing import ConfigError
from lgm.registry import section
from lgm.sampler import Sampler
from lgm.system import System
from lgm.systems.release import Pipeline, latent_size
from lgm.systems.text import text_of

PLATFORMS = ("cpu", "cuda", "tpu")
MOST = 3  # captions that serve as examples
HOW_TO_RUN = """```sh
python run.py --out=x.png --seed=0            # the captions that manifest.json has as examples
python run.py --out=x.png --ids=ids.json      # {"ids": [[...]], "mask": [[...]]}, one row a picture
```

`run.py` needs jax alone and runs on CPU, GPU or TPU; captions are token ids, for no tokenizer is here. Both programs
are portable StableHLO, which other compilers read, too."""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How a program draws: `steps` and `guidance` in place of the run's or the system's, images of `size` (height,
    width) of a folder's system, `count` at a time (1)."""

    steps: int | None = None
    guidance: float | None = None
    count: int | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self):
        for name in ("steps", "count"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"--{name}={value} must be at least 1")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ConfigError(f"--guidance={self.guidance} is no finite number")

    @property
    def given(self) -> str | None:
        """The first of them that is given."""
        return next((name for name, value in vars(self).items() if value is not None), None)


@dataclasses.dataclass(frozen=True)
class Program:
    """What draws: `sample(params, given)` makes latents [B, h, w, C] of given["noise"] and the rest that `inputs` has,
    `decode(params, latents)` uint8 images. `parts` are those of the parameters that each needs. `examples` are (ids,
    mask) of some captions, `nothing` those of none."""

    about: str
    task: str
    params: Params
    parts: Mapping[str, Sequence[str]]
    sample: Callable[[Params, Mapping[str, jax.Array]], jax.Array]
    decode: Callable[[Params, jax.Array], jax.Array]
    shape: tuple[int, ...]  # of the noise
    captions: Sequence[str]
    examples: tuple[np.ndarray, np.ndarray]
    nothing: tuple[np.ndarray, np.ndarray]

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What the sampler is given besides the parameters; `rows` are the images' numbers among the seed's."""
        count, length = self.shape[0], len(self.nothing[0])
        of = jax.ShapeDtypeStruct
        words = {"ids": of((count, length), jnp.int32), "mask": of((count, len(self.nothing[1])), bool)}
        return {"noise": of(self.shape, jnp.float32), "rows": of((count,), jnp.int32), "seed": of((), jnp.int32),
                **words, **{f"no_{name}": spec for name, spec in words.items()}}  # fmt: skip


def program_of_run(system: System, params: Params, drawing: Drawing) -> Program:
    """The program that draws as `lgm sample --workdir` does. `params` are all of a run's, frozen or trained."""
    options = system.config.sampling
    if drawing.size is not None:
        raise ConfigError("--size goes with --from=DIFFUSERS_DIR; a run draws at its config.data.resolution")
    given = {name: value for name in ("steps", "guidance") if (value := getattr(drawing, name)) is not None}
    options = dataclasses.replace(options, **given)
    system = dataclasses.replace(system, layout=_layout())
    sampler = system.sampler(options)

    def sample(params: Params, given: Mapping[str, jax.Array]) -> jax.Array:
        cond = system.condition(params, given["ids"], given["mask"])
        none = system.condition(params, given["no_ids"], given["no_mask"])
        if system.conditioning.guidance:
            cond = dataclasses.replace(cond, guidance=jnp.full(len(given["ids"]), float(options.guidance)))
        return _drawn(system, sampler, (params, (cond, none)), given)

    captions = list(options.prompts[:MOST])
    if options.negative:
        nothing = tuple(np.asarray(part)[0] for part in system.tokenize([options.negative]))
    else:
        nothing = tuple(np.asarray(part)[0] for part in system.unconditional(1))
    # without prompts nothing in particular is drawn at first
    ids, mask = map(np.asarray, system.tokenize(captions)) if captions else (part[None] for part in nothing)
    parts = {"sampler": [name for name in ("denoiser", "text") if name in params], "decoder": ["autoencoder"]}
    about = f"{system.config.name}: a {system.config.family} with the solver {options.solver}, {options.steps} steps, "
    about += f"guidance {options.guidance:g}, {' x '.join(map(str, system.config.data.size))} pixels"
    task = "text-to-image" if system.text or system.folder and not system.conditioning.classes else (
        "unconditional-image-generation")  # fmt: skip
    shape = (drawing.count or 1, *system.latent_shape())
    return Program(f"{about}, as StableHLO programs.", task, params, parts, sample, system.decode, shape,
                   captions or [""], (ids, mask), nothing)  # fmt: skip


def program_of_folder(pipeline: Pipeline, params: Mapping[str, Params], drawing: Drawing) -> Program:
    """The program that draws as `lgm sample --from` does with a folder of diffusers."""
    if pipeline.inpaints:
        raise ConfigError("--form=stablehlo draws from noise alone; this folder's U-Net draws what a mask covers")
    defaults, factor = pipeline.defaults, pipeline.models["vae"].config.factor
    steps = drawing.steps or defaults.steps
    guidance = defaults.guidance if drawing.guidance is None else drawing.guidance
    size = drawing.size or (pipeline.sample_size * factor,) * 2
    rows, columns = latent_size(pipeline, size)
    text = text_of(pipeline, size)
    scale = float(guidance) if pipeline.extrapolates else 1.0
    rule = sampling.rule(scale=scale, **section(defaults.rule, "rule")) if scale > 1.0 else None
    sampler = folder_sampler(pipeline, rows * columns, steps, rule)

    def sample(params: Params, given: Mapping[str, jax.Array]) -> jax.Array:
        cond = text.condition(params, given["ids"], given["mask"])
        none = text.condition(params, given["no_ids"], given["no_mask"])
        if pipeline.conditioning.guidance:
            cond = dataclasses.replace(cond, guidance=jnp.full(len(given["ids"]), guidance, jnp.float32))
        return _drawn(pipeline, sampler, (params, (cond, none)), given)

    def decode(params: Params, latents: jax.Array) -> jax.Array:
        images = pipeline.decode(params, latents)
        return jnp.round(jnp.clip(images, 0.0, 1.0) * 255.0).astype(jnp.uint8)

    nothing = tuple(np.asarray(part) for part in text.unconditional)
    places = [pipeline.system.denoiser, *text.lengths] if pipeline.tokenizers else [pipeline.system.denoiser]
    about = f"A {pipeline.name} with {steps} steps, guidance {guidance:g}, {size[0]} x {size[1]} pixels, as StableHLO "
    task = "text-to-image" if pipeline.tokenizers else "unconditional-image-generation"
    captions = ["a red fox in the snow"] if pipeline.tokenizers else ["class 0"]
    shape = (drawing.count or 1, rows, columns, pipeline.models["vae"].config.latent_channels)
    return Program(f"{about}programs.", task, params, {"sampler": places, "decoder": ["vae"]}, sample, decode, shape,
                   captions, text.encode(captions), nothing)  # fmt: skip


def _drawn(source: System | Pipeline, sampler: Sampler, arguments: Any, given: Mapping[str, jax.Array]) -> jax.Array:
    keys = sampling.keys(given["seed"], given["rows"])
    return solve_as_one(source, sampler, arguments, given["noise"], keys)


@functools.cache
def _layout():
    """One device, and attention in operations that every platform has."""
    return make_layout({}, jax.local_devices()[:1], attention="xla")


def save_program(folder: Path, program: Program, dtype: Any = None) -> None:
    """Write a program's folder, but for its card; weights cast to `dtype` where given. Raises ValueError, one line, for
    weights that are not finite in it."""
    params = jax.tree.map(np.asarray, {name: program.params[name] for part in program.parts.values() for name in part})
    leaves = {name: cast(name, leaf, dtype) for name, leaf in flatten(params).items()}
    latents = jax.ShapeDtypeStruct(program.shape, jnp.float32)
    programs = {"sampler": (lambda params, given: {"latents": program.sample(params, given)}, program.inputs),
                "decoder": (lambda params, given: {"images": program.decode(params, given["latents"])},
                            {"latents": latents})}  # fmt: skip
    said = {}
    for name, (function, inputs) in programs.items():
        own = {part: params[part] for part in program.parts[name]}
        said[name] = _lowered(folder, name, function, own, {key: leaves[key] for key in flatten(own)}, inputs)
    save(leaves.items(), folder, "weights", float("inf"))
    row = lambda part: np.asarray(part).tolist()
    ids, mask = program.examples
    write_json(folder / "manifest.json", {
        "format": 1, "about": program.about, "programs": said,
        "examples": {"captions": list(program.captions), "ids": row(ids), "mask": row(mask)},
        "no_caption": {"ids": row(program.nothing[0]), "mask": row(program.nothing[1])},
    })  # fmt: skip
    (folder / "run.py").write_text(Path(artifact_runner.__file__).read_text(encoding="utf-8"), encoding="utf-8")


def _lowered(folder: Path, name: str, function: Callable, like: Params, leaves: Mapping[str, np.ndarray],
             inputs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:  # fmt: skip
    """Write one program, of (weights by name, inputs by name), and say how it is called."""
    of = lambda table: {key: [list(leaf.shape), np.dtype(leaf.dtype).name] for key, leaf in table.items()}

    def by_name(weights: Mapping[str, jax.Array], given: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        with using(_layout()):
            return function(unflatten(like, dict(weights)), given)

    specs = {key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for key, leaf in leaves.items()}
    exported = jax.export.export(jax.jit(by_name), platforms=PLATFORMS)(specs, dict(inputs))
    (folder / f"{name}.stablehlo").write_bytes(exported.mlir_module_serialized)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return {"file": f"{name}.stablehlo", "platforms": list(exported.platforms),
            "kept": list(exported.module_kept_var_idx), "calling_convention": exported.calling_convention_version,
            "platform_index": bool(exported.uses_global_constants), "weights": of(leaves), "inputs": of(inputs),
            "outputs": of(outputs)}  # fmt: skip
