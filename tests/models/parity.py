"""What tests of transformers against diffusers' share: the same random weights, gradients by name, closeness."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from lgm.interop.keymap import names_of, to_ours, to_theirs
from lgm.models import Conditioning, build

# Norm of the difference over norm of the reference, which computes in float64: what is left is our float32 rounding.
TOLERANCE = 1e-5
ONE_PARAMETER = 1e-4  # a single parameter's gradient may be a small difference of large terms


def randomized(module: torch.nn.Module, around: float = 0.0) -> torch.nn.Module:
    """Float64, every parameter random and large enough to show in the output; vectors are drawn `around` a value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            matrix = p.ndim > 1 and len(p) > 1
            scale = p[0].numel() ** -0.5 if matrix else 0.3
            p.copy_(torch.randn(p.shape, generator=generator) * scale + around * (p.ndim == 1))
    return module.double().eval()


def assert_close(ours, theirs, name, tolerance=TOLERANCE, floor=0.0):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, name
    error = np.linalg.norm(ours - theirs) - floor
    assert error <= tolerance * np.linalg.norm(theirs), (name, error / np.linalg.norm(theirs))


def differentiated(theirs: torch.nn.Module, model, rules, x, text, t, weight, **cond):
    """(prediction, gradients of the sum of it times `weight` in parameters, x and text), by the weights of `theirs`."""
    state = {name: tensor.float().numpy() for name, tensor in theirs.state_dict().items()}
    params = to_ours(rules, model.abstract(), state.__getitem__, state)

    def scalar(params, x, text):
        y = model.apply(params, x, t, Conditioning(text=text, **cond))
        return jnp.sum(y * weight), y

    gradients, y = jax.jit(jax.grad(scalar, argnums=(0, 1, 2), has_aux=True))(params, x, text)
    return y, *gradients


def assert_gradients_close(rules, ours, theirs: torch.nn.Module):
    """Of every parameter by its name, and of all as one; what nobody reads has none of theirs."""
    mine = to_theirs(rules, ours)
    reference = {name: np.zeros(p.shape) if p.grad is None else p.grad.numpy()
                 for name, p in theirs.named_parameters()}  # fmt: skip
    assert set(mine) == set(reference)
    flat = lambda tree: np.concatenate([np.asarray(tree[name], np.float64).ravel() for name in reference])
    assert_close(flat(mine), flat(reference), "the whole gradient")
    for name, gradient in reference.items():
        assert_close(mine[name], gradient, name, ONE_PARAMETER, 1e-6 * np.linalg.norm(flat(reference)))


def assert_same_parameters(config, theirs: torch.nn.Module, rules, count: int | None = None):
    """As many of one name as in `theirs`, which may be on the meta device; `count` of them, if that is known."""
    model = build(config)
    assert model.count() == sum(p.numel() for p in theirs.parameters()) == (count or model.count())
    assert set(names_of(rules, model.abstract())) == set(theirs.state_dict())
