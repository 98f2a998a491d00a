"""Creates a train state on 8 fake CPU devices and prints, as JSON, its bytes in all and on a device."""

import json
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax  # noqa: E402

from lgm import config as schema  # noqa: E402
from lgm.models import build  # noqa: E402
from lgm.train.optimizer import build_optimizer  # noqa: E402
from lgm.train.placing import layout_of, state_shardings  # noqa: E402
from lgm.train.state import init_state  # noqa: E402

MODEL = dict(family="dit", width=128, depth=4, heads=4, classes=7)

if __name__ == "__main__":
    config = schema.from_dict(dict(name="first", model=MODEL, batch_size=8, total_images=80, mesh=dict(data=1, fsdp=8)))
    layout, model, optimizer = layout_of(config), build(config.model), build_optimizer(config)
    create = lambda: init_state(model.init(jax.random.key(0)), optimizer)
    abstract = jax.eval_shape(create)
    places = state_shardings(layout, abstract, model.logical_axes(), config)
    compiled = jax.jit(create, out_shardings=places).lower().compile()
    memory, state = compiled.memory_analysis(), compiled()
    one = jax.jit(create)()
    same = all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (state, one)), strict=True))
    device = jax.devices()[3]
    held = sum(s.data.nbytes for leaf in jax.tree.leaves(state) for s in leaf.addressable_shards if s.device == device)
    print(json.dumps({"state": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract)),
                      "held": held, "temporary": memory.temp_size_in_bytes, "same": bool(same)}))  # fmt: skip
