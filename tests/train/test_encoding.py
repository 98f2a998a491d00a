"""Latents encoded once, and training from them."""

import json

import jax
import numpy as np
import pytest
from test_bucket_runs import CONFIG

from lgm import config as schema
from lgm.cli import main
from lgm.drawing import encode_posterior
from lgm.parallel import make_layout
from lgm.system import build_system
from lgm.train import denoise, feeding

pytestmark = pytest.mark.slow


def made(tmp_path, **data):
    config = schema.from_dict({**CONFIG, "data": {**CONFIG["data"], **data}})
    return denoise.make_task(config, make_layout({"data": 1}), tmp_path)


def test_training_from_a_cache_is_training_from_pixels(tmp_path, capsys):
    """Encoded by two processes' shares, one of them cut short; the tolerance is float32's, of other batches."""
    page = tmp_path / "page.json"
    page.write_text(json.dumps(schema.to_dict(schema.from_dict(CONFIG))))
    words = ["encode", f"--config={page}", f"--out={tmp_path / 'cache'}", "--rows=8"]
    assert main([*words, "--part=0/2"]) == 0 and "not complete yet" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is unfinished|is not there"):
        made(tmp_path, cache=str(tmp_path / "cache"))
    assert main([*words, "--part=1/2"]) == 0 and "complete and verified" in capsys.readouterr().out
    shards = sorted((tmp_path / "cache").rglob("shard-*"))
    before = {path: path.stat().st_mtime_ns for path in shards}
    shards[0].unlink()
    assert main(words) == 0
    assert [path for path in shards if path.stat().st_mtime_ns == before[path]] == shards[1:]
    ours, theirs = made(tmp_path, cache=str(tmp_path / "cache")), made(tmp_path)
    for _ in range(20):
        a, b = next(ours.batches), next(theirs.batches)
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-5 if name == "latent" else 0)
    for change, line in ((dict(where={"code": "a*"}), "made with count=42 images, not "),
                         (dict(resolution=56), "is not there|made")):
        with pytest.raises(ValueError, match=line) as caught:
            made(tmp_path, cache=str(tmp_path / "cache"), **change)
        assert "\n" not in str(caught.value)
    content = bytearray(shards[-1].read_bytes())
    content[-5] ^= 1
    shards[-1].write_bytes(content)
    index = shards[-1].with_name("index.json")
    from lgm.data.cache import verify

    with pytest.raises(ValueError, match="is damaged: it is not as it was written"):
        verify(index.parent)


def test_flips_and_samples_of_the_posterior_from_a_cache_or_memory_are_those_of_pixels(tmp_path):
    data = {**CONFIG["data"], "where": {"code": ["au", "aw", "ax", "az", "be", "ch"]}, "flip": True, "resolution": 32,
            "buckets": None, "posterior": "sample", "latents": "step"}  # fmt: skip
    page, cache = tmp_path / "page.json", str(tmp_path / "cache")
    page.write_text(json.dumps(schema.to_dict(schema.from_dict({**CONFIG, "data": data}))))
    assert main(["encode", f"--config={page}", f"--out={cache}"]) == 0
    ours, theirs = made(tmp_path, **data | dict(cache=cache, latents="memory")), made(tmp_path, **data)
    memory = made(tmp_path, **data | dict(posterior="mean", latents="memory"))
    config = schema.from_dict({**CONFIG, "data": data})
    system, frozen = build_system(config)
    params = system.init(jax.random.key(0))
    turned = 0
    for step in range(6):
        a, b = next(ours.batches), next(theirs.batches)
        mean, logvar = encode_posterior(system, frozen, b["image"])
        np.testing.assert_allclose(a["latent"], mean, rtol=0, atol=1e-5)
        np.testing.assert_allclose(next(memory.batches)["latent"], mean, rtol=0, atol=1e-5)
        np.testing.assert_allclose(a["log_variance"], logvar, rtol=0, atol=1e-4)
        turned += sum(feeding.view_of(config, number).flipped for number in range(4 * step, 4 * step + 4))
    assert 0 < turned < 24
    drawn = ours.draw(a, jax.random.key(1)), theirs.draw(b, jax.random.key(1))
    values = [jax.jit(task.loss)(params, frozen, batch | some, None)[0]
              for task, batch, some in zip((ours, theirs), (a, b), drawn, strict=True)]  # fmt: skip
    assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-5)
    still = a | drawn[0] | {"posterior": np.zeros_like(a["latent"])}
    mean = float(jax.jit(ours.loss)(params, frozen, still, None)[0])
    assert abs(mean - float(values[1])) > 1e-4 * mean  # the noise of the posterior shows

    plain = {**data, "flip": False, "posterior": "mean", "latents": "memory", "cache": cache}
    made(tmp_path, **plain)  # a cache that has more will do
    page.write_text(json.dumps(schema.to_dict(schema.from_dict({**CONFIG, "data": {**plain, "cache": None}}))))
    assert main(["encode", f"--config={page}", f"--out={cache}"]) == 0
    for change, line in ((dict(flip=True), "made with flip=False, not True"),
                         (dict(posterior="sample"), "made with posterior=mean, not sample")):
        with pytest.raises(ValueError, match=line):
            made(tmp_path, **plain | change)
