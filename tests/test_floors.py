"""The floors of ARCHITECTURE.md: rooms from the ground up, each of which imports only from those before it."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOMS = """
    pipeline:
        errors records config
        keys store labels segments weights fbank_settings fbank backoff progress page ahead
        metadata audio sources shards snapshots reading measures quality recordings miniature
        cluster estimate convert preprocess

    ast_model:
        config flops metrics losses model distributed
        data pretrained recipes checkpoints evaluation teachers embeddings inference export review tagging service
        training tracking

    jobs:
        command_line preprocessing training datasets own_sounds tagging service checkpoints
        audioset preprocess train evaluate teachers calibrate predict export models compare search ui serve esc50
        speechcommands fsd50k vggsound urbansound8k finetune
"""
"""A room is a folder, or a module that lies flat. A module that imports none of its neighbours may stand anywhere above
what it uses."""

OPEN_TO_AST_MODEL = """
    errors records config keys labels audio fbank_settings fbank store shards snapshots reading weights
    backoff progress page ahead
"""
"""Modules of pipeline that ast_model may use: those that describe data, progress and pauses, work ahead, and pages."""

ONLY_IN = {
    "ray": ("pipeline.cluster", "jobs."),
    "mlflow": ("ast_model.tracking.",),
    "torch.distributed": ("ast_model.distributed", "jobs.training.torchrun"),
}


def read_rooms() -> list[str]:
    rooms, package = [], ""
    for word in ROOMS.split():
        if word.endswith(":"):
            package = word[:-1]
        else:
            rooms.append(f"{package}.{word}")
    return rooms


ORDER = read_rooms()
PACKAGES = tuple(dict.fromkeys(room.split(".")[0] for room in ORDER))


def source_files() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")) if file.parent != ROOT]


def dotted_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def module_of(name: str) -> str:
    """Cut what is imported from a module: `ast_model.recipes.demo` → `ast_model.recipes`."""
    path = ROOT / name.replace(".", "/")
    return name if path.is_dir() or path.with_suffix(".py").exists() else name.rpartition(".")[0]


@cache
def imports_of(file: Path, *, within_functions: bool = True) -> tuple[str, ...]:
    """Return the full names of all that a file imports: `ast_model.recipes`, `ray.train`."""
    tree, names = ast.parse(file.read_text(encoding="utf-8")), []
    for node in ast.walk(tree) if within_functions else tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(names)


@pytest.mark.parametrize("file", source_files(), ids=dotted_name)
def test_imports_point_down(file: Path) -> None:
    room = room_of(dotted_name(file))
    if room in PACKAGES:
        return  # the package's own, empty __init__.py
    assert room in ORDER, f"{room} has no floor yet: add it to ROOMS"
    used = {room_of(name) for name in imports_of(file) if name.split(".")[0] in PACKAGES} - {room}
    assert used <= set(ORDER[: ORDER.index(room)])
    if room.startswith("ast_model."):
        allowed = {f"pipeline.{name}" for name in OPEN_TO_AST_MODEL.split()}
        assert {name for name in used if name.startswith("pipeline.")} <= allowed


def test_no_imports_run_in_a_circle() -> None:
    imported = {dotted_name(file): {module_of(name) for name in imports_of(file)} for file in source_files()}
    while leaves := [module for module, used in imported.items() if not used & imported.keys()]:
        for module in leaves:
            del imported[module]
    assert imported == {}


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_kept_to_its_place(library: str) -> None:
    places = {
        dotted_name(file)
        for file in source_files()
        if any(f"{name}.".startswith(f"{library}.") for name in imports_of(file))
    }
    assert places, f"{library} is not imported at all"
    assert [place for place in places if not place.startswith(ONLY_IN[library])] == []


def test_what_only_hands_out_shards_does_without_pytorch() -> None:
    imported = {dotted_name(file): imports_of(file, within_functions=False) for file in source_files()}
    reached, found = (
        set[str](),
        {"jobs.preprocessing.commands", "jobs.preprocessing.duplicates", "jobs.preprocessing.report"},
    )
    while found:
        reached |= found
        found = {module_of(name) for module in found for name in imported[module]} & imported.keys() - reached
    assert [module for module in reached if any(f"{name}.".startswith("torch.") for name in imported[module])] == []
