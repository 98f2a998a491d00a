"""How arrays are cut by the table of rules, how slices and nodes lie in a mesh, and what is said of impossible ones."""

import dataclasses
import types
import warnings

import jax
import pytest
from jax.sharding import PartitionSpec as P

from lgm import config as schema
from lgm.cli import main
from lgm.models import build, classes
from lgm.models.listing import presets
from lgm.parallel import AXES, RULES, batch_part, make_layout, make_mesh, partition, with_overrides
from lgm.parsing import ConfigError
from lgm.planning import read_topology
from lgm.planning.topology import open_devices
from lgm.train.placing import check_latents, layout_of


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a device as a mesh looks at."""

    id: int
    slice_index: int = 0
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "fake"
    client: object = None
    core_on_chip: int = 0

    @property
    def coords(self):
        return self.id % 4, self.id // 4, 0

    def addressable_memories(self):
        return [types.SimpleNamespace(kind="device")]


def sizes(**given):
    return dict.fromkeys(AXES, 1) | given


def test_a_dimension_takes_what_divides_it_and_another_what_is_left():
    mlp = ("embed", "mlp")
    assert partition((64, 256), mlp, sizes(fsdp=8, tensor=4)) == P("fsdp", "tensor")
    assert partition((64, 256), mlp, sizes(fsdp=8)) == P("fsdp", None)
    assert partition((60, 256), mlp, sizes(fsdp=8)) == P(None, "fsdp")  # 60 does not divide: the other side does
    assert partition((64, 250), mlp, sizes(fsdp=8, tensor=4)) == P(("fsdp", "tensor"), None)
    assert partition((64, 256), mlp, sizes(fsdp=8, context=2)) == P(("fsdp", "context"), None)
    assert partition((3, 64, 256), ("layers", *mlp), sizes(fsdp=8, stage=2)) == P(None, ("fsdp", "stage"), None)
    assert partition((4, 64, 256), ("layers", *mlp), sizes(fsdp=8, stage=2)) == P("stage", "fsdp", None)
    assert partition((16, 64, 8), ("batch", "tokens", None), sizes(data=2, fsdp=4, context=8)) == \
        P(("data", "fsdp"), "context", None)  # fmt: skip


def test_a_pod_of_2048_splits_a_width_of_3072_by_a_product_of_axes():
    mesh = sizes(fsdp=256, data=8)
    assert partition((3072, 12288), ("embed", "mlp"), mesh) == P("fsdp", None)
    rules = with_overrides({"mlp": ["tensor", "data"], "embed": "fsdp"})
    assert partition((3072, 12288), ("embed", "mlp"), mesh, rules) == P("fsdp", "data")  # 2048 parts
    rules = with_overrides({"embed": ["fsdp", "data"], "mlp": None})
    assert partition((4096, 12288), ("embed", "mlp"), mesh, rules) == P(("fsdp", "data"), None)


WIDE = [presets()[name] for name in ("dit/dit_xl2", "mmdit/sd35_medium", "flux/flux_dev", "t5/t5_v1_1_xxl")] + [
    classes("unet")[0](block_channels=(320, 640), layers_per_block=1, transformer_depth=(0, 2), heads=(5, 10),
                       text_dim=2048, pooled_dim=1280, micro_ids=6)]  # fmt: skip


@pytest.mark.parametrize("model_config", WIDE, ids=lambda c: type(c).__name__)
def test_no_large_parameter_of_a_published_width_is_left_whole(model_config):
    model = build(model_config)
    axes = jax.tree.leaves(model.logical_axes(), is_leaf=lambda leaf: isinstance(leaf, tuple))
    for leaf, names in zip(jax.tree.leaves(model.abstract()), axes, strict=True):
        assert {*names} <= {*RULES, None}
        assert leaf.size < 1 << 17 or partition(leaf.shape, names, sizes(fsdp=16)) != P(*(None,) * leaf.ndim)
        if leaf.size >= 1 << 20 and "vocab" not in names:  # and tensor parallelism splits every matrix, too
            assert "tensor" in str(partition(leaf.shape, names, sizes(tensor=2)))


def test_slices_are_the_slow_part_of_the_axis_that_crosses_them():
    devices = [Device(i, slice_index=i // 8) for i in range(32)]
    slices = lambda mesh, axis: [[d.slice_index for d in row] for row in mesh.devices.swapaxes(
        AXES.index(axis), -1).reshape(-1, mesh.shape[axis])]  # fmt: skip
    mesh = make_mesh({"data": 4, "fsdp": 8}, devices)
    assert set(map(tuple, slices(mesh, "data"))) == {(0, 1, 2, 3)}
    assert all(len(set(row)) == 1 for row in slices(mesh, "fsdp"))
    mesh = make_mesh({"data": 2, "fsdp": 16}, devices, {"fsdp": 2, "data": 2})
    assert set(map(tuple, slices(mesh, "fsdp"))) == {(0,) * 8 + (1,) * 8, (2,) * 8 + (3,) * 8}
    assert {row[0] // 2 for row in slices(mesh, "data")} == {0}
    nodes = [Device(i, process_index=i // 8) for i in range(16)]  # GPUs, whose slices are nodes
    mesh = make_mesh({"fsdp": 2, "tensor": 8}, nodes)
    assert all(len({d.process_index for d in row}) == 1 for row in mesh.devices.reshape(2, 8))
    shuffled = make_mesh({"fsdp": 2, "tensor": 8}, nodes[::-1])
    assert all(len({d.process_index for d in row}) == 1 for row in shuffled.devices.reshape(2, 8))


def test_hosts_of_one_tpu_slice_are_no_slices_of_their_own():
    hosts = [Device(i, process_index=i // 4, platform="tpu") for i in range(8)]
    assert make_mesh({"tensor": 8}, hosts).shape["tensor"] == 8  # though no host has eight chips


@pytest.mark.parametrize(("mesh", "dcn", "line"), [
    (dict(data=3), {}, r"config.mesh \(data=3\) does not fit 8 devices, which 3 does not divide; make .* divide 8"),
    (dict(data=2, tensor=2), {}, "which 4 do not use up; leave data=-1 for the rest"),
    (dict(data=-1, fsdp=-1), {}, "has -1 for data and fsdp; give it to one of them"),
    (dict(fsdp=0), {}, "config.mesh.fsdp=0 must be at least 1"),
    (dict(data=8), {"dta": 2}, "config.mesh.dcn.dta is no mesh axis; there are data, fsdp"),
    (dict(data=8), {"data": 3}, "config.mesh.dcn.data=3 does not divide data=8"),
    (dict(data=8), {"data": "2"}, "config.mesh.dcn.data='2' does not divide data=8"),
    (dict(data=8), {"data": 4}, "must multiply to the number of slices or nodes, 2"),
])  # fmt: skip
def test_impossible_meshes_are_one_line_that_says_what_would_do(mesh, dcn, line):
    with pytest.raises(ValueError, match=line) as error:
        make_mesh(mesh, [Device(i, slice_index=i // 4) for i in range(8)], dcn)
    assert "\n" not in str(error.value)


def test_processes_feed_the_parts_of_a_batch_that_their_devices_take():
    nodes = [Device(i, process_index=i // 4) for i in range(16)]

    def parts(dcn=None, **mesh):
        layout = make_layout({"data": 1} | mesh, nodes, dcn=dcn)
        return [batch_part(layout, process) for process in range(4)]

    assert parts(data=4, fsdp=4) == parts(fsdp=16) == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert parts(data=2, tensor=8, dcn={"data": 2, "tensor": 2}) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert parts(tensor=16, dcn={"tensor": 4}) == [(0, 1)] * 4


def config(mesh=None, model=None, **changes):
    if (model or {}).get("family") != "unet":
        model = dict(family="mmdit", width=64, depth=4, heads=4, text_dim=8, pooled_dim=8) | (model or {})
    return schema.from_dict(dict(name="x", batch_size=16, total_images=160, model=model, mesh=mesh or {}) | changes)


DEVICES = [Device(i) for i in range(8)]


UNET = dict(family="unet", block_channels=[32, 96], transformer_depth=[0, 1], heads=[1, 6], text_dim=8)


@pytest.mark.parametrize(("values", "line"), [
    (dict(mesh=dict(rules={"embd": "fsdp"})), "config.mesh.rules.embd is no logical axis; there are layers, embed"),
    (dict(mesh=dict(rules={"embed": "fdsp"})), "rules.embed='fdsp': 'fdsp' is no mesh axis; there are data"),
    (dict(mesh=dict(rules={"embed": 8})), "rules.embed=8 is no mesh axis; give one, a list of them, or None"),
    (dict(mesh=dict(rules={"embed": ["fsdp", "fsdp"]})), "names a mesh axis twice"),
    (dict(mesh=dict(rules={"height": "tensor"})), "rules.height='tensor': rows are split over context alone"),
    (dict(batch_size=12), "config.batch_size=12 is not divisible by the mesh's data = 8 shares; give a multiple of 8"),
    (dict(accumulate=4), "data = 8 shares in each of config.accumulate=4 pieces; give a multiple of 32"),
    (dict(mesh=dict(stage=2, microbatches=8)), "does not divide into 8 micro-batches .* give a multiple of 32"),
    (dict(mesh=dict(tensor=8)), "config.mesh.tensor=8 does not divide config.model.heads=4; give one of 1, 2, 4"),
    (dict(mesh=dict(context=8), attention="ulysses"), "to divide by tensor x context = 8; make that one of 1, 2, 4"),
    (dict(optimizer=dict(offload=True)), "offload=True needs pinned host memory, which gpu devices do not offer"),
    (dict(mesh=dict(tensor=4), model=UNET), r"config.mesh.tensor=4 does not divide .*\(1, 6\); give one of 1, 2, 3, 6"),
])  # fmt: skip
def test_an_impossible_layout_is_one_line_that_names_the_key(values, line):
    with pytest.raises(ValueError, match=line) as error:
        layout_of(config(**values), DEVICES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("values", "line"), [
    (dict(accumulate=3), "config.accumulate=3 does not divide config.batch_size=16"),
    (dict(mesh=dict(microbatches=0)), "config.mesh.microbatches=0 must be at least 1"),
    (dict(attention="flash"), "config.attention='flash' is not one of 'auto', 'xla', 'cudnn', 'splash', 'ring'"),
    (dict(model=dict(remat="some")), "config.model.remat='some' is not one of 'none', 'full', 'attention', 'dots'"),
])  # fmt: skip
def test_an_impossible_key_is_refused_before_devices_are_asked_for(values, line):
    with pytest.raises(ConfigError, match=line):
        config(**values)


def test_a_context_that_cannot_split_the_latents_is_refused():
    made = config(dict(context=8))
    layout = layout_of(made, DEVICES)
    check_latents(made, layout, 8, 8)
    with pytest.raises(ConfigError, match="config.mesh.context=8 does not divide the 9 image tokens; give a divisor"):
        check_latents(made, layout, 6, 6)


def test_lgm_train_on_an_impossible_mesh_is_one_line_and_leaves_nothing(tmp_path, tiny_config, capsys):
    workdir = tmp_path / "run"
    count = jax.device_count() + 1
    assert main(["train", f"--config={tiny_config}", f"--workdir={workdir}", f"--config.mesh.fsdp={count}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"fsdp={count}) does not fit {jax.device_count()} devices" in line and not workdir.exists()


@pytest.mark.libtpu
def test_chips_that_are_left_of_a_slice_make_a_mesh_that_says_it_is_slower():
    devices, _ = open_devices(read_topology("v5e:4x4"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_mesh({"fsdp": 16}, devices).size == 16
        assert make_mesh({"fsdp": 8}, devices[:8]).size == 8  # two hosts side by side
    with pytest.warns(UserWarning, match="the 12 TPU devices fill no box of their slice"):
        left = make_mesh({"data": 3, "fsdp": 4}, devices[:12])
    assert list(left.devices.flat) == list(devices[:12])
