"""The floors of ARCHITECTURE.md, and the core that imports no satellite."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOMS = """
    pipeline:
        errors store records config
        keys labels segments weights fbank_settings fbank backoff progress page ahead
        metadata audio sources shards snapshots reading measures quality recordings miniature
        cluster convert copies preprocess

    ast_model:
        config flops metrics losses model distributed
        data pretrained recipes checkpoints evaluation teachers embeddings tagging inference export service
        training tracking

    jobs:
        command_line preprocessing training datasets own_sounds tagging service checkpoints
        audioset preprocess train evaluate teachers calibrate predict export models compare search ui serve esc50
        speechcommands fsd50k vggsound urbansound8k finetune
"""
"""Folders and top-level modules, from the lowest floor up. A room imports only rooms listed before it."""

SATELLITES = {
    "quality": "pipeline.quality jobs.preprocessing.report jobs.preprocessing.duplicates jobs.preprocessing.compare",
    "miniature": "pipeline.miniature",
    "data_sets": """
        pipeline.recordings jobs.datasets
        jobs.esc50 jobs.speechcommands jobs.fsd50k jobs.vggsound jobs.urbansound8k
    """,
    "own_sounds": "ast_model.embeddings jobs.own_sounds jobs.finetune jobs.search",
    "teachers": """
        ast_model.teachers jobs.checkpoints.teachers jobs.checkpoints.teacher_settings jobs.training.teacher_scores
        jobs.teachers
    """,
    "service": "ast_model.service jobs.service jobs.serve",
}
"""Features around the core, as rooms and modules that can be deleted together. All other modules are the core."""

CONNECTIONS = {
    "jobs.own_sounds.cross_validation": "data_sets",
    "jobs.own_sounds.finetune": "data_sets",
    "jobs.own_sounds.lengths": "data_sets",
    "jobs.own_sounds.near_copies": "data_sets quality",
    "jobs.own_sounds.searchable_clips": "data_sets",
    "jobs.own_sounds.training_plan": "data_sets",
    "jobs.preprocessing.miniature_media": "miniature",
    "jobs.preprocessing.tracked": "quality",
    "jobs.training.runs": "quality teachers",
    "jobs.training.training_clips": "quality",
}
"""Modules of commands that use a satellite: own sounds are a data set and are searched for near-identical clips;
conversions serve the demo's media and end with the quality page; trainings offer `--data.exclude` and
`--train.teachers`, and warn if their splits overlap."""

OPEN_TO_AST_MODEL = """
    errors records config keys labels audio fbank_settings fbank store shards snapshots reading weights
    backoff progress page ahead segments
"""
"""Rooms of pipeline that ast_model may import: descriptions of data, progress, retries and pages."""

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


def satellite_of(module: str) -> str | None:
    for name, modules in SATELLITES.items():
        if any(f"{module}.".startswith(f"{prefix}.") for prefix in modules.split()):
            return name
    return None


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def module_of(name: str) -> str:
    """Remove the imported attribute, if any: `ast_model.recipes.demo` → `ast_model.recipes`."""
    path = ROOT / name.replace(".", "/")
    return name if path.is_dir() or path.with_suffix(".py").exists() else name.rpartition(".")[0]


@cache
def imports_of(file: Path, *, within_functions: bool = True) -> tuple[str, ...]:
    """Return the full names of a file's imports: `ast_model.recipes`, `ray.train.report`."""
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
        return  # a package's empty __init__.py
    assert room in ORDER, f"expected the room {room} in ROOMS; add it above the rooms that it imports"
    used = {room_of(name) for name in imports_of(file) if name.split(".")[0] in PACKAGES} - {room}
    assert used <= set(ORDER[: ORDER.index(room)])
    if room.startswith("ast_model."):
        allowed = {f"pipeline.{name}" for name in OPEN_TO_AST_MODEL.split()}
        assert {name for name in used if name.startswith("pipeline.")} <= allowed


def test_core_imports_no_satellite() -> None:
    for file in source_files():
        module = dotted_name(file)
        used = {satellite_of(name) for name in imports_of(file)} - {None, satellite_of(module)}
        assert used <= set(CONNECTIONS.get(module, "").split()), f"{module}: expected no imports of satellites"


def test_listed_satellites_exist() -> None:
    modules = {dotted_name(file) for file in source_files()}
    assert {name for listed in SATELLITES.values() for name in listed.split()} | CONNECTIONS.keys() <= modules


def test_imports_are_acyclic() -> None:
    imported = {dotted_name(file): {module_of(name) for name in imports_of(file)} for file in source_files()}
    while leaves := [module for module, used in imported.items() if not used & imported.keys()]:
        for module in leaves:
            del imported[module]
    assert imported == {}


def test_architecture_names_every_room() -> None:
    words = set(re.findall(r"\w+", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")))
    assert {room.partition(".")[2] for room in ORDER} <= words


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_is_imported_only_in_its_rooms(library: str) -> None:
    places = {
        dotted_name(file)
        for file in source_files()
        if any(f"{name}.".startswith(f"{library}.") for name in imports_of(file))
    }
    assert places, f"{library} is not imported at all"
    assert [place for place in places if not place.startswith(ONLY_IN[library])] == []


def test_preprocessing_commands_do_not_load_pytorch() -> None:
    imported = {dotted_name(file): imports_of(file, within_functions=False) for file in source_files()}
    reached, added = set[str](), {f"jobs.preprocessing.{name}" for name in ("commands", "duplicates", "report")}
    while added:
        reached |= added
        added = {module_of(name) for module in added for name in imported[module]} & imported.keys() - reached
    assert [module for module in reached if any(f"{name}.".startswith("torch.") for name in imported[module])] == []
