"""steps.png from points.json, which holds the points of `lgm evaluate curves` for cells that were trained at two times.

    python tools/figures/few_steps/figure.py

Those of the four cells were made first; mmdit_flow was trained again, as the teacher of the others.
"""

import json
from pathlib import Path

from lgm.evaluate import figures

FOLDER = Path(__file__).parent


def main() -> None:
    """Both metrics along the steps, a line a run."""
    rows = json.loads((FOLDER / "points.json").read_text())
    (FOLDER / "steps.png").write_bytes(figures.curves(rows, "steps", ["kernel", "frechet"]))


if __name__ == "__main__":
    main()
