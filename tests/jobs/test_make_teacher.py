"""Make a teacher from own models: the mean of their scores, as evaluations compute them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ast_model.config import ASTConfig, CacheConfig
from ast_model.data.augment import Normalisation
from ast_model.data.loader import BatchReader, open_reader
from ast_model.distributed import World
from ast_model.evaluation.evaluate import score_clips
from ast_model.export import export_safetensors
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from ast_model.teachers.making import plan_scoring, read_parts, score_chunk
from ast_model.teachers.store import Teachers, load_teacher
from jobs.teachers import COMMAND_LINE
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store

SPLITS = ("balanced_train", "unbalanced_train")
CPU = World(0, 1, torch.device("cpu"))
NORM = Normalisation(-7.0, 4.0)


@pytest.fixture
def own(snapshot: Snapshot, tmp_path: Path) -> Snapshot:
    """The shared snapshot in a new store, so that the test can write to it."""
    root = tmp_path / "store"
    root.mkdir()
    for name in ("shards", "snapshots", "latest.json"):
        (root / name).symlink_to(snapshot.store.path(name))
    return load_snapshot(Store(str(root)))


def clips_of(snapshot: Snapshot, num_frames: int) -> BatchReader:
    rows = snapshot.rows_of(SPLITS)
    return BatchReader(open_reader(snapshot, CacheConfig()), rows, snapshot.targets(rows), num_frames)


def fit(snapshot: Snapshot, num_frames: int, **overrides: int) -> AST:
    """Return a model with random weights and a head that reproduces the labels by least squares."""
    torch.manual_seed(num_frames)
    model = AST(ASTConfig.nano(num_classes=len(snapshot.labels), num_frames=num_frames, depth=1, **overrides)).eval()
    batch = clips_of(snapshot, num_frames).read_clips(np.arange(len(snapshot.rows_of(SPLITS))))
    with torch.no_grad():
        inputs = model.head.norm(model.embed((batch.clips.float() - NORM.mean) / (2 * NORM.std)))
        targets = torch.from_numpy(snapshot.targets(snapshot.rows_of(SPLITS)).toarray()).float() * 8 - 4
        model.head.linear.weight.copy_(torch.linalg.lstsq(inputs, targets).solution.T)
    return model


def metadata(snapshot: Snapshot) -> ModelMetadata:
    return ModelMetadata(snapshot.labels.names, NORM.mean, NORM.std)


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
@pytest.mark.slow
def test_teacher_is_the_mean_of_two_shapes(own: Snapshot, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [fit(own, 256), fit(own, 512, width=96, num_heads=3)]
    # The second model names its classes in another order.
    order = np.arange(len(own.labels))[::-1].copy()
    for name in ("weight", "bias"):
        parameter = getattr(models[1].head.linear, name)
        parameter.data = parameter.data[order]
    expected = [score_clips(model, clips_of(own, model.config.num_frames), CPU, NORM, 8) for model in models]
    mean = (expected[0] + expected[1][:, order]) / 2
    export_safetensors(models[0], tmp_path / "a.safetensors", metadata(own))
    names = tuple(own.labels.names[index] for index in order)
    export_safetensors(models[1], tmp_path / "b.safetensors", ModelMetadata(names, NORM.mean, NORM.std))
    flags = ["make", "--root", own.store.root, "--name", "two", "--checkpoints"]
    flags += [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--split", *SPLITS]
    assert COMMAND_LINE.main(flags) == 0
    assert "graded on" in capsys.readouterr().out
    rows = own.rows_of(SPLITS)
    found, is_untaught = Teachers(own, rows, ["two"]).open(CacheConfig()).read(np.arange(len(rows)))
    assert not is_untaught.any()
    np.testing.assert_allclose(found, mean, atol=1e-3)  # stored as float16
    teacher = load_teacher(own.store, "two", own.labels)
    assert teacher.mAP > 0.9 and teacher.num_clips == len(rows)
    assert own.store.list("teachers/two", ".npy") == ["teachers/two/scores.npy"]


def test_only_missing_chunks_are_scored(own: Snapshot, tmp_path: Path) -> None:
    model = fit(own, 128)
    plan = plan_scoring(own, SPLITS, "t", [(model, metadata(own))], batch_size=4)
    member = Path(own.store.path(plan.files.member(plan.plan_id, 0)))
    export_safetensors(model, member, metadata(own))
    first, *others = plan.missing_chunks()
    assert others and score_chunk(first, plan) == plan.size_of(first)
    again = plan_scoring(own, SPLITS, "t", [(model, metadata(own))], batch_size=8)
    assert again.missing_chunks() == others
    for each in others:
        score_chunk(each, plan)
    expected = score_clips(model, clips_of(own, 128), CPU, NORM, 8)
    np.testing.assert_allclose(np.concatenate(list(read_parts(plan))), expected, atol=1e-5)
    other = plan_scoring(own, SPLITS, "t", [(fit(own, 256), metadata(own))], batch_size=8)
    assert other.missing_chunks() == [first, *others]


def test_unknown_classes_are_refused_before_scoring(
    own: Snapshot, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = ("something else", *own.labels.names[1:])
    export_safetensors(fit(own, 128), tmp_path / "a.safetensors", ModelMetadata(names, NORM.mean, NORM.std))
    flags = ["make", "--root", own.store.root, "--name", "t", "--checkpoints", str(tmp_path / "a.safetensors")]
    assert COMMAND_LINE.main(flags) == 1
    assert "class 0 is 'something else'" in capsys.readouterr().err
