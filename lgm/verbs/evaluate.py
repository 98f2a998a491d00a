"""`lgm evaluate`: what a run's weights are measured by, as JSON."""

import dataclasses

from lgm.data import Bad, open_heldout
from lgm.evaluate.drawn import check_enough
from lgm.evaluate.likelihood import likelihood as log_likelihood
from lgm.files import write_json
from lgm.parsing import ConfigError
from lgm.train.denoise import heldout_figures
from lgm.train.feeding import heldout_parts
from lgm.train.opening import load_run
from lgm.verbs.shared import finished, first


def run(arguments, overrides) -> int:
    """Held-out figures of a run's weights; --distance takes the place of `config.evaluation.distance`, and
    --likelihood is how many steps the ODE whose density is stated is solved in."""
    distance, likelihood, out = arguments.distance, arguments.likelihood, arguments.out
    if distance is not None and distance < 3:
        raise ConfigError(f"--distance={distance} must be at least 3 images")
    if likelihood is not None and likelihood < 1:
        raise ConfigError(f"--likelihood={likelihood} must be at least 1 step")
    system, params, frozen, images_seen = load_run(arguments.workdir, arguments.weights)
    data, options = system.config.data, system.config.evaluation
    if distance is not None:
        options = dataclasses.replace(options, distance=distance)
        system = dataclasses.replace(system, config=dataclasses.replace(system.config, evaluation=options))
    for flag, value in (("distance", distance), ("likelihood", likelihood)):
        if value is not None and data.buckets:
            raise ConfigError(f"--{flag}={value} is of images of one size, and this run has config.data.buckets="
                              f"{data.buckets}; leave it out")
    bad = Bad(data.bad_share)
    images = open_heldout(data, bad)
    images = images.take(range(min(len(images), options.max_images))).whole(bad)
    check_enough(system, images)
    parts = heldout_parts(system, frozen, images)
    values = heldout_figures(system, params, lambda: frozen, parts)
    if likelihood:
        values |= log_likelihood(system, params, *parts[0].arrays, likelihood)
    if not first():
        return finished()
    result = {"images_seen": images_seen, "weights": arguments.weights, "heldout_images": len(images), **values}
    write_json(out, result)
    drawn = f", kernel distance {values['kernel_distance']:.4g} +- {values['kernel_distance_error']:.2g}" if \
        "kernel_distance" in values else ""
    print(f"held-out loss {values['heldout_loss']:.4f} over {len(images)} images{drawn}; see {out}")
    return finished()
