#!/usr/bin/env bash
# Every GPU figure of the README, on one H100 or H200, in at most 40 minutes, and whether its six training steps are as
# they were planned (memory within 5%, the step within 15% of its range):
#
#     pip install -e '.[cuda]' diffusers && tools/gpu_figures.sh gpu-figures
#     tools/gpu_figures.sh DIR --small      the same parts in small on a CPU: they run; no figure of it says anything
#
# Each part writes DIR/PART.log (and .json) and has its own limit, so that one that hangs costs no other. What has been
# written when the time is over counts. On a CPU the fused kernels, bfloat16, the memory of a device and the stream
# lines of a trace are not tried.
set -u
out=${1:?give a folder for the figures}
small=${2:-}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
failed=0

part() {  # part NAME SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    echo "$(date +%T) $name (at most $limit s)"
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 || { echo "  $name failed with $?: $(tail -n 1 "$out/$name.log")"; failed=1; }
}

python - >"$out/versions.txt" 2>&1 <<'END'
import importlib.metadata
import jax
print(*(f"{d.device_kind}" for d in jax.devices()), sep="\n")
for name in ("jax", "jaxlib", "flax", "torch", "diffusers"):
    print(name, importlib.metadata.version(name))
END
# as lgm launch starts jobs, and as plans are compiled
flags=$(python -c 'import jax; from lgm.parallel.chips import chip_of; from lgm.planning import gpus
chip = chip_of(jax.devices()[0].device_kind)
print(*(f"--{name}={value}" for name, value in gpus.told(chip.name if chip else "").items()))')
export XLA_FLAGS="$flags ${XLA_FLAGS-}"
if [ "$small" = --small ]; then
    part train_sd3_512 900 python "$here/bench_train.py" --small --case=sd3_512 --peer --calls=2 --steps=2 --json="$out/train_sd3_512.json"
    part sample 900 python "$here/bench_sample.py" --small --case=sd3_1024 --peer --calls=2 --steps=2 --sampling-steps=2 \
        --json="$out/sample.json"
    part profile 600 python "$here/profile_step.py" --small --case=sd3_512 --keep="$out/profile"
    exit "$failed"
fi
part attention 210 python "$here/check_attention_gpu.py"
for case in dit_256 sd15_512 sdxl_1024 sd3_512 sd3_1024 flux_4_8_1024; do  # a process a case: each has all the memory
    part "train_$case" 240 python "$here/bench_train.py" --case="$case" --peer --json="$out/train_$case.json"
done
part plan 60 env XLA_FLAGS= python "$here/plan_gpus.py" --check="$out"
part sample 330 python "$here/bench_sample.py" --peer --sampling-steps=28 --calls=3 --json="$out/sample.json"
part profile_sd3_512 100 python "$here/profile_step.py" --case=sd3_512 --keep="$out/profile_sd3_512"
part profile_sdxl 140 python "$here/profile_step.py" --case=sdxl_1024 --keep="$out/profile_sdxl"
part overhead 120 python "$here/sampler_overhead.py" --dtype=bfloat16 --steps=28 --out="$out/overhead.json"
exit "$failed"
