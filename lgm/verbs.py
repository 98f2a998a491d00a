"""What each verb of the command line does with its parsed words; heavy modules are imported when one runs."""

from __future__ import annotations

from lgm.parsing import ConfigError


def train(arguments, overrides) -> int:
    from lgm.train import main

    return main.train(arguments.config, arguments.workdir, overrides, arguments.extend)


def sample(arguments, overrides) -> int:
    given = lambda *names: {name: value for name in names if (value := getattr(arguments, name)) is not None}
    common = given("seed", "count", "steps", "guidance", "solver", "schedule", "rule", "negative", "image", "strength",
                   "mask")
    if arguments.interval is not None:
        common["interval"] = _numbers("--interval", arguments.interval, "0.1,0.8")
    released = given("size", "lora", "single_file", "dtype", "noise", "true_guidance", "skip_layers", "tile")
    if arguments.folder is None:
        if released:
            raise ConfigError(f"--{min(released).replace('_', '-')} goes with --from=DIFFUSERS_DIR, not with --workdir")
        from lgm.train import main

        return main.sample(arguments.workdir, arguments.prompt, arguments.out, **common,
                           weights=arguments.weights or "ema")
    if arguments.weights:
        raise ConfigError("--weights goes with --workdir=DIR; a diffusers folder has one set of weights")
    from lgm import exporting
    from lgm.train import main

    if exporting.is_exported(arguments.folder):
        if released:
            raise ConfigError(f"--{min(released).replace('_', '-')} goes with a diffusers folder, which "
                              f"--from={arguments.folder} is not")
        return main.sample_exported(arguments.folder, arguments.prompt, arguments.out, **common)
    return main.sample_released(arguments.folder, arguments.prompt, arguments.out, **common, **released)


def evaluate(arguments, overrides) -> int:
    from lgm.train import main

    return main.evaluate(arguments.workdir, arguments.out, weights=arguments.weights, distance=arguments.distance,
                         likelihood=arguments.likelihood)


def export(arguments, overrides) -> int:
    from lgm.train import main

    if arguments.folder is None:
        for name in ("single_file", "lora"):
            if getattr(arguments, name):
                raise ConfigError(f"--{name.replace('_', '-')} goes with --from=DIFFUSERS_DIR, not with --workdir")
        return main.export(arguments.workdir, arguments.out, weights=arguments.weights or "ema", dtype=arguments.dtype,
                           form=arguments.lora_form)
    if arguments.lora_form:
        raise ConfigError("--lora-form goes with the --workdir=DIR of a LoRA's run")
    if arguments.weights:
        raise ConfigError("--weights goes with --workdir=DIR; a diffusers folder has one set of weights")
    return main.export_released(arguments.folder, arguments.out, arguments.lora or [],
                                single_file=arguments.single_file or [], dtype=arguments.dtype)


def import_(arguments, overrides) -> int:
    from lgm.train import main

    return main.import_(arguments.folder, arguments.workdir)


def plan(arguments, overrides) -> int:
    from lgm.planning import command

    return command.run(arguments.config, arguments.topology, overrides, slices=arguments.slices,
                       search=arguments.search, limit=arguments.limit, jobs=arguments.jobs, json_path=arguments.json)


def encode(arguments, overrides) -> int:
    from lgm.train import encoding

    if arguments.rows < 1:
        raise ConfigError(f"--rows={arguments.rows} must be at least 1")
    return encoding.run(arguments.config, arguments.out, overrides, part=arguments.part, rows=arguments.rows,
                        dtype=arguments.dtype)


def data(arguments, overrides) -> int:
    from lgm.data import describe

    return describe.run(arguments.path, caption=arguments.caption, resolution=arguments.resolution, step=arguments.step,
                        checked=arguments.check, tokenizer=arguments.tokenizer, sheet=arguments.sheet)


def inspect(arguments, overrides) -> int:
    from lgm.models import build
    from lgm.models.table import parameter_table, preset

    if arguments.folder is None:
        models = {name: build(preset(name)) for name in arguments.preset}
    else:
        from lgm.systems.folders import load_pipeline

        models = load_pipeline(arguments.folder, only=())[0].models
    for name, model in models.items():
        print(f"{name}\n{parameter_table(model, arguments.levels)}\n")
    return 0


def config(arguments, overrides) -> int:
    from lgm import config, describing

    if arguments.config is None:
        if overrides or arguments.diff:
            raise ConfigError("--diff and --config.KEY=VALUE are of a file's config; give --config=FILE.py")
        print(describing.everything())
    else:
        print(describing.shown(config.load(arguments.config, overrides), arguments.diff))
    return 0


def presets(arguments, overrides) -> int:
    from lgm import describing

    print(describing.presets())
    return 0


def sweep(arguments, overrides) -> int:
    from lgm.scaling import sweeping

    return sweeping.run(arguments.config, arguments.workdir, overrides, only=arguments.only, gather=arguments.gather,
                        list_=arguments.list)


def launch(arguments, overrides) -> int:
    from lgm.launching import launch

    names = ("on", "config", "workdir", "site", "nodes", "topology", "slices", "partition", "image", "at_once", "plan",
             "dry_run")
    words = launch.Words(sweep=arguments.what == "sweep", **{name: getattr(arguments, name) for name in names})
    return launch.launch(words, overrides)


def status(arguments, overrides) -> int:
    from lgm.launching import status

    return status.status(arguments.workdirs, arguments.json)


def fit(arguments, overrides) -> int:
    from lgm.scaling import families, fit, machine, table

    pick = lambda *names: {name: getattr(arguments, name) for name in names}
    words = pick("chips", "chip_peak", "mfu")
    missing = [f"--{name.replace('_', '-')}" for name, value in words.items() if value is None]
    if missing and len(missing) < 3:
        raise ConfigError(f"{' and '.join(missing)} missing: --chips, --chip-peak and --mfu go together")
    if arguments.plan and len(missing) < 3:
        raise ConfigError(f"--plan={arguments.plan} says what --chips, --chip-peak and --mfu do; give one or the other")
    pod = fit.planned_pod(arguments.plan) if arguments.plan else None
    result = fit.run(
        arguments.data, arguments.out, loss=arguments.loss, tokens_per_image=arguments.tokens_per_image,
        limits=table.Limits(**pick("min_params", "min_data", "min_flops", "max_loss")),
        family=arguments.family_column, rows=arguments.rows, dataset=arguments.dataset,
        settings=families.Settings(**pick("method", "delta", "draws", "seed", "max_steps", "max_params"),
                                   hold_out=_above("--hold-out", arguments.hold_out)),
        points=_pairs("--predict", arguments.predict),
        budgets=_numbers("--budget", arguments.budget), pod_hours=_numbers("--pod-hours", arguments.pod_hours),
        pod=pod if missing else machine.Machine(arguments.chips, arguments.chip_peak, arguments.mfu),
    )
    print("\n".join(fit.headline(result)))
    print(f"{arguments.out}/report.html")
    return 0 if any(family["methods"] for family in result["families"].values()) else 1


def _above(flag: str, words: str | None) -> tuple[str, float] | None:
    """`params>1e9` as a name and a number."""
    if words is None:
        return None
    name, mark, value = words.partition(">")
    try:
        return name.strip(), float(value) if mark else float("")
    except ValueError:
        raise ConfigError(f"{flag}={words} is not a column and a number, as params>1e9") from None


def _pairs(flag: str, words: str | None) -> tuple[tuple[float, float], ...]:
    """`1e9,2e8;2e9,2e8` as pairs of numbers."""
    pairs = tuple(_numbers(flag, part, "1e9,2e8;2e9,2e8") for part in words.split(";")) if words else ()
    if any(len(pair) != 2 for pair in pairs):
        raise ConfigError(f"{flag}={words} is not parameters and data, as 1e9,2e8, or several by semicolons")
    return pairs


def _numbers(flag: str, words: str | None, example: str = "1e21,1e22") -> tuple[float, ...]:
    """`1e21,1e22` as numbers."""
    try:
        return tuple(float(word) for word in words.split(",")) if words else ()
    except ValueError:
        raise ConfigError(f"{flag}={words} is not a list of numbers, as {example}") from None
