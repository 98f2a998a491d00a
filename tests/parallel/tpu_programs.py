"""Compiles train steps for a TPU topology without a TPU and prints, as JSON, what is in the programs. A program of its
own, so that libtpu is loaded in no other."""

import json
import math
import os
import re
import sys

os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import equality  # noqa: E402
import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from lgm.models import build  # noqa: E402
from lgm.train.optimizer import build_optimizer  # noqa: E402
from lgm.train.state import init_state  # noqa: E402

WIDE = dict(width=256, heads=4, dtype="bfloat16")


def program(case: dict) -> dict:
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    config = equality.config_of("mmdit", **case)
    layout, places, step = equality.trainer(config, devices)
    state = jax.eval_shape(lambda: init_state(build(config.model).init(jax.random.key(0)), build_optimizer(config)))
    placed = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    batch = {k: placed(v, layout.batch) for k, v in equality.batch_of(0).items()}
    compiled = step.lower(jax.tree.map(placed, state, places), {}, batch).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    moments = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state))
    return {"kernels": text.count("tpu_custom_call"), "scattered": text.count("calls=%all-reduce-scatter"),
            "permuted": text.count("collective-permute-start"), "moments": moments,
            "host_argument": memory.host_argument_size_in_bytes, "host_temporary": on_host(text),
            "argument": memory.argument_size_in_bytes}  # fmt: skip


def on_host(text: str) -> int:
    """Bytes of what the program lays out in the host's memory (space 5) for a part of the step. The compiler's own sum
    of these is 0 in some releases."""
    found = re.findall(r'= bf16\[([\d,]+)\]\{[^}]*S\(5\)\} custom-call\(\), custom_call_target="AllocateBuffer"', text)
    return sum(2 * math.prod(map(int, dims.split(","))) for dims in found)


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        case["model"] = WIDE | case.get("model", {})
        print(json.dumps(program(case)), flush=True)
