"""Lists of numbers in the words of a command line."""

from __future__ import annotations

from lgm.parsing import ConfigError


def numbers(flag: str, words: str | None, example: str = "1e21,1e22") -> tuple[float, ...]:
    """`1e21,1e22` as numbers."""
    try:
        return tuple(float(word) for word in words.split(",")) if words else ()
    except ValueError:
        raise ConfigError(f"{flag}={words} is not a list of numbers, as {example}") from None
