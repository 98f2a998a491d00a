"""Build what a package index takes, from the last commit, with the README's links pointing where its files are read.

    pip install build twine
    python tools/release.py --address=https://github.com/OWNER/lgm --out=dist

A page of an index has none of the repository's files beside it: pictures come from ADDRESS/raw/vVERSION, pages and
folders from ADDRESS/blob/vVERSION, the tag that the release is about to get (GitHub and GitLab answer both). The commit
itself keeps its relative links. Exits with 1 where the version is not the same in `pyproject.toml`, `lgm.__version__`
and CHANGELOG.md.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from io import BytesIO
from pathlib import Path

PICTURES = (".png", ".svg", ".gif", ".jpg", ".webp")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")  # the target of [words](target), but addresses and anchors


def absolute(text: str, address: str, tag: str) -> str:
    """Markdown whose relative links lead to `address` at `tag`."""
    kind = lambda path: "raw" if path.endswith(PICTURES) else "blob"
    return LINK.sub(lambda found: f"{address.rstrip('/')}/{kind(found[1])}/{tag}/{found[1]}", text)


def disagreement(top: Path) -> str | None:
    """What is wrong with the version of the tree at `top`, or None."""
    version = tomllib.loads((top / "pyproject.toml").read_text())["project"]["version"]
    stated = re.search(r'__version__ = "(.+)"', (top / "lgm/__init__.py").read_text())
    if stated is None or stated[1] != version:
        return f"lgm/__init__.py: __version__ is not pyproject.toml's {version}"
    if not re.search(rf"^## {re.escape(version)}\b", (top / "CHANGELOG.md").read_text(), re.MULTILINE):
        return f'CHANGELOG.md has no part headed "## {version}"'
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True, help="of the repository, as a browser opens it")
    parser.add_argument("--out", default="dist", help="folder of the sdist and the wheel (default: dist)")
    args = parser.parse_args()
    top = Path(__file__).resolve().parents[1]
    tree = subprocess.run(["git", "archive", "--format=tar", "HEAD"], cwd=top, check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory() as made:
        with tarfile.open(fileobj=BytesIO(tree)) as archive:
            archive.extractall(made, filter="data")
        if wrong := disagreement(Path(made)):
            print(f"release.py: {wrong}", file=sys.stderr)
            return 1
        version = tomllib.loads((Path(made) / "pyproject.toml").read_text())["project"]["version"]
        readme = Path(made) / "README.md"
        readme.write_text(absolute(readme.read_text(), args.address, f"v{version}"))
        out = Path(args.out).absolute()
        subprocess.run([sys.executable, "-m", "build", f"--outdir={out}", made], check=True, stdout=subprocess.DEVNULL)
    built = sorted(str(path) for path in out.glob(f"lgm-{version}*"))
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *built], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
