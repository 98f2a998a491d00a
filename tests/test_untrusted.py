"""What others wrote is read only where it can be: regular files, objects without a key twice, finite numbers."""

import math
import os

import pytest

from lgm.interop.fields import COUNT, NUMBER, WrongKind, check
from lgm.interop.tensor_files import open_weights
from lgm.untrusted import parse_object, read_bytes, read_object


@pytest.mark.parametrize(("text", "line"), [
    ('{"a": 1, "a": 2}', "'a' stands twice"),
    ('{"a": NaN}', "NaN is no number"),
    ('{"a": 1e999}', "1e999 is not finite"),
    ('{"a":' * 100_000, "nested too deeply"),
    ("[1]", "a list instead"),
    ('{"a": ' + "9" * 5000 + "}", "digits"),
    ("{", "Expecting property name"),
])  # fmt: skip
def test_a_text_that_is_no_object_is_one_line(text, line):
    with pytest.raises(ValueError, match=line) as error:
        parse_object(text)
    assert "\n" not in str(error.value)


def test_an_infinite_number_is_read_where_it_may_be_and_no_nan(tmp_path):
    (tmp_path / "scheduler_config.json").write_text('{"lambda_min_clipped": -Infinity, "beta_end": 1e999}')
    read = read_object(tmp_path / "scheduler_config.json", infinite=True)
    assert read == {"lambda_min_clipped": -math.inf, "beta_end": math.inf}
    with pytest.raises(ValueError, match="is no JSON object .-Infinity is no number"):
        read_object(tmp_path / "scheduler_config.json")
    with pytest.raises(ValueError, match="NaN is no number"):
        parse_object('{"a": NaN}', infinite=True)


def test_only_regular_files_of_a_bounded_size_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "loop").symlink_to("loop")
    for read in (read_bytes, read_object, open_weights):
        with pytest.raises(ValueError, match="is a named pipe; give a regular file"):
            read(tmp_path / "pipe.safetensors")
    for read in (read_bytes, read_object):
        with pytest.raises(ValueError, match="is a device"):
            read("/dev/zero")
        with pytest.raises(ValueError, match="is a folder"):
            read(tmp_path)
        with pytest.raises(OSError, match="symbolic links"):
            read(tmp_path / "loop")
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(ValueError, match="has 5 bytes, which is no such file; at most 4"):
        read_bytes(tmp_path / "large", 4)


@pytest.mark.parametrize("value", [None, True, 0, -1, 1.0, "1", [1], 10**30])
def test_a_count_is_a_whole_number_above_zero(value):
    with pytest.raises(WrongKind, match="width="):
        check({"width": value}, {"width": COUNT})
    check({"width": 3}, {"width": COUNT})


@pytest.mark.parametrize("value", [None, True, "1", float("nan"), float("inf"), 1e31])
def test_a_number_is_finite(value):
    with pytest.raises(WrongKind, match="scale="):
        check({"scale": value}, {"scale": NUMBER})
