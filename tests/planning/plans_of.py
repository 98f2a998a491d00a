"""Plans cases given as JSON, [[config, topology, slices, overrides, quick], ...], and prints a plan as JSON a line. A
program of its own, so that libtpu is loaded in no other."""

import json
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

from lgm import config as schema  # noqa: E402
from lgm.planning import plan  # noqa: E402
from lgm.planning.page import as_json, page  # noqa: E402

if __name__ == "__main__":
    for config, topology, slices, overrides, quick in json.loads(sys.argv[1]):
        found = plan(schema.load(config, [tuple(pair) for pair in overrides]), topology, slices, quick)
        print(json.dumps(as_json(found) | {"page": page(found)}), flush=True)
