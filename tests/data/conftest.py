import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """An image folder of six pictures in three formats and two sizes."""
    root = tmp_path / "set"
    (root / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for i, suffix in enumerate(["png", "jpeg", "webp"] * 2):
        name = f"a/{i}.{suffix}"
        Image.fromarray(rng.integers(0, 256, (8, 8 + 4 * (i % 2), 3), np.uint8)).save(root / name)
        kind = "face-smiling" if i < 4 else "flag"
        tags = ["odd" if i % 2 else "even"]
        rows.append({"file_name": name, "text": f"picture {i}", "kind": kind, "n": i, "tags": tags})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root
