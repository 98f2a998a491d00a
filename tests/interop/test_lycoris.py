"""LyCORIS' own modules, their files merged here: the weights are those that the modules compute with."""

import itertools

import numpy as np
import pytest
import torch
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from test_lora_kinds import merged

TOLERANCE = 2e-5  # float32 sums of 12 x 9 products of numbers below 3
LAYERS = {"matrix": lambda: torch.nn.Linear(12, 18), "convolution": lambda: torch.nn.Conv2d(12, 18, 3),
          "convolution of 1": lambda: torch.nn.Conv2d(12, 18, 1)}  # fmt: skip
KINDS = {"locon": (LoConModule, {}), "loha": (LohaModule, {}), "lokr": (LokrModule, {}),
         "lokr in two": (LokrModule, dict(decompose_both=True, lora_dim=1)),
         "lokr by 3": (LokrModule, dict(factor=3)), "lokr whole": (LokrModule, dict(full_matrix=True)),
         "lokr unbalanced": (LokrModule, dict(unbalanced_factorization=True))}  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_lycoris_computes_with_is_what_is_merged(tmp_path, kind, layer):
    torch.manual_seed(0)
    base, (module, words) = LAYERS[layer](), KINDS[kind]
    for lengths, stable, core, learned in itertools.product((None, True, False), *[(False, True)] * 3):
        options = dict(lora_dim=3, alpha=2, rs_lora=stable, use_tucker=core, use_scalar=learned,
                       weight_decompose=lengths is not None, wd_on_out=lengths is not False) | words  # fmt: skip
        made = module("lora_unet_x_y", base, **options)
        if stable and getattr(made, "use_w1", False) and made.use_w2:
            continue  # its file does not tell: the rank is in no tensor, and LyCORIS reads it as unscaled
        with torch.no_grad():
            for name, part in made.named_parameters():
                positive = name in ("dora_scale", "scalar")
                part.copy_(0.5 + torch.rand_like(part) if positive else torch.randn_like(part) / 3)
            if module is LoConModule:
                change = made.make_weight() * made.scale
            else:  # what forward adds; get_merged_weight of 4.1 takes the scale twice
                change = made.get_weight(made.shape) * made.scalar
            expected = base.weight + change.reshape(base.weight.shape)
            expected = made.apply_weight_decompose(expected) if made.wd else expected
        lora = {f"lora_unet_x_y.{name}": tensor.detach().numpy() for name, tensor in made.custom_state_dict().items()}
        found = merged(tmp_path, {"x.y.weight": base.weight.detach().numpy()}, lora, "unet").get("x.y.weight")
        np.testing.assert_allclose(found, expected.numpy(), atol=TOLERANCE, err_msg=str(options))


@pytest.mark.parametrize("base", [torch.nn.LayerNorm(6), torch.nn.GroupNorm(2, 6)], ids=["layer", "group"])
def test_norms_that_lycoris_trains_along_are_changed(tmp_path, base):
    """Their files' w_norm and b_norm, which have no alpha."""
    torch.manual_seed(0)
    made = NormModule("lora_unet_x_norm", base)
    with torch.no_grad():
        for part in (base.weight, base.bias, made.w_norm, made.b_norm):
            part.copy_(torch.randn_like(part))
    weight, bias = made.make_weight()
    plain = {f"x.norm.{name}": part.detach().numpy() for name, part in base.state_dict().items()}
    lora = {f"lora_unet_x_norm.{name}": getattr(made, name).detach().numpy() for name in ("w_norm", "b_norm")}
    found = merged(tmp_path, plain, lora, "unet")
    np.testing.assert_allclose(found.get("x.norm.weight"), weight.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.get("x.norm.bias"), bias.detach().numpy(), rtol=1e-6)
