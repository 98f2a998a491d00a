"""What is traced for a mesh is chosen for its devices."""

import jax

from lgm.parallel import make_mesh, platform


def test_the_mesh_decides_and_without_one_the_process():
    assert platform() == jax.default_backend()
    with jax.set_mesh(make_mesh({})):
        assert jax.jit(lambda x: x * (platform() == jax.devices()[0].platform))(1.0) == 1.0
