"""Feature networks against their PyTorch originals with the same weights, and what does not change features."""

from importlib import resources

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lgm.data import open_images
from lgm.evaluate import distance, features, metrics
from lgm.evaluate.features import load_features
from lgm.parsing import ConfigError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)


@pytest.fixture
def small_batches(monkeypatch):
    """Batches of no more images than the tests have."""
    monkeypatch.setattr(features, "BATCH", 4)


@pytest.mark.slow
def test_efficientnet_is_its_port_to_torch(small_batches):
    """Features to 1e-4 of the largest, with the weights that ship, and the same alone as beside others."""
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image

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


@pytest.fixture(scope="module")
def inception(package, tmp_path_factory):
    """(torch-fidelity's network with random weights, a file of them)."""
    theirs, folder = package("torch_fidelity.feature_extractor_inceptionv3"), tmp_path_factory.mktemp("inception")

    class Unread(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_):
            """Stay as made."""

    torch.save({}, folder / "none.pth")
    network = Unread("random", ["2048", "logits_unbiased"], feature_extractor_weights_path=folder / "none.pth")
    draw = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 4:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=draw)
        elif "running_var" in name or "bn.weight" in name:
            tensor.uniform_(0.7, 1.4, generator=draw)
        elif tensor.ndim == 1:
            tensor.normal_(0, 0.1, generator=draw)
    save_file(network.state_dict(), folder / "weights.safetensors")
    return network, folder / "weights.safetensors"


@pytest.mark.slow
def test_inception_is_torch_fidelitys(inception, small_batches):
    """Features to 1e-4 of the largest, FID to 1e-3, from images of 8 bits on: resizing, scaling and arithmetic."""
    theirs, path = inception
    ours = load_features(path)
    dark = (IMAGES[[0, 1, 2, 2]] * np.array([0.3, 0.5, 0.7, 0.2])[:, None, None, None]).astype(np.uint8)
    bright = np.concatenate([IMAGES, 255 - dark[:1]])
    found, expected = [], []
    for images in (bright, dark):
        found.append(ours.features(images))
        features_2048, logits = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
        expected.append(features_2048.numpy())
        np.testing.assert_allclose(found[-1], expected[-1], atol=1e-4 * expected[-1].max())
        np.testing.assert_allclose(ours.probabilities(found[-1]), logits.double().softmax(1).numpy(), rtol=1e-3)
    x, y = (part.astype(np.float64) - part.mean(0) for part in expected)
    gap = expected[0].mean(0) - expected[1].mean(0)
    # of 4 images each the trace of the root is a sum of singular values of what 4 x 4 products hold
    fid = gap @ gap + ((x**2).sum() + (y**2).sum() - 2 * np.linalg.norm(x @ y.T, "nuc")) / 3
    assert distance.frechet(*found) == pytest.approx(fid, rel=1e-3)
    assert ours.name == "inception:weights.safetensors" and ours.input_size == 299
    others = {load_features(f"{kind}:{path}").hash for kind in ("inception_torch", "inception_clean")}
    assert len(others | {ours.hash}) == 3  # one network prepared in three ways


def test_names_that_say_nothing_are_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for name, words in [("efficientnet", "did you mean 'efficientnet_lite0'"), ("resnet:x", "no kind that is known"),
                        (str(tmp_path), "model_type='bert'"), (str(tmp_path / "none"), "is neither")]:
        with pytest.raises(ConfigError, match=words) as error:
            load_features(name)
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_emoji_model_finds_captions_of_pictures_it_has_not_seen(monkeypatch):
    """Of 48 held-out pictures among their captions: most of them, and more the better the pictures."""
    monkeypatch.setattr(features, "BATCH", 24)
    images = open_images("emoji64", {"split": "heldout"}).take(range(0, 192, 4))
    ours, pictures = load_features("emoji_contrastive"), images.images()
    captions = ours.text(images.captions)
    found = ours.features(pictures)
    noisy = np.clip(pictures + np.random.default_rng(0).normal(0, 60, pictures.shape), 0, 255).astype(np.uint8)
    noise = ours.features(noisy)
    recall = lambda x: metrics.retrieval(x, captions)["image_to_text_R@1"]
    assert recall(found) > 0.7 > recall(noise)
    assert metrics.clip_score(found, captions).mean() > metrics.clip_score(noise, captions).mean()
