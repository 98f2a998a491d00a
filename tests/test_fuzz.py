"""A short form of tools/fuzz.py: damaged files and odd words end in one line or in what was asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "fuzz.py"


@pytest.mark.slow
def test_damaged_files_and_odd_words_end_in_one_line():
    words = [sys.executable, str(TOOL), "--cases=60", "--seconds=60", "--seed=11"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout
    assert " 0 defects" in done.stdout
