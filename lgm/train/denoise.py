"""The main task: a denoiser and its text encoder learn latents of captioned images under one process and loss."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lgm import losses
from lgm.config import Config
from lgm.data import Bad, ImageSet, Quarantine, batches, open_data, save_grid
from lgm.data.grid import same_size
from lgm.drawing import draw
from lgm.evaluate.drawn import check_enough, image_distances
from lgm.evaluate.heldout import heldout_loss
from lgm.evaluate.snr_grid import check_range, snr_errors
from lgm.models import Params
from lgm.parallel import Layout, batch_part
from lgm.system import System, read_autoencoder
from lgm.train import encoding, feeding
from lgm.train.loop import Task
from lgm.train.placing import check_latents
from lgm.train.start import open_system
from lgm.train.teaching import Teacher, open_teacher, pairs
from lgm.train.work import training_flops

CHECKED = 4096  # captions that are tokenized before anything is done


def make_task(config: Config, layout: Layout, workdir: Path) -> Task:
    """Everything the loop needs to train `config`'s denoiser; what a teacher draws for it is kept in `workdir`."""
    from_cache = config.data.cache is not None
    system, frozen, start = open_system(config, layout, from_cache)
    check_latents(config, layout, *system.latent_shape()[:2])
    if config.evaluation.levels:
        check_range(system)
    bad = Bad(config.data.bad_share)
    images, heldout = open_data(config.data, bad)
    record, teacher = losses.loss(config.loss.name), open_teacher(config, system, layout)
    in_memory = config.data.latents == "memory" and record.teacher != "pairs"  # which are of captions alone
    heldout, kept, kept_heldout = encoding.measured(config, heldout), None, None
    if from_cache:
        images, buckets, kept = encoding.cached(config, images, "train")
        heldout, _, kept_heldout = encoding.cached(config, heldout, "heldout")
    else:
        images = images.whole(bad) if in_memory else images
        buckets = feeding.buckets_of(config, images)
        heldout = heldout.whole(bad)
    check_enough(system, heldout)
    feeding.tell_overlap(config, images, heldout, workdir)
    if not from_cache and (in_memory or buckets is not None):  # whose headers are read in any case
        feeding.tell_crops(config, images, buckets, workdir)
    size = lambda index: None if buckets is None else buckets.size(index)
    image = lambda index, serving: images.image(index, size(index), feeding.view_of(config, serving))
    if record.teacher == "pairs":
        drawn, arrays = pairs(config, teacher, images.captions, workdir)
        captions_of, length = lambda places, servings: [drawn[place] for place in places], len(drawn)
        said = drawn
        in_memory = True
    else:
        captions_of, length = feeding.captions_of(config, images.rows), len(images)
        said = feeding.said(images, np.linspace(0, length - 1, min(length, CHECKED)).astype(int))
        arrays = {}
        if in_memory and not from_cache:
            kept = feeding.latents(system, frozen, images, buckets)
    if config.loss.asks:
        frozen = frozen | {"teacher": teacher.params}
    derived = feeding.conditioning(system, captions_of, feeding.told_sizes(system, images, buckets))
    if kept is not None and not arrays:
        told, latents = derived, feeding.served(config, kept)
        derived = lambda indices, servings: told(indices, servings) | latents(indices, servings)
    with feeding.long_captions(config, len(said)):
        system.tokenize(said)  # what no tokenizer takes, and no cache has, is refused at once
    part, parts = batch_part(layout)
    quarantine = Quarantine(workdir / "bad_records.jsonl", bad, length, part, parts)
    iterator = batches(arrays, image=None if in_memory else image, derived=derived, serving=True, bad=quarantine,
                       groups=None if buckets is None else buckets.groups, length=length, threads=images.threads,
                       parts=images.parts, weights=config.data.weights,
                       batch_size=config.batch_size, seed=config.seed, process_index=part, process_count=parts)
    test = feeding.heldout_parts(system, frozen, heldout, kept_heldout and kept_heldout["latent"])
    rows = pictured(config, heldout, images)
    if from_cache:
        system.tokenize([*rows.captions, *encoding.prompts(config)])
    whole = lambda params: system.whole(params, frozen)
    # a run from a cache has no autoencoder but while it draws
    drawing = lambda: frozen | (read_autoencoder(config, layout) if from_cache else {})
    return Task(
        init=system.init,
        logical_axes=system.logical_axes(),
        loss=make_loss(config, system, teacher if config.loss.asks else None),
        frozen=frozen,
        batches=iterator,
        flops=training_flops(system, frozen),
        executed_flops=training_flops(system, frozen, executed=True),
        heldout=lambda params: heldout_figures(system, whole(params), drawing, test),
        pictures=lambda params, path: picture(system, whole(params), drawing(), rows, path),
        start=start,
        draw=make_draw(config, system),
    )


def heldout_figures(system: System, params, drawing: Callable[[], Params],
                    parts: list[feeding.Part]) -> dict[str, float]:
    """All that weights are measured by, on held-out images: means over those of all buckets. `drawing()` is what is
    frozen, of which pictures are drawn where their distances are asked for."""
    totals: dict[str, float] = {}
    counts: dict[str, int] = {}
    for part in parts:
        of = part.images.parts
        figures = heldout_loss(system, params, *part.arrays, of=of) | snr_errors(system, params, *part.arrays)
        own = {} if of is None else {f"heldout_loss_{source.name}": int((of == number).sum())
                                     for number, source in enumerate(system.config.data.source)}
        for name, value in figures.items():
            count = own.get(name, len(part.images))
            totals[name] = totals.get(name, 0.0) + value * count
            counts[name] = counts.get(name, 0) + count
    totals = {name: value / counts[name] for name, value in totals.items()}
    if len(parts) > 1 or not system.config.evaluation.distance:
        return totals
    return totals | image_distances(system, params, drawing(), parts[0].images)


def make_draw(config: Config, system: System):
    """What a batch's loss draws from the step's key: times and noise, and whose caption is dropped."""
    objective = system.objective
    dropout = config.text.caption_dropout if config.text else 0.0

    sampled = config.data.posterior == "sample"
    paced = "progress" in inspect.signature(objective.draw).parameters

    def draw(batch, key, progress=1.0):
        drop_key, key = jax.random.split(key)
        size = len(batch["tokens"])
        shape = batch["latent"].shape if "latent" in batch else (size, *system.latent_shape(batch["image"].shape[1:3]))
        drawn = objective.draw(key, shape, *([progress] if paced else []))._asdict()
        if "noise" in batch:  # of the teacher's pairs
            drawn["eps"] = batch["noise"]
        if sampled:
            drawn["posterior"] = jax.random.normal(jax.random.fold_in(drop_key, 1), shape)
        return drawn | ({"drop": jax.random.bernoulli(drop_key, dropout, (size, 1))} if dropout else {})

    return draw


def make_loss(config: Config, system: System, teacher: Teacher | None = None):
    """The loss of a batch {"latent" or "image", "tokens", "mask"} with all that was drawn for it."""
    objective = system.objective
    method = "with_variance" if config.loss.variance else "__call__"
    names = jax.eval_shape(lambda: objective.draw(jax.random.key(0), (8, *system.latent_shape())))._fields
    record = losses.loss(config.loss.name)
    wanted = record.extra(objective)

    def predictor(params):
        if record.jump:
            return lambda x_t, t, s, cond: system.denoise(params, x_t, t, dataclasses.replace(cond, jump=t - s))
        return lambda x_t, t, cond: system.denoise(params, x_t, t, cond, method)

    def loss(trained, frozen, batch, key):
        params = system.whole(trained, frozen)
        x, logvar = (batch["latent"], batch.get("log_variance")) if "latent" in batch else (
            system.posterior(frozen, batch["image"]))
        x = x + jnp.exp(0.5 * logvar) * batch["posterior"] if "posterior" in batch else x
        tokens, mask = batch["tokens"], batch["mask"]
        if "drop" in batch:
            none, none_mask = system.unconditional(len(tokens))
            tokens, mask = jnp.where(batch["drop"], none, tokens), jnp.where(batch["drop"], none_mask, mask)
        micro = batch.get("micro")
        nothing = system.unconditional(len(tokens))
        conditions = lambda params: (system.condition(params, tokens, mask, micro),
                                     system.condition(params, *nothing, micro) if "uncond" in wanted else None)
        cond, uncond = conditions(params)
        extra = {"uncond": uncond} if "uncond" in wanted else {}
        if "dropped" in wanted and "drop" in batch:
            extra["dropped"] = batch["drop"][:, 0]
        if "averaged" in wanted:
            averaged = system.whole(frozen["averaged"], frozen)
            extra["averaged"] = predictor(averaged), *conditions(averaged)
        if "teacher" in frozen:
            scale = config.loss.teacher.guidance
            extra["teacher"] = (teacher.predictor(frozen["teacher"], tokens, mask) if scale == 1.0 else
                                teacher.guided(frozen["teacher"], tokens, mask, scale))
        if "unguided" in wanted:
            extra["unguided"] = teacher.predictor(frozen["teacher"], *nothing)
        return objective.given(predictor(params), x, cond, *(batch[name] for name in names), **extra)

    return loss


@dataclasses.dataclass(frozen=True)
class Pictured:
    """Captions to draw, each at a size (height, width), and the real images they belong to, where there are any."""

    captions: list[str]
    sizes: list[tuple[int, int]]
    real: list[np.ndarray] | None


def pictured(config: Config, heldout: ImageSet, images: ImageSet) -> Pictured:
    """What sample pictures show: the config's prompts, else held-out and training captions at their images' sizes."""
    whole = config.data.size
    if config.sampling.prompts or not config.sampling.count:
        prompts = list(config.sampling.prompts)
        return Pictured(prompts, [whole] * len(prompts), None)
    held = [(heldout, i) for i in range(len(heldout))]
    spread = np.linspace(0, len(images) - 1, config.sampling.count).astype(int)
    chosen = (held[: config.sampling.count // 2] + [(images, int(i)) for i in spread])[: config.sampling.count]
    captions, sizes, real = [], [], []
    for s, i in chosen:
        one = s.take([i])
        buckets = feeding.buckets_of(config, one)
        size = whole if buckets is None else buckets.size(0)
        try:
            real.append(one.image(0, size))
        except ValueError:  # a bad record, which training finds too
            continue
        captions += one.captions
        sizes.append(size)
    return Pictured(captions, sizes, real)


def picture(system: System, params, frozen, rows: Pictured, path: Path | None) -> np.ndarray:
    """Draw `rows` under the config's sampling settings and save them beside the real images."""
    drawn: list[np.ndarray] = [None] * len(rows.captions)
    whole = system.config.data.size
    for size in sorted(set(rows.sizes)):
        places = [place for place, other in enumerate(rows.sizes) if other == size]
        found = draw(system, params, frozen, [rows.captions[place] for place in places], seed=system.config.seed,
                     size=None if size == whole and not system.config.data.buckets else size)
        for place, image in zip(places, found, strict=True):
            drawn[place] = image
    beside = None if rows.real is None else same_size(rows.real)
    return save_grid(path, same_size(drawn), rows.captions, **({} if beside is None else {"beside": beside}))
