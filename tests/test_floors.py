"""The floors, as DESIGN tells them, in executable form."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "ast_model", "jobs")

FLOORS = {
    # From the ground up. A module imports what stands on lower floors, or before it on its own.
    0: "pipeline.errors pipeline.records pipeline.config",
    1: (
        "pipeline.owner pipeline.scratch pipeline.storage pipeline.labels pipeline.keys pipeline.segments pipeline.pace"
        " pipeline.lease pipeline.recordings pipeline.sources pipeline.fbank pipeline.media pipeline.audio"
        " pipeline.weights pipeline.progress pipeline.download pipeline.splits pipeline.sound_tables pipeline.cluster"
        " pipeline.miniature"
    ),
    2: (
        "pipeline.shards pipeline.journal pipeline.ledger pipeline.snapshot pipeline.verify pipeline.shard_cache"
        " pipeline.fetch_ahead pipeline.clip_reader pipeline.audit pipeline.leftovers pipeline.status pipeline.estimate"
        " pipeline.history"
    ),
    3: "pipeline.convert",
    4: "ast_model.schedule ast_model.config ast_model.world",
    5: (
        "ast_model.model ast_model.layouts ast_model.weight_files ast_model.hugging_face ast_model.tagging"
        " ast_model.pretrained ast_model.draws ast_model.loader ast_model.augment ast_model.metrics"
        " ast_model.checkpoint ast_model.optimizer ast_model.regularise ast_model.averages ast_model.saving"
    ),
    # Tracking shows evaluations, so it stands above them.
    6: (
        "ast_model.recipes ast_model.evaluate ast_model.scores ast_model.plots ast_model.clip_page ast_model.outbox"
        " ast_model.tracking_alive ast_model.tracking_server ast_model.tracking_delivery ast_model.tracking"
        " ast_model.inference ast_model.tracking_pyfunc ast_model.tracking_registry ast_model.tracking_models"
        " ast_model.tracking_lineage ast_model.tracking_comparison ast_model.export"
    ),
    7: (
        "ast_model.job ast_model.checks ast_model.telemetry ast_model.step ast_model.teacher ast_model.training_data"
        " ast_model.reporter ast_model.train"
    ),
    8: "jobs.cli",
    9: (
        "jobs.visit jobs.snapshots jobs.preprocess jobs.provenance jobs.publish jobs.titles"
        " jobs.runs jobs.models jobs.compare"
        " jobs.ray_train jobs.presets jobs.train jobs.report jobs.audioset"
        " jobs.evaluate jobs.predict jobs.export"
        " jobs.train_recordings jobs.folds jobs.esc50 jobs.speechcommands jobs.finetune"
    ),
}
MODULES = [module for floor in FLOORS.values() for module in floor.split()]
"""In order: each may import those before it. A package, such as `pipeline.sources`, is one module."""

USED_BY_AST_MODEL = {
    f"pipeline.{name}"
    for name in (
        "records errors config owner labels audio fbank storage shards snapshot verify shard_cache fetch_ahead"
        " clip_reader weights progress"
    ).split()
}
"""What describes data, and progress."""

ONLY_IN = {
    "ray": ("pipeline.cluster", "jobs."),
    "mlflow": ("ast_model.tracking",),
    "torch.distributed": ("ast_model.world",),
}


def source_files() -> list[Path]:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return [file for file in files if file.relative_to(ROOT).parts[1:] != ("__init__.py",)]


def module_of(name: str) -> str:
    """Cut a dotted name to what has a place on a floor: `pipeline.sources.http.HttpSource` → `pipeline.sources`."""
    return ".".join(name.split(".")[:2])


def dotted_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def imports_of(file: Path) -> Iterator[str]:
    """Yield all names that a file imports, also within functions, in full: `ast_model.recipes`, `ray.train`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", source_files(), ids=dotted_name)
def test_imports_lead_downwards(file: Path) -> None:
    module = module_of(dotted_name(file))
    assert module in MODULES, f"{module} has no floor yet"
    ours = {module_of(name) for name in imports_of(file) if name.split(".")[0] in PACKAGES} - {module}
    assert ours <= set(MODULES[: MODULES.index(module)])
    if module.startswith("ast_model."):
        assert {name for name in ours if name.startswith("pipeline.")} <= USED_BY_AST_MODEL


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_kept_to_its_place(library: str) -> None:
    places = {
        dotted_name(file)
        for file in source_files()
        if any(f"{name}.".startswith(f"{library}.") for name in imports_of(file))
    }
    assert places, f"{library} is not imported at all"
    assert [place for place in places if not place.startswith(ONLY_IN[library])] == []
