"""`lgm train`."""

from lgm.train import main


def run(arguments, overrides) -> int:
    return main.train(arguments.config, arguments.workdir, overrides, arguments.extend)
