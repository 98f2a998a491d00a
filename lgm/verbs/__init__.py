"""What each verb of the command line does with its parsed words, one file a group. Heavy modules are imported when one
runs."""

import importlib


def run(name: str, arguments, overrides) -> int:
    """Run the verb that is "module:function" here; returns the exit code."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(f"lgm.verbs.{module}"), function)(arguments, overrides) or 0
