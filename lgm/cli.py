"""The command line: `lgm VERB`. Thin: it parses words, calls the library and turns errors into one line."""

from __future__ import annotations

import argparse
import glob
import os
import sys

from lgm import __version__, files, processes
from lgm.parsing import ConfigError
from lgm.processes import member

ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia*", "/dev/dxg", "/dev/kfd")  # as Linux shows them

EXAMPLES = {
    "train": "lgm train --config=configs/quickstart.py --workdir=runs/quickstart --config.optimizer.lr=2e-3",
    "sample": 'lgm sample --workdir=runs/quickstart --prompt="grinning face emoji, noto style" --out=x.png --seed=1\n'
              '         lgm sample --from=models/sd15 --prompt="a red fox in the snow" --size=512 --out=fox.png',
    "evaluate": "lgm evaluate --workdir=runs/quickstart --out=metrics.json --distance=152",
    "export": "lgm export --workdir=runs/quickstart --out=exported\n"
              "         lgm export --from=models/sd15 --single-file=x.safetensors --dtype=float16 --out=models/x",
    "import": "lgm import --from=models/sd15 --workdir=runs/sd15",
    "sweep": "lgm sweep --config=configs/scaling/smoke.py --workdir=runs/smoke\n"
             "         lgm sweep --config=configs/scaling/pod.py --workdir=runs/pod --list\n"
             "         lgm sweep --config=configs/scaling/pod.py --workdir=runs/pod --only=$SLURM_ARRAY_TASK_ID",
    "fit": "lgm fit --data=runs.csv --out=fits/runs --budget=1e21,1e22\n"
           "         lgm fit --data=runs.csv --out=fits/runs --pod-hours=24 --plan=plan.json",
    "launch": "lgm launch --on=slurm --config=configs/emoji.py --workdir=/shared/runs/emoji --nodes=2 --dry-run\n"
              "         lgm launch --on=gke --config=configs/emoji.py --workdir=emoji --topology=v5e:4x4 --slices=2\n"
              "         lgm launch sweep --on=slurm --config=sweep.py --workdir=/shared/runs/sweep --at-once=8",
    "status": "lgm status --json runs/quickstart runs/emoji",
    "plan": "lgm plan --config=configs/pod.py:flux_dev --topology=v5p:4x4x8\n"
            "         lgm plan --config=configs/pod.py:sd35_large --topology=v6e:16x16 --slices=4 --search\n"
            "         lgm plan --config=configs/pod.py:sdxl --topology=h100:8x8",
    "config": "lgm config\n"
              "         lgm config --config=configs/quickstart.py --diff",
    "presets": "lgm presets",
    "encode": "lgm encode --config=configs/flags.py --out=caches/flags\n"
              "         lgm encode --config=configs/flags.py --out=caches/flags --part=0/4",
    "data": "lgm data photos --caption=description --resolution=1024 --sheet=photos.png",
    "inspect": "lgm inspect --preset=flux_dev --preset=t5_v1_1_xxl\n"
               "         lgm inspect --from=models/sd15 --levels=2",
}


CONFIGURED = ("train", "encode", "sweep", "launch", "plan", "config")  # verbs that take --config.KEY=VALUE
LONGEST = 1000  # letters of an error's line
DISTRIBUTED = ("train", "sweep", "sample", "evaluate", "export")  # several processes where the cluster starts several


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    settle_platform()
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments, rest = _parser().parse_known_args(argv)
    try:
        overrides = _overrides(rest, allowed=arguments.verb in CONFIGURED)
        if arguments.verb in DISTRIBUTED and (place := _place(arguments)) is not None:
            command = [sys.executable, "-m", "lgm.cli", *argv]
            least = processes.read_least(arguments.elastic, os.environ, place.count)
            return processes.supervise(place, _bounds(arguments), command, least)
        return arguments.run(arguments, overrides) or 0
    except KeyboardInterrupt:
        print(f"lgm {arguments.verb}: interrupted", file=sys.stderr)
        return member.leave(130)
    except Exception as error:
        store = files.failed_in_a_store(error)
        if not (store or isinstance(error, (ValueError, OSError, RuntimeError))):
            raise
        if not isinstance(error, ConfigError):
            member.settle()
        line = " ".join(str(error).split())
        if len(line) > LONGEST:  # of a name that is a whole text, both ends
            line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
        print(f"lgm {arguments.verb}: {'a store cannot be used: ' if store else ''}{line}", file=sys.stderr)
        return member.leave(getattr(error, "exit_code", 2))


def settle_platform() -> None:
    """Say "cpu" to JAX, unless the user has said something, where there is no other device.

    It asks each plug-in that is installed, and the TPU's, which `lgm plan` compiles with, answers in many lines.
    """
    if not any(map(glob.glob, ACCELERATORS)):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line, like all the others."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {' '.join(message.split())[:500]}; see {self.prog} --help\n")


def _overrides(words: list[str], allowed: bool) -> list[tuple[str, str]]:
    """`--config.a.b=value` as (a.b, value); anything else is refused."""
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not (allowed and key.startswith("--config.") and equals):
            hint = "; write --config.KEY=VALUE" if key.startswith("--config.") else "; see --help"
            raise ConfigError(f"unknown argument {word!r}{hint}")
        pairs.append((key.removeprefix("--config."), value))
    return pairs


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lgm", allow_abbrev=False,
        description="Train, scale, compare and evaluate latent image generators in JAX.",
    )
    parser.add_argument("--version", action="version", version=f"lgm {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run, text: str):
        examples = "\n".join(f"  {line.strip()}" for line in EXAMPLES[name].splitlines())
        sub = verbs.add_parser(name, help=text, description=text, epilog=f"examples:\n{examples}", allow_abbrev=False,
                               formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.set_defaults(run=run)
        return sub

    train = verb("train", _train, "Train from a config file; run the same command again to resume.")
    train.add_argument("--config", required=True, help="file.py or file.py:arg; override with --config.KEY=VALUE")
    train.add_argument("--workdir", required=True, help="the run's folder, which may lie in gs:// or s3://")
    train.add_argument("--extend", action="store_true",
                       help="go on with the folder's run as this config has it: to more images, at another rate or "
                            "schedule, with other log, evaluation or sampling")
    _add_processes(train)

    sample = verb("sample", _sample, "Draw images from a trained run or with a diffusers folder.")
    source = sample.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", help="the run's folder")
    source.add_argument("--from", dest="folder", help="a folder of diffusers, with its model_index.json")
    sample.add_argument("--prompt", required=True, action="append", help="a caption; may be given several times")
    sample.add_argument("--out", required=True, help="the PNG to write")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--count", type=int, default=1, help="images a prompt")
    sample.add_argument("--steps", type=int, help="solver steps (default: the run's or the system's)")
    sample.add_argument("--guidance", type=float, help="guidance scale (default: the run's or the system's)")
    sample.add_argument("--solver", help="NAME or NAME:OPTION=VALUE, as unipc:order=3 (default: the run's or the "
                                         "scheduler's)")
    sample.add_argument("--schedule", help="times of the steps, as even, karras:rho=7 or even:shift=3 (default: the "
                                           "run's or the scheduler's)")
    sample.add_argument("--rule", help="how guidance acts: plain, rescaled:share=0.7 or "
                                       "projected:momentum=-0.5,limit=10")
    sample.add_argument("--interval", help="of t in which guidance acts, as 0.1,0.8 (default: all of it)")
    sample.add_argument("--negative", help="what the images should not show")
    sample.add_argument("--image", help="a picture to start from instead of noise")
    sample.add_argument("--strength", type=float, help="how much of --image is replaced, in (0, 1] (default: 0.8, a "
                        "folder's own)")
    sample.add_argument("--mask", help="a picture that is white where --image is drawn anew and black where it is kept")
    sample.add_argument("--weights", choices=("ema", "raw"), help="which weights of a run (default: ema)")
    released = sample.add_argument_group("with --from")
    released.add_argument("--size", help="SIDE or HEIGHTxWIDTH in pixels (default: what the model was trained at)")
    released.add_argument("--lora", action="append", help="a LoRA to merge: PATH or PATH:STRENGTH; may be repeated")
    released.add_argument("--single-file", action="append", help="a checkpoint in an original layout, read instead of "
                          "the folder's; may be repeated, as for networks in files of their own")
    released.add_argument("--true-guidance", type=float, help="of Flux: extrapolate from --negative by this scale")
    released.add_argument("--skip-layers", help="of SD3.5: guide away from the network without these blocks, as "
                                                "7,8,9 or 7,8,9:scale=2.8,start=0.01,stop=0.2")
    released.add_argument("--tile", type=int, help="decode in tiles of so many pixels, for images too large to decode")
    released.add_argument("--dtype", choices=("float32", "bfloat16"), help="of networks but the VAE (default: float32)")
    released.add_argument("--noise", help="a .npy of x_T [N, h, w, C] in latent pixels instead of --seed's")
    _add_processes(sample)

    evaluate = verb("evaluate", _evaluate, "Held-out loss at fixed t and fixed noise; distances of drawn images.")
    evaluate.add_argument("--workdir", required=True, help="the run's folder")
    evaluate.add_argument("--out", required=True, help="the JSON file to write")
    evaluate.add_argument("--weights", choices=("ema", "raw"), default="ema")
    evaluate.add_argument("--distance", type=int, metavar="N", help="draw N images from held-out captions and measure "
                          "their distance from the real ones (default: config.evaluation.distance)")
    evaluate.add_argument("--likelihood", type=int, metavar="STEPS", help="state the held-out latents' log likelihood "
                          "too, by the probability-flow ODE in so many steps")
    _add_processes(evaluate)

    export = verb("export", _export, "Write a run as a folder of diffusers, of a LoRA, or one that `lgm` reads.")
    origin = export.add_mutually_exclusive_group(required=True)
    origin.add_argument("--workdir", help="the run's folder")
    origin.add_argument("--from", dest="folder", help="a folder of diffusers to write anew, changed as below")
    export.add_argument("--out", required=True, help="the folder to write")
    export.add_argument("--weights", choices=("ema", "raw"), help="which weights of a run (default: ema)")
    export.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of a diffusers folder's weights")
    export.add_argument("--lora-form", choices=("diffusers", "kohya"), help="a LoRA's names (default: diffusers)")
    changed = export.add_argument_group("with --from")
    changed.add_argument("--single-file", action="append", help="a checkpoint in an original layout, to take networks "
                         "from; may be repeated")
    changed.add_argument("--lora", action="append", help="a LoRA to merge: PATH or PATH:STRENGTH; may be repeated")
    _add_processes(export)

    import_ = verb("import", _import, "Make a run that starts from a diffusers folder, with a config.py to train it.")
    import_.add_argument("--from", dest="folder", required=True, help="a folder of diffusers")
    import_.add_argument("--workdir", required=True, help="the new run's folder")

    plan = verb("plan", _plan, "Compile a config's train step for a machine that is not here: does it fit, how fast?")
    plan.add_argument("--config", required=True, help="file.py or file.py:arg; override with --config.KEY=VALUE")
    plan.add_argument("--topology", required=True,
                      help="v4|v5p|tpu7x:AxBxC, v5e|v6e:AxB, a100|h100|h200|b200:NODESxGPUS (gpu: h100)")
    plan.add_argument("--slices", type=int, default=1, help="so many slices of that shape (default: 1)")
    plan.add_argument("--search", action="store_true", help="try meshes and remat policies that divide, and rank them")
    plan.add_argument("--limit", type=int, default=8, help="programs that --search compiles at most (default: 8)")
    plan.add_argument("--jobs", type=int, help="compiled at a time (default: what cores and memory allow)")
    plan.add_argument("--json", nargs="?", const="-", metavar="PATH", help="write JSON to PATH, or print it instead")

    config = verb("config", _config, "What a config may say: every key, its type and default; or what one file says.")
    config.add_argument("--config", help="file.py or file.py:arg, whose values to print; override with "
                                         "--config.KEY=VALUE")
    config.add_argument("--diff", action="store_true", help="those alone that are not the defaults")
    verb("presets", _presets, "Every published shape by name, for --preset of `lgm inspect` and for configs.")

    encode = verb("encode", _encode, "Encode a config's images once, for config.data.cache; run again to go on.")
    encode.add_argument("--config", required=True, help="file.py or file.py:arg; override with --config.KEY=VALUE")
    encode.add_argument("--out", required=True, help="the cache's folder")
    encode.add_argument("--part", default="0/1", metavar="I/N", help="the I-th of N shares, for processes side by side")
    encode.add_argument("--rows", type=int, default=1024, help="images a shard (default: 1024)")
    encode.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of latents on disk")

    data = verb("data", _data, "Say what a collection of images is: kind, sizes, buckets, captions, bad files.")
    data.add_argument("path", help="a folder, a zip, shards, a shipped name or KIND:PATH, as config.data.source")
    data.add_argument("--caption", default="text", help="the field that is the caption (default: text)")
    data.add_argument("--resolution", type=int, default=512, help="side in pixels whose area buckets have (default: "
                                                                  "512)")
    data.add_argument("--step", type=int, default=64, help="pixels that the sides of buckets are multiples of "
                                                           "(default: 64)")
    data.add_argument("--check", type=int, default=10_000, help="images that are decoded to find bad ones, spread over "
                                                                "all (default: 10000)")
    data.add_argument("--tokenizer", default="emoji64", help="what captions are counted with, as "
                                                             "config.text.tokenizer (default: emoji64)")
    data.add_argument("--sheet", metavar="PNG", help="write a sheet of some pictures with their captions")

    inspect = verb("inspect", _inspect, "Print a table of parameters; no weights are read or made.")
    what = inspect.add_mutually_exclusive_group(required=True)
    what.add_argument("--preset", action="append", help="a published shape, NAME or FAMILY/NAME; may be repeated")
    what.add_argument("--from", dest="folder", help="a folder of diffusers, all networks of it")
    inspect.add_argument("--levels", type=int, help="sum up parameters by so many parts of their paths")

    sweep = verb("sweep", _sweep, "Train all runs of a plan and gather runs.csv; run the same command again to resume.")
    sweep.add_argument("--config", required=True, help="a sweep's file.py or file.py:arg; override with "
                                                       "--config.KEY=VALUE")
    sweep.add_argument("--workdir", required=True, help="the sweep's folder")
    _add_processes(sweep)
    what = sweep.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print the runs and what they cost; train nothing")
    what.add_argument("--only", type=int, help="train the run of this number, by itself, as a cluster's job")
    what.add_argument("--gather", action="store_true", help="write runs.csv from what is finished; train nothing")

    launch = verb("launch", _launch, "Run a config on a cluster: Slurm, GKE, Cloud TPU VMs or this machine.")
    launch.add_argument("what", nargs="?", choices=("train", "sweep"), default="train",
                        help="one training run (default), or a sweep's runs, each a job of its own")
    launch.add_argument("--on", required=True, choices=("slurm", "gke", "tpu-vm", "local"))
    launch.add_argument("--config", required=True, help="file.py or file.py:arg; override with --config.KEY=VALUE")
    launch.add_argument("--workdir", required=True, help="the run's folder, where the cluster sees it")
    launch.add_argument("--site", help="the site's TOML file (default: $LGM_SITE, or ~/.config/lgm/site.toml)")
    launch.add_argument("--nodes", type=int, help="nodes of GPUs; processes with --on=local (default: 1)")
    launch.add_argument("--topology", help="a TPU slice, as v5e:4x4")
    launch.add_argument("--slices", type=int, help="how many slices (default: 1)")
    launch.add_argument("--partition", help="Slurm's (default: the site's)")
    launch.add_argument("--image", help="container image (default: the site's)")
    launch.add_argument("--at-once", type=int, help="runs of a sweep at one time (default: as many as fit)")
    launch.add_argument("--plan", action="store_true", help="ask the compiler first whether it fits")
    launch.add_argument("--dry-run", action="store_true", help="print the job, submit and write nothing")

    status = verb("status", _status, "Where launched runs are: queue, images, loss, MFU, checkpoint, time left.")
    status.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="folders of runs or sweeps")
    status.add_argument("--json", action="store_true", help="as JSON, times in seconds")

    fit = verb("fit", _fit, "Scaling laws from a CSV of runs: fit.json, figures and a report.")
    fit.add_argument("--data", required=True,
                     help="CSV with loss, any two of params, images or tokens, and flops; also family, seed, run, "
                          "learning_rate")
    fit.add_argument("--out", required=True, help="the folder to write")
    fit.add_argument("--loss", default="loss", help="the column that is fitted, as vlb_bits of a sweep's runs.csv "
                                                    "(default: loss)")
    fit.add_argument("--family-column", help="the column, or columns by commas, whose values tell families apart "
                                             "(default: family)")
    fit.add_argument("--rows", choices=("all", "last"), default="all",
                     help="of each run: all, or the last 5%% of its data as one, of learning curves (default: all)")
    fit.add_argument("--tokens-per-image", type=float, help="joins images and FLOPs by C = 6 params tokens")
    fit.add_argument("--budget", help="FLOPs to find the best N and D for, or a list: 1e21,1e22 (default: the "
                                      "largest run's, 10 and 100 times that)")
    fit.add_argument("--max-params", type=float, default=float("inf"), help="that a recommended model may have")
    fit.add_argument("--predict", help="N,D whose loss is predicted, or several: '1e9,2e8;2e9,2e8'")
    fit.add_argument("--dataset", type=float, help="how many images (or tokens) there are, to be told of epochs")
    fit.add_argument("--hold-out", help="what is predicted from the rest: 'params>1e9', 'flops>1e21' (default: the "
                                        "largest budget)")
    fit.add_argument("--method", default="huber", help="what predicts and is checked: huber, least_absolute or "
                                                       "variable_projection (default: huber; all three are fitted)")
    fit.add_argument("--delta", type=float, default=1e-3, help="Huber's, of errors of ln loss (default: 1e-3)")
    fit.add_argument("--draws", type=int, default=1000, help="simulated tables that intervals are of (default: 1000)")
    fit.add_argument("--seed", type=int, default=0, help="of the draws")
    fit.add_argument("--max-steps", type=int, default=4000, help="of each optimizer (default: 4000)")
    for name in ("min-params", "min-data", "min-flops"):
        fit.add_argument(f"--{name}", type=float, default=0.0, help="drop rows below")
    fit.add_argument("--max-loss", type=float, default=float("inf"), help="drop rows above")
    pod = fit.add_argument_group("budgets as pod-hours")
    pod.add_argument("--pod-hours", help="hours of the pod, or a list")
    pod.add_argument("--chips", type=int, help="chips in the pod")
    pod.add_argument("--chip-peak", type=float, help="FLOP/s of a chip at its peak, as 459e12")
    pod.add_argument("--mfu", type=float, help="the part of the peak that training gets, as 0.4")
    pod.add_argument("--plan", help="chips, peak and MFU from what `lgm plan --json=PATH` wrote, instead of these")
    return parser


def _add_processes(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("several processes", "Found by themselves in a Slurm step, on TPU slices and from "
                                    "LGM_COORDINATOR, LGM_PROCESSES and LGM_PROCESS_ID. All run the same command.")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", type=int, help="how many there are")
    group.add_argument("--process-id", type=int, help="which this is, from 0")
    group.add_argument("--patience", type=float, help="seconds after which a silent machine is lost (default: 60)")
    group.add_argument("--wait", type=float, help="seconds for all to start, and to reach a barrier (default: 900)")
    group.add_argument("--elastic", metavar="N", help="where processes are lost, go on with those left, at least N, "
                       "from the last checkpoint, on a smaller data or fsdp axis (default: $LGM_ELASTIC, or stop)")
    group.add_argument("--report", type=float, help="seconds between heartbeat lines (default: 300)")


def _place(arguments) -> processes.Place | None:
    """This process's place among several, None where it is alone or has its supervisor already."""
    if member.is_member():
        member.join()
        return None
    return processes.find(arguments.coordinator, arguments.processes, arguments.process_id)


def _bounds(arguments) -> processes.Bounds:
    return processes.Bounds.read({name: getattr(arguments, name) for name in ("patience", "wait", "report")})


def _train(arguments, overrides) -> int:
    from lgm.train import main

    return main.train(arguments.config, arguments.workdir, overrides, arguments.extend)


def _sample(arguments, overrides) -> int:
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
    from lgm.interop import exports
    from lgm.train import main

    if exports.is_exported(arguments.folder):
        if released:
            raise ConfigError(f"--{min(released).replace('_', '-')} goes with a diffusers folder, which "
                              f"--from={arguments.folder} is not")
        return main.sample_exported(arguments.folder, arguments.prompt, arguments.out, **common)
    return main.sample_released(arguments.folder, arguments.prompt, arguments.out, **common, **released)


def _evaluate(arguments, overrides) -> int:
    from lgm.train import main

    return main.evaluate(arguments.workdir, arguments.out, weights=arguments.weights, distance=arguments.distance,
                         likelihood=arguments.likelihood)


def _export(arguments, overrides) -> int:
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


def _import(arguments, overrides) -> int:
    from lgm.train import main

    return main.import_(arguments.folder, arguments.workdir)


def _plan(arguments, overrides) -> int:
    from lgm.planning import command

    return command.run(arguments.config, arguments.topology, overrides, slices=arguments.slices,
                       search=arguments.search, limit=arguments.limit, jobs=arguments.jobs, json_path=arguments.json)


def _encode(arguments, overrides) -> int:
    from lgm.train import encoding

    if arguments.rows < 1:
        raise ConfigError(f"--rows={arguments.rows} must be at least 1")
    return encoding.run(arguments.config, arguments.out, overrides, part=arguments.part, rows=arguments.rows,
                        dtype=arguments.dtype)


def _data(arguments, overrides) -> int:
    from lgm.data import describe

    return describe.run(arguments.path, caption=arguments.caption, resolution=arguments.resolution, step=arguments.step,
                        checked=arguments.check, tokenizer=arguments.tokenizer, sheet=arguments.sheet)


def _inspect(arguments, overrides) -> int:
    from lgm.models import build
    from lgm.models.table import parameter_table, preset

    if arguments.folder is None:
        models = {name: build(preset(name)) for name in arguments.preset}
    else:
        from lgm.interop.diffusers_dir import load_pipeline

        models = load_pipeline(arguments.folder, only=())[0].models
    for name, model in models.items():
        print(f"{name}\n{parameter_table(model, arguments.levels)}\n")
    return 0


def _config(arguments, overrides) -> int:
    from lgm import config, describing

    if arguments.config is None:
        if overrides or arguments.diff:
            raise ConfigError("--diff and --config.KEY=VALUE are of a file's config; give --config=FILE.py")
        print(describing.everything())
    else:
        print(describing.shown(config.load(arguments.config, overrides), arguments.diff))
    return 0


def _presets(arguments, overrides) -> int:
    from lgm import describing

    print(describing.presets())
    return 0


def _sweep(arguments, overrides) -> int:
    from lgm.scaling import sweeping

    return sweeping.run(arguments.config, arguments.workdir, overrides, only=arguments.only, gather=arguments.gather,
                        list_=arguments.list)


def _launch(arguments, overrides) -> int:
    from lgm.launching import launch

    names = ("on", "config", "workdir", "site", "nodes", "topology", "slices", "partition", "image", "at_once", "plan",
             "dry_run")
    words = launch.Words(sweep=arguments.what == "sweep", **{name: getattr(arguments, name) for name in names})
    return launch.launch(words, overrides)


def _status(arguments, overrides) -> int:
    from lgm.launching import status

    return status.status(arguments.workdirs, arguments.json)


def _fit(arguments, overrides) -> int:
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


if __name__ == "__main__":
    sys.exit(main())
