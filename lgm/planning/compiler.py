"""`python -m lgm.planning.compiler FOLDER` traces and compiles the task that `lgm.planning.program` has put there.

It goes on to the end, machine code included, unless it is ended before.
"""

import pickle
import sys
from pathlib import Path

from lgm.files import write_atomically
from lgm.planning import gpus
from lgm.planning.program import FAILED, FINISHED, TASK, TRACED, OutOfMemory, out_of_memory, trace
from lgm.planning.topology import network_of, open_devices
from lgm.train.placing import layout_of


def main(folder: Path) -> None:
    """Write what is known before, then have the compiler write its program; an error is written instead of raised."""
    try:
        config, topology = pickle.loads((folder / TASK).read_bytes())
        layout = layout_of(config, open_devices(topology)[0])
        program, traced = trace(config, layout, network_of(topology, layout.mesh.devices.flat))
        write_atomically(folder / TRACED, pickle.dumps(program))
        if sum(program.sizes.values()) > (memory := topology.chip.share.hbm):
            raise OutOfMemory(0.0, memory)  # whatever the compiler would make of it
        told = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}
        if topology.gpu and not topology.stands_in:
            told |= gpus.options(topology.chip.name)
        write_atomically(folder / FINISHED, traced.lower().compile(compiler_options=told).as_text().encode())
    except Exception as error:
        known = error if isinstance(error, OutOfMemory) else out_of_memory(str(error))
        failed = known or (error if type(error).__module__.startswith("lgm.") else RuntimeError(str(error)[:2000]))
        write_atomically(folder / FAILED, pickle.dumps(failed))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
