"""Where images come from: each kind of collection is a `Source`, found by looking at what lies at a path."""

from lgm.data.sources.finding import SHIPPED, open_source
from lgm.data.sources.source import Bad, Source

__all__ = ["SHIPPED", "Bad", "Source", "open_source"]
