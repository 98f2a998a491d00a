"""What the pages say of configs is the schema's own: written into them as they are built."""

from lgm import describing


def on_page_markdown(markdown: str, page, config, files) -> str:
    """A page whose text holds {{ config keys }}, with a table of every key in its place."""
    if "{{ config keys }}" not in markdown:
        return markdown
    return markdown.replace("{{ config keys }}", "\n\n".join(map(_section, describing.sections())))


def _section(found) -> str:
    title, about, keys = found
    cell = lambda text: text.replace("|", "\\|")
    default = lambda key: "to be given" if key.default is None else f"`{cell(key.default)}`"
    rows = [f"| `{key.path}` | {cell(key.type)} | {default(key)} |" for key in keys]
    table = "\n".join(["| key | type | default |", "|---|---|---|", *rows]) if rows else ""
    return f"## {title}\n\n{about}\n\n{table}"
