"""The words of the command line: every verb's flags with their help, and an example of each."""

import argparse
import re
from collections.abc import Iterable

from lgm import __version__
from lgm.parsing import near_miss

EXAMPLES = {
    "train": "lgm train --config=configs/quickstart.py --workdir=runs/quickstart --config.optimizer.lr=2e-3",
    "sample": 'lgm sample --workdir=runs/quickstart --prompt="grinning face emoji, noto style" --out=x.png --seed=1\n'
              '         lgm sample --from=models/sd15 --prompt="a red fox in the snow" --size=512 --out=fox.png',
    "evaluate": "lgm evaluate --workdir=runs/quickstart --metric=heldout --metric=frechet --metric=kernel\n"
                "         lgm evaluate --protocol=protocol.json --from=models/sd3 --out=sd3.json\n"
                "         lgm evaluate curves --workdir=runs/flow --workdir=runs/eps --protocol=protocol.json \\\n"
                "             --vary=steps=1,2,4,8,30 --vary=guidance=1,2,4 --out=curves\n"
                "         lgm evaluate images drawn --reference=photos --features=efficientnet_lite0 --out=drawn.json",
    "export": "lgm export --workdir=runs/quickstart --out=exported\n"
              "         lgm export --workdir=runs/flux --form=original --license=apache-2.0 --out=checkpoint\n"
              "         lgm export --workdir=runs/emoji --form=stablehlo --steps=20 --out=program\n"
              "         lgm export --from=models/sd15 --single-file=x.safetensors --dtype=float16 --out=models/x",
    "import": "lgm import --from=models/sd15 --workdir=runs/sd15\n"
              "         lgm import --from=models/sd15 --data=photos --workdir=runs/mine",
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
              "         lgm config --config=configs/quickstart.py --diff\n"
              "         lgm config --site > ~/.config/lgm/site.toml",
    "presets": "lgm presets",
    "completion": "lgm completion --shell=fish > ~/.config/fish/completions/lgm.fish\n"
                  '         eval "$(lgm completion)"',
    "encode": "lgm encode --config=configs/flags.py --out=caches/flags --part=0/4\n"
              "         lgm encode --config=configs/pod.py:flux_dev --out=gs://bucket/cache --text-dtype=bfloat16",
    "pairs": "lgm pairs --config=configs/few_steps/reflow.py:runs/quickstart --out=caches/pairs --part=0/4",
    "data": "lgm data photos --caption=description --resolution=1024 --sheet=photos.png\n"
            "         lgm data --config=configs/emoji.py --config.data.flip=True",
    "inspect": "lgm inspect --preset=flux_dev --preset=t5_v1_1_xxl\n"
               "         lgm inspect --from=models/sd15 --levels=2",
}


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line, like all the others, which say what was meant."""

    def error(self, message: str):
        if found := re.fullmatch(r"argument VERB: invalid choice: '(.*?)' \(choose from (.*)\)", message, re.S):
            message = f"there is no verb {found[1]!r}{near_miss(found[1], re.findall(r'[a-z]+', found[2]))}"
        self.exit(2, f"{self.prog}: {' '.join(message.split())[:500]}; see {self.prog} --help\n")


def flags(verb: str) -> Iterable[str]:
    """The names of a verb's flags."""
    (choices,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return [name for name in choices.choices[verb]._option_string_actions if name.startswith("--")]


def parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lgm", allow_abbrev=False,
        description="Train, scale, compare and evaluate latent image generators in JAX.",
    )
    parser.add_argument("--version", action="version", version=f"lgm {__version__}")
    choices = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: str, text: str):
        examples = "\n".join(f"  {line.strip()}" for line in EXAMPLES[name].splitlines())
        sub = choices.add_parser(name, help=text, description=text, epilog=f"examples:\n{examples}", allow_abbrev=False,
                               formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", help="where something fails, print where (also LGM_DEBUG=1)")
        return sub

    train = verb("train", "train:run", "Train from a config file; run the same command again to resume.")
    train.add_argument("--config", required=True, help="file.py or file.py:arg; override with --config.KEY=VALUE")
    train.add_argument("--workdir", required=True, help="the run's folder, which may lie in gs:// or s3://")
    train.add_argument("--extend", action="store_true",
                       help="go on with the folder's run as this config has it: to more images, at another rate or "
                            "schedule, with other log, evaluation or sampling")
    _add_processes(train)

    sample = verb("sample", "sample:run", "Draw images from a trained run or with a diffusers folder.")
    source = sample.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", help="the run's folder")
    source.add_argument("--from", dest="folder", help="a folder of diffusers, with its model_index.json")
    sample.add_argument("--prompt", required=True, action="append", help="a caption; may be given several times")
    sample.add_argument("--out", required=True, help="the PNG to write; of several images a sheet, with each beside it "
                                                     "in a file of its own, OUT-1.png and so on")
    sample.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    sample.add_argument("--count", type=int, default=1, help="images a prompt (default: 1)")
    sample.add_argument("--steps", type=int, help="solver steps (default: the run's or the system's)")
    sample.add_argument("--guidance", type=float, help="guidance scale (default: the run's or the system's)")
    sample.add_argument("--solver", help="NAME or NAME:OPTION=VALUE, as unipc:order=3 (default: the run's or the "
                                         "scheduler's)")
    sample.add_argument("--schedule", help="times of the steps, as even, karras:rho=7 or even:shift=3 (default: the "
                                           "run's or the scheduler's)")
    sample.add_argument("--rule", help="how guidance acts: plain, rescaled:share=0.7, token_rescaled or "
                                       "projected:momentum=-0.5,limit=10 (default: the run's or the system's)")
    sample.add_argument("--interval", help="of t in which guidance acts, as 0.1,0.8 (default: all of it)")
    sample.add_argument("--negative", help="what the images should not show")
    sample.add_argument("--image", help="a picture to start from instead of noise")
    sample.add_argument("--strength", type=float, help="how much of --image is replaced, in (0, 1] (default: 0.8, a "
                        "folder's own)")
    sample.add_argument("--mask", help="a picture that is white where --image is drawn anew and black where it is kept")
    sample.add_argument("--weights", choices=("ema", "raw"), help="which weights of a run (default: ema)")
    sample.add_argument("--size", help="SIDE or HEIGHTxWIDTH in pixels (default: what the model was trained at)")
    released = sample.add_argument_group("with --from")
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

    evaluate = verb("evaluate", "evaluate:run", "Measure a run, a folder of weights or a folder of pictures by a "
                    "protocol, which is stored with every figure.")
    evaluate.add_argument("what", nargs="*", metavar="images FOLDER | curves", help="measure pictures that are there "
                          "already, or draw curves of several runs as --vary says")
    evaluate.add_argument("--protocol", help="the JSON file that says what is drawn and measured, or an "
                          "evaluation.json to be repeated (default: a run's held-out loss)")
    evaluate.add_argument("--workdir", action="append", help="the run's folder; of curves, several")
    evaluate.add_argument("--from", dest="folder", help="a folder of diffusers or of `lgm export` instead of a run")
    evaluate.add_argument("--out", help="the JSON file to write (default: the run's evaluation.json); of curves, the "
                          "folder of curves.json, figures and page.html")
    evaluate.add_argument("--vary", action="append", metavar="NAME=VALUES", help="a curve along steps, guidance, "
                          "images (trained on), half_life_images (of the average), solver, rule, interval or schedule, "
                          "as steps=1,2,4,8 or 'steps=2,4; solver=heun'; may be repeated")
    evaluate.add_argument("--pictures", metavar="FOLDER", help="write every image that is drawn there")
    evaluate.add_argument("--statistics", metavar="FILE", help="of pictures: only write their features' mean and "
                          "covariance, to be the --reference of others")
    evaluate.add_argument("--split", action="store_true", help="split the networks over all devices, where one does "
                          "not hold them; the last digits are then those of so many devices")
    stated = evaluate.add_argument_group("in place of what the protocol states")
    stated.add_argument("--metric", action="append", help="NAME or NAME:OPTION=VALUE, as heldout, likelihood:steps=64, "
                        "frechet or kernel; may be repeated")
    stated.add_argument("--count", type=int, help="images drawn with each seed (default: one a caption)")
    stated.add_argument("--reference", help="what images are held to: a folder, a data set or a file of statistics "
                        "(default: the run's held-out images)")
    stated.add_argument("--features", help="the feature network, as efficientnet_lite0, inception:FILE or clip:FOLDER "
                        "(default: the run's autoencoder; of pictures efficientnet_lite0)")
    stated.add_argument("--size", help="SIDE or HEIGHTxWIDTH in pixels that pictures are drawn at or brought to")
    stated.add_argument("--weights", choices=("ema", "raw"), help="which weights of a run (default: ema)")
    _add_processes(evaluate)

    export = verb("export", "export:run", "Write a run as a folder of diffusers, of a LoRA, or one that `lgm` reads.")
    origin = export.add_mutually_exclusive_group(required=True)
    origin.add_argument("--workdir", help="the run's folder")
    origin.add_argument("--from", dest="folder", help="a folder of diffusers to write anew, changed as below")
    export.add_argument("--out", required=True, help="the folder to write")
    export.add_argument("--weights", choices=("ema", "raw"), help="which weights of a run (default: ema)")
    export.add_argument("--form", choices=("diffusers", "original", "lora-diffusers", "lora-kohya", "lora-comfy",
                        "stablehlo"), help="a folder of diffusers; single files in the original's layout; a LoRA under "
                        "diffusers', kohya's or ComfyUI's names; programs that jax alone runs (default: diffusers, of "
                        "a LoRA's run lora-diffusers)")
    export.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: of a "
                        "folder's their own, of what was trained float32)")
    export.add_argument("--license", help="the id of the export's license, for its card, as apache-2.0")
    export.add_argument("--base-model", metavar="OWNER/NAME", help="what it was made from, as a hub names it, for its "
                        "card")
    changed = export.add_argument_group("with --from")
    changed.add_argument("--single-file", action="append", help="a checkpoint in an original layout, to take networks "
                         "from; may be repeated")
    changed.add_argument("--lora", action="append", help="a LoRA to merge: PATH or PATH:STRENGTH; may be repeated. "
                         "With a --form of LoRAs it is written anew in that form instead")
    drawing = export.add_argument_group("with --form=stablehlo")
    drawing.add_argument("--steps", type=int, help="solver steps (default: the run's or the system's)")
    drawing.add_argument("--guidance", type=float, help="guidance scale (default: the run's or the system's)")
    drawing.add_argument("--count", type=int, help="images a call (default: 1)")
    drawing.add_argument("--size", help="SIDE or HEIGHTxWIDTH in pixels, with --from (default: what the model was "
                                        "trained at)")
    _add_processes(export)

    import_ = verb("import", "export:import_",
                   "Make a run that starts from a diffusers folder, with a config.py to train it.")
    import_.add_argument("--from", dest="folder", required=True, help="a folder of diffusers")
    import_.add_argument("--workdir", required=True, help="the new run's folder")
    import_.add_argument("--data", help="images to train on, as config.data.source takes them (default: the shipped)")
    import_.add_argument("--dtype", choices=("float32", "bfloat16"), help="what the run computes in; weights that are "
                         "trained are float32 (default: bfloat16 where the folder's are of 16 bits)")

    plan = verb("plan", "cluster:plan",
                "Compile a config's train step for a machine that is not here: does it fit, how fast?")
    plan.add_argument("--config", required=True, help="file.py or file.py:arg; override with --config.KEY=VALUE")
    plan.add_argument("--topology", required=True,
                      help="v4|v5p|tpu7x:AxBxC, v5e|v6e:AxB, a100|h100|h200|b200:NODESxGPUS (gpu: h100)")
    plan.add_argument("--slices", type=int, default=1, help="so many slices of that shape (default: 1)")
    plan.add_argument("--search", action="store_true", help="try meshes, remat, pieces and groups that divide")
    plan.add_argument("--limit", type=int, default=10, help="programs that --search compiles at most (default: 10)")
    plan.add_argument("--quick", action="store_true",
                      help="without machine code, several times sooner: no TPU's cycles, nor whether there can be code")
    plan.add_argument("--jobs", type=int, help="compiled at a time (default: what cores and memory allow)")
    plan.add_argument("--json", nargs="?", const="-", metavar="PATH", help="write JSON to PATH, or print it instead")

    config = verb("config", "info:config",
                  "What a config may say: every key, its type and default; or what one file says.")
    config.add_argument("--config", help="file.py or file.py:arg, whose values to print; override with "
                                         "--config.KEY=VALUE")
    config.add_argument("--diff", action="store_true", help="those alone that are not the defaults")
    config.add_argument("--site", action="store_true", help="instead an example of a site's file, for `lgm launch`")
    verb("presets", "info:presets", "Every published shape by name, for --preset of `lgm inspect` and for configs.")

    completion = verb("completion", "info:completion", "Print what makes a shell complete verbs, flags and files.")
    completion.add_argument("--shell", choices=("bash", "zsh", "tcsh", "fish", "powershell"), default="bash",
                            help="for which; bash's is zsh's too (default: bash)")

    encode = verb("encode", "encode:run",
                  "Encode a config's images and captions once, for config.data.cache; run again to go on.")
    encode.add_argument("--config", required=True, help="file.py or file.py:arg; override with --config.KEY=VALUE")
    encode.add_argument("--out", required=True, help="the cache's folder")
    encode.add_argument("--part", default="0/1", metavar="I/N", help="the I-th of N shares, for processes side by side "
                        "(default: 0/1, all)")
    encode.add_argument("--rows", type=int, default=1024,
                        help="images or captions a shard, of text at most 1 GiB (default: 1024)")
    encode.add_argument("--dtype", choices=("float32", "float16"), default="float32",
                        help="of latents on disk (default: float32)")
    encode.add_argument("--text-dtype", choices=("float32", "float16", "bfloat16", "int8"),
                        help="of what frozen text encoders say, on disk (default: what they compute in, which loses "
                             "nothing)")

    pairs = verb("pairs", "encode:pairs",
                 "Draw a teacher's pairs of noise and data once, for config.loss.teacher.cache; run again to go on.")
    pairs.add_argument("--config", required=True, help="file.py or file.py:arg of the run that they are for; override "
                                                       "with --config.KEY=VALUE")
    pairs.add_argument("--out", required=True, help="the cache's folder")
    pairs.add_argument("--part", default="0/1", metavar="I/N", help="the I-th of N shares, for processes side by side "
                       "(default: 0/1, all)")
    pairs.add_argument("--rows", type=int, default=1024, help="pairs a shard (default: 1024)")
    pairs.add_argument("--dtype", choices=("float32", "float16"), default="float32",
                       help="of both on disk (default: float32)")

    data = verb("data", "info:data",
                "Say what a collection of images is: kind, sizes, buckets, captions, bad files.")
    data.add_argument("path", nargs="?", help="a folder, a zip, shards, a shipped name or KIND:PATH, as "
                                              "config.data.source")
    data.add_argument("--config", help="file.py or file.py:arg instead of a path: what its filters and weights make of "
                                       "its sources; override with --config.KEY=VALUE")
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

    inspect = verb("inspect", "info:inspect", "Print a table of parameters; no weights are read or made.")
    what = inspect.add_mutually_exclusive_group(required=True)
    what.add_argument("--preset", action="append", help="a published shape, NAME or FAMILY/NAME; may be repeated")
    what.add_argument("--from", dest="folder", help="a folder of diffusers, all networks of it")
    inspect.add_argument("--levels", type=int, help="sum up parameters by so many parts of their paths")

    sweep = verb("sweep", "scale:sweep",
                 "Train all runs of a plan and gather runs.csv; run the same command again to resume.")
    sweep.add_argument("--config", required=True, help="a sweep's file.py or file.py:arg; override with "
                                                       "--config.KEY=VALUE")
    sweep.add_argument("--workdir", required=True, help="the sweep's folder")
    sweep.add_argument("--adaptive", action="store_true", help="spend each budget about where the results so far put "
                       "its lowest loss, beginning with config.guess")
    _add_processes(sweep)
    what = sweep.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print the runs and what they cost; train nothing")
    what.add_argument("--only", type=int, help="train the run of this number, by itself, as a cluster's job")
    what.add_argument("--gather", action="store_true", help="write runs.csv from what is finished; train nothing")

    launch = verb("launch", "cluster:launch", "Run a config on a cluster: Slurm, GKE, Cloud TPU VMs or this machine.")
    launch.add_argument("what", nargs="?", choices=("train", "sweep"), default="train",
                        help="one training run (default), or a sweep's runs, each a job of its own")
    launch.add_argument("--on", required=True, choices=("slurm", "gke", "tpu-vm", "local"), help="where")
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

    status = verb("status", "cluster:status",
                  "Where launched runs are: queue, images, loss, MFU, checkpoint, time left.")
    status.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="folders of runs or sweeps")
    status.add_argument("--json", action="store_true", help="as JSON, times in seconds")

    fit = verb("fit", "scale:fit", "Scaling laws from a CSV of runs: fit.json, figures and a report.")
    fit.add_argument("--data", required=True,
                     help="CSV, JSON lines or a folder of MLflow, W&B or TensorBoard with loss, any two of params, "
                          "images or tokens, and flops; also family, seed, run, learning_rate, batch_size, unique")
    fit.add_argument("--out", required=True, help="the folder to write")
    fit.add_argument("--loss", default="loss", help="the column that is fitted, as vlb_bits of a sweep's runs.csv "
                                                    "(default: loss)")
    fit.add_argument("--share", help="terms that are one for all families, by commas, of E, alpha and beta")
    fit.add_argument("--quality", help="columns, by commas, that are told as powers of the loss, as frechet_distance")
    fit.add_argument("--family-column", help="the column, or columns by commas, whose values tell families apart "
                                             "(default: family)")
    fit.add_argument("--rows", choices=("all", "last"), default="all",
                     help="of each run: all, or the last 5%% of its data as one, of learning curves (default: all)")
    fit.add_argument("--frozen", action="store_true",
                     help="count the FLOPs of frozen encoders (frozen_flops of a sweep's runs.csv) in all budgets too")
    fit.add_argument("--tokens-per-image", type=float, help="joins images and FLOPs by C = 6 params tokens")
    fit.add_argument("--budget", help="FLOPs to find the best N and D for, or a list: 1e21,1e22 (default: the "
                                      "largest run's, 10 and 100 times that)")
    fit.add_argument("--max-params", type=float, default=float("inf"), help="that a recommended model may have "
                     "(default: any)")
    fit.add_argument("--predict", help="N,D whose loss is predicted, or several: '1e9,2e8;2e9,2e8'")
    fit.add_argument("--dataset", type=float, help="how many images (or tokens) there are, to be told of epochs")
    fit.add_argument("--sweep", help="the plan whose table this is: the next runs are of its ladders, and it is "
                     "written with them as OUT/next.json, to be run in the same folder")
    fit.add_argument("--spend", type=float, help="FLOPs of the next runs that are proposed (default: of the largest "
                     "run)")
    fit.add_argument("--hold-out", help="what is predicted from the rest: 'params>1e9', 'flops>1e21' (default: the "
                                        "largest budget)")
    fit.add_argument("--method", default="huber", help="what predicts and is checked: huber, least_absolute or "
                                                       "variable_projection (default: huber; all three are fitted)")
    fit.add_argument("--delta", type=float, default=1e-3, help="Huber's, of errors of ln loss (default: 1e-3)")
    fit.add_argument("--draws", type=int, default=1000, help="simulated tables that intervals are of (default: 1000)")
    fit.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    fit.add_argument("--max-steps", type=int, default=4000, help="of each optimizer (default: 4000)")
    for name in ("min-params", "min-data", "min-flops"):
        fit.add_argument(f"--{name}", type=float, default=0.0, help="drop rows below (default: 0)")
    fit.add_argument("--max-loss", type=float, default=float("inf"), help="drop rows above (default: none)")
    pod = fit.add_argument_group("budgets as pod-hours")
    pod.add_argument("--pod-hours", help="hours of the pod, or a list")
    pod.add_argument("--chips", type=int, help="chips in the pod")
    pod.add_argument("--chip-peak", type=float, help="FLOP/s of a chip at its peak, as 459e12")
    pod.add_argument("--mfu", type=float, help="the part of the peak that training gets, as 0.4")
    pod.add_argument("--price", type=float, help="of an hour of one chip, in any currency")
    pod.add_argument("--money", help="what may be spent at that price, or a list")
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
