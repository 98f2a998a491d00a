"""`lgm sweep` and `lgm fit`."""

import os

from lgm.parsing import ConfigError, numbers


def sweep(arguments, overrides) -> int:
    from lgm.scaling import sweeping

    return sweeping.run(arguments.config, arguments.workdir, overrides, only=arguments.only, gather=arguments.gather,
                        list_=arguments.list, fill=arguments.adaptive)


def fit(arguments, overrides) -> int:
    # before numpy: threads for systems of five unknowns wait for each other, where cores are taken for most of a fit
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from lgm.scaling import compute, families, fit, table

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
        frozen=arguments.frozen,
        sweep=arguments.sweep, spend=arguments.spend,
        qualities=tuple(name.strip() for name in arguments.quality.split(",")) if arguments.quality else (),
        settings=families.Settings(**pick("method", "delta", "draws", "seed", "max_steps", "max_params"),
                                   hold_out=_above("--hold-out", arguments.hold_out)),
        points=_pairs("--predict", arguments.predict),
        budgets=numbers("--budget", arguments.budget), pod_hours=numbers("--pod-hours", arguments.pod_hours),
        together=tuple(name.strip() for name in arguments.share.split(",")) if arguments.share else (),
        price=arguments.price, money=numbers("--money", arguments.money),
        pod=pod if missing else compute.Machine(arguments.chips, arguments.chip_peak, arguments.mfu),
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
    pairs = tuple(numbers(flag, part, "1e9,2e8;2e9,2e8") for part in words.split(";")) if words else ()
    if any(len(pair) != 2 for pair in pairs):
        raise ConfigError(f"{flag}={words} is not parameters and data, as 1e9,2e8, or several by semicolons")
    return pairs
