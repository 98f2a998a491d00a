"""Feature networks against their PyTorch originals with the same weights, and what does not change features."""

from importlib import resources

import numpy as np
import pytest
import torch

from lgm.evaluate.features import load_features
from lgm.parsing import ConfigError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)


@pytest.mark.slow
def test_efficientnet_is_its_port_to_torch():
    """Features to 1e-4 of the largest, with the weights that ship, and the same alone as beside others."""
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image
    from safetensors.torch import load_file

    ours = load_features("efficientnet_lite0")
    found = ours.features(IMAGES)
    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    weights = load_file(str(resources.files("lgm.weights") / "efficientnet_lite0" / "model.safetensors"))
    missing = theirs.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
    assert not missing.unexpected_keys and all("num_batches" in name for name in missing.missing_keys)
    pixels = [np.asarray(Image.fromarray(image).resize((224, 224), Image.BICUBIC)) for image in IMAGES]
    x = (torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        expected, classes = theirs.extract_features(x).mean((2, 3)).numpy(), theirs(x).softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())
    np.testing.assert_allclose(ours.probabilities(found), classes, atol=1e-5)
    np.testing.assert_array_equal(ours.features(IMAGES[1:2])[0], found[1])
    assert ours.dim == 1280


def test_names_that_say_nothing_are_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for name, words in [("efficientnet", "did you mean 'efficientnet_lite0'"), ("resnet:x", "no kind that is known"),
                        (str(tmp_path), "model_type='bert'"), (str(tmp_path / "none"), "is neither")]:
        with pytest.raises(ConfigError, match=words) as error:
            load_features(name)
        assert "\n" not in str(error.value)
