"""What stands in `docs/examples/`: parts of one's own have names, train, draw, resume and are found from anywhere."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lgm
from lgm import config as schema
from lgm import gaussian, losses, models, registry, sampling
from lgm.cli import main
from lgm.data import open_images
from lgm.parsing import ConfigError

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
OWN = str(EXAMPLES / "own_config.py")


@pytest.fixture(scope="module")
def own():
    """The config of the example, whose parts have names from here on."""
    return schema.load(OWN)


def test_a_config_imports_what_it_names_and_records_where_it_lies(own):
    assert own.imports == (str(EXAMPLES / "own_parts.py"),)
    assert own.family == "patch_mixer" and models.family_of(own.model) is models.family("patch_mixer")
    assert losses.loss(own.loss.name).name == "robust" and own.loss.options == {"width": 0.2}
    assert schema.from_dict(schema.to_dict(own)) == own


def test_the_solver_of_ones_own_is_of_second_order_at_least(own):
    """Of x drawn from N(0, 1) a perfect network's ODE is known: under a rectified flow |x_t| keeps its rank, and
    x_0 = x_1 (tests/sampling holds the package's own solvers to the same). Halving the step divides the error by 4
    or, as here, by more."""
    flow, x_T = gaussian.build("rectified_flow"), jnp.linspace(-2.0, 2.0, 9)[:, None]

    def predict(x, t_B):
        t = t_B[:, None]
        return (t - (1 - t)) * x / (jnp.square(1 - t) + jnp.square(t))  # E[eps - x | x_t] for unit data

    def error(steps):
        drawn = sampling.sample(sampling.solver("midpoint"), flow, "flow", predict, x_T, np.linspace(1, 0, steps + 1))
        return float(jnp.abs(drawn - x_T).max())

    assert error(8) / error(16) > 3.5


def test_the_loss_of_ones_own_is_its_closed_form(own):
    """Of a network that says 0 of x = 0: the mean of sqrt(eps^2 + w^2) - w, for standard normal eps and w = 0.2."""
    setting = losses.Setting(gaussian.build("rectified_flow"), "flow", losses.density("uniform"), None)
    loss = losses.loss("robust").make(setting, width=0.2)
    value, _ = loss(lambda x, t, cond: jnp.zeros_like(x), jnp.zeros((4, 256, 256, 1)), None, jax.random.key(0))
    eps = np.linspace(-8, 8, 200_001)
    expected = np.trapezoid((np.sqrt(eps**2 + 0.04) - 0.2) * np.exp(-(eps**2) / 2) / np.sqrt(2 * np.pi), eps)
    assert float(value) == pytest.approx(expected, rel=5e-3)  # four standard errors of 262,144 draws


def test_the_source_of_ones_own_is_opened_by_its_name(own):
    images = open_images("squares:8", {}, 64)
    assert images.captions[:2] == ["red square", "yellow square"] and len(images.captions) == 8
    with pytest.raises(ValueError, match="squares:many' needs a number"):
        open_images("squares:many", {}, 64)


def test_names_are_given_once_by_the_package_and_again_by_oneself():
    half = lambda: gaussian.rectified_flow(0.5)
    lgm.register("process", "half_shifted", half)
    lgm.register("process", "half_shifted", lambda shift=0.5: gaussian.rectified_flow(shift))
    assert gaussian.build("half_shifted", shift=2.0) is gaussian.rectified_flow(2.0)
    constant = lambda: losses.weighting("constant")
    lgm.register("weighting", "even", constant)
    for kind, name, thing, line in [
        ("process", "edm", half, "process 'edm' is lgm's own; give yours another name"),
        ("source", "parquet", half, "source 'parquet' is lgm's own"), ("solver", "a b", half, "cannot be written"),
        ("sampler", "x", half, "unknown kind of thing to register 'sampler'"),
        ("loss", "x", half, "loss 'x' must be an lgm.losses.Loss"), ("solver", "x", 1, "solver 'x' must be what makes"),
    ]:
        with pytest.raises(ValueError, match=line):
            lgm.register(kind, name, thing)
    assert ("solver", "x") not in registry._own


@pytest.mark.parametrize(("imports", "line"), [
    ("nowhere_at_all", "nowhere_at_all cannot be imported .*put its folder in PYTHONPATH, or name its file"),
    ("nowhere.py", "nowhere.py is not there; give the file's path from the config's folder"),
    ("broken.py", "broken.py cannot be imported .SyntaxError"), ("json.py", "there is another module 'json'"),
    (3, "config.imports=3 has the wrong type"),
])
def test_what_cannot_be_imported_is_one_line(imports, line, tmp_path):
    page = tmp_path / "page.py"
    listed = [imports] if isinstance(imports, str) else imports
    page.write_text(f"def get_config():\n    return dict(imports={listed!r})\n")
    (tmp_path / "broken.py").write_text("def\n")
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ConfigError, match=line) as error:
        schema.load(str(page))
    assert "\n" not in str(error.value)


def test_the_example_is_what_the_command_line_shows(own, capsys):
    assert main(["config", f"--config={OWN}", "--diff"]) == 0
    assert "--config.model.family='patch_mixer'" in capsys.readouterr().out
