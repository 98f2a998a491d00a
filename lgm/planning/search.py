"""Which mesh, remat policy, pieces of a batch and group of blocks: what divides is put in order by a closed form,
compiled, and ranked.

All are compiled as far as their schedule; the fastest by it is compiled with larger groups too, and the fastest of all
are then compiled to the end and ranked by both meters.
"""

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence

from lgm.config import Config
from lgm.models import build, family_of
from lgm.parallel import AXES
from lgm.parsing import ConfigError, as_dict
from lgm.planning.advice import ROOM, smallest
from lgm.planning.plan import KINDS, Memory, Plan, layout_on, plan
from lgm.planning.topology import Topology, open_devices
from lgm.train.placing import check_latents

# remat policy -> work of a step in forward passes: backward alone is two more, recomputing up to one
WORK = {"none": 3.0, "dots": 3.2, "attention": 3.8, "full": 4.0}
PIECES = (1, 2, 4)  # of a batch (config.accumulate); beyond the config's own
PIECE = 0.02  # of a step that one more costs: weights are read, and partial sums are kept, once more
GROUPS = (2, 4)  # times the config's blocks in an iteration of the scan
WIDEST = {"context": 8, "tensor": 8}  # beyond that the exchange in every block outweighs what it saves
CONTENDERS = 2  # compiled to the end
BYTES_A_WORKER = 4e9  # of this machine's memory, for the compiler


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One thing to try, and the seconds and bytes a chip that a closed form gives it."""

    config: Config
    seconds: float
    state: float
    images: float  # a chip at a time, so that what keeps more of them is known not to fit either


@dataclasses.dataclass(frozen=True)
class Search:
    """Plans from the fastest that fits to those that do not; how many candidates divide and were not compiled."""

    plans: tuple[Plan, ...]
    untried: int

    @property
    def best(self) -> Plan | None:
        """The fastest that fits."""
        return next((p for p in self.plans if p.fits), None)


def search(config: Config, topology: Topology, limit: int = 10, jobs: int | None = None,
           report: Callable[[Plan], None] = lambda plan: None, quick: bool = False) -> Search:
    """Compile up to `limit` candidates, `jobs` at a time (as many as cores and memory allow), and rank them.

    Unless `quick`, the two fastest that fit get machine code too; one that cannot makes place for the next.

    What is known after one is not tried: a policy that keeps more where one that kept less did not fit, and one that
    recomputes more, or takes the batch in more pieces, where one that did less did. Raises ConfigError where no mesh
    divides.
    """
    left = sorted(candidates(config, topology), key=lambda c: c.seconds)
    if not left:
        raise ConfigError(f"no mesh of {topology.devices} devices divides config.batch_size={config.batch_size}; give "
                          f"a multiple of {topology.devices}")
    least, memory = min(c.state for c in left), topology.chip.share.hbm
    left = [c for c in left if c.state < memory]
    if not left:
        chips = math.ceil(topology.chips * least / (ROOM * memory))
        raise ConfigError(f"{topology} cannot hold {config.name}: weights, optimizer and EMA take {least / 1e9:.1f} GB "
                          f"of a chip's {memory / 1e9:.1f} on the best of meshes; the smallest slice that holds them "
                          f"is {smallest(topology, chips)}")
    plans: list[tuple[Plan, Config]] = []
    jobs = jobs or _workers()
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:  # a plan compiles in a process of its own
        running: dict[concurrent.futures.Future, Candidate] = {}
        most = limit - len(GROUPS) if limit > 2 * len(GROUPS) else limit
        while (left and len(plans) + len(running) < most) or running:
            while left and len(running) < jobs and len(plans) + len(running) < most:
                candidate = left.pop(0)
                running[pool.submit(_planned, candidate.config, topology)] = candidate
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                candidate, found = running.pop(future), future.result()
                plans.append((found, candidate.config))
                report(found)
                left = [c for c in left if not _settled(c, candidate, found)]
        best = min((pair for pair in plans if pair[0].fits), key=lambda pair: pair[0].step, default=None)
        grouped = list(_grouped(best[1]))[: limit - len(plans)] if best else []
        for config, found in zip(grouped, pool.map(lambda config: _planned(config, topology), grouped), strict=True):
            plans.append((found, config))
            report(found)
    order = lambda p: (not p.fits, p.cycles is None, p.step or p.memory.total or float("inf"))
    plans.sort(key=lambda pair: order(pair[0]))
    if not (quick or topology.gpu):
        plans = _finished(plans, topology, jobs, report)
    return Search(tuple(sorted((found for found, _ in plans), key=order)), len(left))


def _grouped(config: Config) -> Iterator[Config]:
    """A config with more blocks in an iteration of the scan."""
    group, depth = as_dict(config.model).get("group"), family_of(config.model).bulk(config.model)[1]
    for times in GROUPS if group else ():
        if group * times <= depth:
            yield dataclasses.replace(config, model=dataclasses.replace(config.model, group=group * times))


def _finished(plans: list[tuple[Plan, Config]], topology: Topology, jobs: int,
              report: Callable[[Plan], None]) -> list[tuple[Plan, Config]]:
    """Plans, given with the fastest first, of which so many as can have code are compiled to the end."""
    done, left = [], [pair for pair in plans if pair[0].fits]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        while left and (missing := CONTENDERS - sum(found.fits for found, _ in done)) > 0:
            now, left = left[:missing], left[missing:]
            for found, pair in zip(pool.map(lambda pair: _planned(pair[1], topology, False), now), now, strict=True):
                done.append((found, pair[1]))
                report(found)
    return done + left + [pair for pair in plans if not pair[0].fits]


def _planned(config: Config, topology: Topology, quick: bool = True) -> Plan:
    """A candidate's plan; one that the compiler fails on, for another reason than memory, does not fit either."""
    try:
        return plan(config, topology, quick=quick)
    except RuntimeError as error:
        mesh = {axis: size for axis, size in as_dict(config.mesh).items() if axis in AXES and size > 1}
        nothing = Memory(*(0.0,) * len(KINDS), capacity=topology.chip.hbm)
        return Plan(config.name, str(topology), topology.chip.name, topology.chips, mesh, _remat(config),
                    config.batch_size, False, nothing, reason=f"not compiled: {' '.join(str(error).split())[:200]}")


def _settled(other: Candidate, tried: Candidate, found: Plan) -> bool:
    """Whether what was found says enough of another candidate."""
    more, than = WORK.get(_remat(other.config), 0.0), WORK.get(_remat(tried.config), 0.0)
    if found.fits:
        fewer = other.config.accumulate < tried.config.accumulate
        return other.config.mesh == tried.config.mesh and more >= than and not fewer
    if not found.memory.total:
        return False  # it failed for another reason
    return more <= than and other.images >= tried.images and other.state >= tried.state


def candidates(config: Config, topology: Topology) -> Iterator[Candidate]:
    """Every mesh of data, fsdp, context and tensor that divides devices, batch, heads and latents, with each policy and
    the batch in as many pieces as divide it."""
    devices, _ = open_devices(topology)
    count, stage = topology.devices, config.mesh.stage
    policies = list(WORK) if _remat(config) else [""]
    for sizes in meshes(count, stage):
        mesh = dataclasses.replace(config.mesh, stage=stage, dcn={}, **sizes)
        if topology.slices > 1 and mesh.data % topology.slices:
            continue  # only sums of gradients should cross between slices
        tried = dataclasses.replace(config, mesh=mesh)
        try:
            layout = layout_on(tried, topology, devices)
            check_latents(tried, layout, *(side // 8 for side in config.data.size))
        except ConfigError:
            continue
        for remat in policies:
            model = dataclasses.replace(config.model, remat=remat) if remat else config.model
            for pieces in PIECES:
                again = dataclasses.replace(tried, model=model, accumulate=config.accumulate * pieces)
                if config.batch_size % (layout.batch_shares * again.accumulate) == 0:
                    yield estimated(again, topology)


def meshes(count: int, stage: int = 1) -> Iterator[dict[str, int]]:
    """All sizes of the other axes that multiply to `count` devices with `stage`."""
    divisors = lambda n: [d for d in range(1, n + 1) if n % d == 0]
    for tensor in divisors(count // stage):
        for context in divisors(count // stage // tensor):
            if tensor > WIDEST["tensor"] or context > WIDEST["context"]:
                continue
            for fsdp in divisors(count // stage // tensor // context):
                yield dict(data=count // stage // tensor // context // fsdp, fsdp=fsdp, context=context, tensor=tensor)


def estimated(config: Config, topology: Topology) -> Candidate:
    """A closed form to order candidates by, not to believe: work, gathered weights, summed gradients, and activations
    exchanged in every block by tensor and context parallelism."""
    chip, mesh = topology.chip.share, config.mesh
    params = build(config.model).count()
    split = mesh.fsdp * mesh.context * mesh.tensor * mesh.stage
    images = config.batch_size / (mesh.data * mesh.fsdp * mesh.stage)
    pieces = config.accumulate
    tokens = math.prod(config.data.size) / 16**2
    width, blocks = family_of(config.model).bulk(config.model)
    work = WORK.get(_remat(config), 3.0) * 2.2 * params * tokens * config.batch_size / topology.devices
    rate = 2 * chip.link
    passes = pieces * (3 if WORK.get(_remat(config), 3.0) > 3 else 2)
    gathers = passes * 2.0 * params / mesh.tensor * (mesh.fsdp > 1) / rate
    sums = 4.0 * params * (1 / mesh.tensor if split == mesh.tensor else 1 / split) * (mesh.data > 1)
    sums /= chip.dcn if topology.slices > 1 else rate
    exchanged = images * tokens * width * 2.0 * blocks * 8 * ((mesh.tensor > 1) + 0.5 * (mesh.context > 1))
    work *= 1 + PIECE * (pieces - 1)
    seconds = max(work / chip.flops, gathers) + sums + exchanged / mesh.context / rate
    moments = 0 if config.optimizer.offload else 8 if config.optimizer.name == "adamw" else 4  # Muon has one
    state = (2.0 if config.lora else 8.0 + moments) * params / split
    penalty = 1e3 if state > 0.9 * chip.hbm else 0.0  # will not fit: last
    # shards that are not whole tiles of 16 rows are exchanged the slow way
    ragged = 0.3 * seconds if width % (16 * mesh.fsdp) else 0.0
    return Candidate(config, seconds + ragged + penalty, state, images / (mesh.context * mesh.tensor * pieces))


def _remat(config: Config) -> str:
    return family_of(config.model).remat(config.model)


def _workers() -> int:
    """Compilers that fit this machine's cores and free memory."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else BYTES_A_WORKER
    return max(1, min(os.cpu_count() or 1, int(free // BYTES_A_WORKER)))


def what_fits(plans: Sequence[Plan]) -> str:
    """One line for a search in which nothing fits: what the nearest lacks and what would do."""
    least = min(plans, key=lambda p: p.memory.total or float("inf"))
    mesh = " x ".join(f"{axis}={size}" for axis, size in least.mesh.items()) or "one device"
    return f"nothing that was tried fits; the nearest has {mesh} and remat {least.remat}: {least.reason}"
