"""The library is a house whose rooms stand above each other: each line may use those above it, never those below.

All imports are read, those within functions and for type checkers too.
"""

import ast
from pathlib import Path

import lgm

ROOT = Path(lgm.__file__).parent
ORDER = """
    bounds parsing files untrusted registry casting
    processes parallel
    gaussian
    losses sampling
    models
    plotting data pictures
    config objective describing
    interop
    weights systems
    sampler skip_layers system drawing artifact_runner artifact model_card importing exporting
    evaluate
    train
    planning scaling
    launching
    verbs arguments cli __main__
"""
ROOMS = [room for line in ORDER.split("\n") for room in line.split()]


def modules():
    """{dotted name: its syntax} of every file."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def imports(name, tree, names):
    """The modules of the library that a module imports, anywhere in it."""
    package = name if (ROOT.parent / name.replace(".", "/")).is_dir() else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            inner = [f"{module}.{alias.name}" for alias in node.names]
            yield from (place for place in (*inner, module) if place in names)


def test_every_room_has_its_place_in_the_order():
    rooms = {name.split(".")[1] for name in modules() if name != "lgm"}
    assert rooms == set(ROOMS) and len(ROOMS) == len(set(ROOMS))


def test_imports_go_one_way():
    found = modules()
    for name, tree in found.items():
        if name == "lgm":
            continue
        room = name.split(".")[1]
        for other in imports(name, tree, found):
            if other != "lgm" and (theirs := other.split(".")[1]) != room:
                assert ROOMS.index(theirs) < ROOMS.index(room), f"{name} imports {other}, which stands below it"


def test_no_files_import_each_other_in_a_circle():
    found = modules()
    graph = {name: {other for other in imports(name, tree, found) if other != name} for name, tree in found.items()}
    # `from lgm.room import part` names the room, whose own file may import its parts
    graph = {name: {o for o in others if not name.startswith(f"{o}.")} for name, others in graph.items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name):], name])}"
        if name not in done:
            path.append(name)
            for other in graph[name]:
                visit(other)
            path.pop()
            done.add(name)

    for name in graph:
        visit(name)


def test_what_is_read_are_the_imports_within_functions_too():
    tree = ast.parse("def f():\n    from lgm.models import flops\n    import lgm.files\n    from . import words\n")
    found = set(imports("lgm.verbs.scale", tree, {"lgm.models", "lgm.models.flops", "lgm.files", "lgm.verbs",
                                                  "lgm.verbs.words"}))  # fmt: skip
    assert found == {"lgm.models", "lgm.models.flops", "lgm.files", "lgm.verbs", "lgm.verbs.words"}
