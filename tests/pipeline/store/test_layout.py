"""All paths of a store come from one module, and ARCHITECTURE.md shows the same tree."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.store import layout

ROOT = Path(__file__).parents[3]
SOURCES = sorted(path for package in ("pipeline", "ast_model", "jobs") for path in (ROOT / package).rglob("*.py"))
ELSEWHERE = ("pipeline/store/layout.py", "pipeline/recordings/", "jobs/urbansound8k.py")
"""The map itself, and the layouts of published data sets, which also contain a folder `metadata`."""
FOLDERS = [
    value
    for name, value in vars(layout).items()
    if name.isupper() and isinstance(value, str) and (value == layout.SCRATCH or "." not in value)
]
STORE_METHODS = {"exists", "list", "months", "path", "remove", "sizes", "url"}
SPELLED = re.compile(rf"^({'|'.join(map(re.escape, FOLDERS))})/|^(latest|manifest|run|folds|history|teacher)\.json$")


class Placeholder(str):
    """An argument that appears in a path as `{name}`, in any format."""

    def __format__(self, spec: str) -> str:
        return "{" + str(self) + "}"


def mapped_paths() -> set[str]:
    """Return all paths of the map, with placeholders for ids, names and numbers."""
    paths = {layout.LATEST, layout.MLFLOW_DATABASE, layout.CLASSES, *FOLDERS}
    for value in vars(layout).values():
        if getattr(value, "__module__", "") != layout.__name__ or value is layout.name_in:
            continue
        made = call(value)
        paths |= {made} if isinstance(made, str) else set(paths_of(made))
    return paths


def paths_of(files) -> Iterator[str]:
    for name, member in vars(type(files)).items():
        if isinstance(member, property):
            yield getattr(files, name)
        elif inspect.isfunction(member) and not name.startswith("_"):
            yield call(getattr(files, name))


def call(function):
    return function(*(Placeholder(name) for name in inspect.signature(function).parameters))


def drawn_paths() -> set[str]:
    """Return the paths in ARCHITECTURE.md's tree of the store."""
    (tree,) = re.findall(r"^root/\n(.*?)^```", (ROOT / "ARCHITECTURE.md").read_text(), re.M | re.S)
    return {line.split()[0].rstrip("/") for line in tree.splitlines()}


def spelled_paths(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Constant(value=str(text)) if SPELLED.search(text):
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {text!r}"
            case ast.Call(ast.Attribute(attr=method), [ast.Constant(value=text), *_]) if method in STORE_METHODS:
                if text in FOLDERS:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}: {text!r}"


def test_architecture_draws_exactly_the_paths_of_the_map() -> None:
    drawn, mapped = drawn_paths(), mapped_paths()
    assert drawn <= mapped
    folders = {path for path in mapped if any(each.startswith(f"{path}/") for each in drawn)}
    assert mapped - folders == drawn - folders


def test_no_other_module_spells_a_path_of_the_store() -> None:
    sources = [path for path in SOURCES if not path.relative_to(ROOT).as_posix().startswith(ELSEWHERE)]
    assert [spelled for path in sources for spelled in spelled_paths(path)] == []


@pytest.mark.parametrize("split", ["eval", "fold1", "a/b"])
def test_shards_are_parsed_from_their_files(split: str) -> None:
    shard = layout.Shard(split, "0123456789abcdef")
    assert layout.Shard.of(shard.tar) == layout.Shard.of(shard.sidecar) == layout.Shard.of(str(shard)) == shard
