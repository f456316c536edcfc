"""The rooms of docs/architecture.md: who imports whom."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "speechbrain_focalcodec"
# From the ground up: a room imports from itself and from those before it.
ROOMS = (
    *("errors", "utils", "audio", "hub", "tokens", "jobs", "modules"),
    *("model_files", "parts", "config", "checkpoint", "stages"),
    *("acceleration", "long_audio", "voice", "codec", "streaming", "onnx"),
    *("hyperparams", "inference", "compat", "corpus", "data", "metrics"),
    *("training", "downstream", "cli"),
)


@cache
def modules():
    """Path of each module, by its dotted name."""
    found = {}
    for path in (ROOT / PACKAGE).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def imports():
    """What each module imports, at its top, in functions and for types."""
    graph = {}
    for name, path in modules().items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{x.name}" for x in node.names]
                names = [x if x in modules() else node.module for x in inner]
            else:
                continue
            graph[name] |= {x for x in names if x in modules() and x != name}
    # The package itself hands names on, with their first use.
    del graph[PACKAGE]
    return {name: found - {PACKAGE} for name, found in graph.items()}


def room(name):
    return name.split(".")[1]


def test_the_top_level_holds_what_users_import():
    names = {path.stem for path in (ROOT / PACKAGE).glob("*.py")}
    assert len(names) <= 12, sorted(names)


def test_each_room_is_on_the_page():
    assert {room(name) for name in imports()} == set(ROOMS)
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [name for name in ROOMS if f" {name} " not in page] == []


@pytest.mark.parametrize("name", ROOMS)
def test_no_room_imports_from_a_higher_one(name):
    below = ROOMS[: ROOMS.index(name) + 1]
    upwards = [
        (module, found)
        for module, names in imports().items()
        if room(module) == name
        for found in names
        if room(found) not in below
    ]
    assert upwards == []


def test_no_modules_import_each_other_in_a_circle():
    left = {name: set(names) for name, names in imports().items()}
    while left:
        ground = {name for name, names in left.items() if not names & set(left)}
        assert ground, f"in circles, or above one: {sorted(left)}"
        for name in ground:
            del left[name]
