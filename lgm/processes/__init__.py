"""Runs of several processes: found from the cluster, watched by a supervisor each, stopped together with a name.

On a cluster each process of `lgm train` is a supervisor. It finds its place (`place`), meets the others over TCP within
a bound (`hub`), starts the training process proper as its child and watches it (`supervise`); the child is a member
(`member`). What a training process cannot do, say why it died or notice that it hangs, its supervisor does: a kill, a
lost machine or a late one stops all processes with one line that names the process and its host.

With `--elastic` a loss does not end the run: the supervisors that are left meet again (`regroup`) and start it anew
with fewer processes (`elastic`).

The supervisors import no JAX and hold no device.
"""

from lgm.processes.elastic import read_least, supervise
from lgm.processes.rank import Place, find
from lgm.processes.timeouts import LOST, PREEMPTED, Bounds

__all__ = ["LOST", "PREEMPTED", "Bounds", "Place", "find", "read_least", "supervise"]
