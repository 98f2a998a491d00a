"""`lgm plan`, `lgm launch` and `lgm status`."""

def plan(arguments, overrides) -> int:
    from lgm.planning import command

    return command.run(arguments.config, arguments.topology, overrides, slices=arguments.slices,
                       search=arguments.search, limit=arguments.limit, jobs=arguments.jobs, quick=arguments.quick,
                       json_path=arguments.json)


def launch(arguments, overrides) -> int:
    from lgm.launching import launch

    names = ("on", "config", "workdir", "site", "nodes", "topology", "slices", "partition", "image", "at_once", "plan",
             "dry_run")
    words = launch.Words(sweep=arguments.what == "sweep", **{name: getattr(arguments, name) for name in names})
    return launch.launch(words, overrides)


def status(arguments, overrides) -> int:
    from lgm.launching import status

    return status.status(arguments.workdirs, arguments.json)
