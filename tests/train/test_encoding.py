"""Latents encoded once, and training from them."""

import json

import numpy as np
import pytest
from test_bucket_runs import CONFIG

from lgm import config as schema
from lgm.cli import main
from lgm.parallel import make_layout
from lgm.train import denoise

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
