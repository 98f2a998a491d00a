"""What verbs share: lists of numbers among their words, and how several processes end: one writes, all go."""

import jax

from lgm.parsing import ConfigError
from lgm.processes import member


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def finished() -> int:
    """0, when all processes have come here: what the first one writes is there."""
    member.barrier("the end")
    return 0


def numbers(flag: str, words: str | None, example: str = "1e21,1e22") -> tuple[float, ...]:
    """`1e21,1e22` as numbers."""
    try:
        return tuple(float(word) for word in words.split(",")) if words else ()
    except ValueError:
        raise ConfigError(f"{flag}={words} is not a list of numbers, as {example}") from None
