"""What there is: `lgm config`, `lgm presets`, `lgm completion`, `lgm inspect` and `lgm data`."""

from lgm.parsing import ConfigError


def config(arguments, overrides) -> int:
    from lgm import config, describing

    if arguments.site:
        from lgm.launching import render

        if overrides or arguments.diff or arguments.config is not None:
            raise ConfigError("--site is an example of a site's file, and goes alone")
        print((render.folder() / "sites" / "example.toml").read_text(), end="")
    elif arguments.config is None:
        if overrides or arguments.diff:
            raise ConfigError("--diff and --config.KEY=VALUE are of a file's config; give --config=FILE.py")
        print(describing.everything())
    else:
        print(describing.shown(config.load(arguments.config, overrides), arguments.diff))
    return 0


def presets(arguments, overrides) -> int:
    from lgm import describing

    print(describing.presets())
    return 0


def completion(arguments, overrides) -> int:
    import argcomplete

    print(argcomplete.shellcode(["lgm"], shell="bash" if arguments.shell == "zsh" else arguments.shell))
    return 0


def inspect(arguments, overrides) -> int:
    from lgm.models import build
    from lgm.models.listing import parameter_table, preset

    if arguments.folder is None:
        models = {name: build(preset(name)) for name in arguments.preset}
    else:
        from lgm.systems.folders import load_pipeline

        models = load_pipeline(arguments.folder, only=())[0].models
    for name, model in models.items():
        print(f"{name}\n{parameter_table(model, arguments.levels)}\n")
    return 0


def data(arguments, overrides) -> int:
    from lgm.data import describe

    if (arguments.path is None) == (arguments.config is None):
        raise ConfigError("give a PATH, to say what is there, or --config=PAGE, to say what a run makes of it")
    if arguments.config is not None:
        from lgm import config
        from lgm.data.describe_config import describe_config

        return describe.printed(describe_config(config.load(arguments.config, overrides)))
    if overrides:
        raise ConfigError(f"--config.{overrides[0][0]} goes with --config=PAGE")
    return describe.run(arguments.path, caption=arguments.caption, resolution=arguments.resolution, step=arguments.step,
                        checked=arguments.check, tokenizer=arguments.tokenizer, sheet=arguments.sheet)
