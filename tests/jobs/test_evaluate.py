import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score

from ast_model.checkpoints.checkpoint import Checkpoint, LoopState, save_checkpoint
from ast_model.config import ASTConfig
from ast_model.evaluation.evaluate import Evaluation
from ast_model.metrics import tagging_metrics
from ast_model.model import AST
from jobs.checkpoints.compare import compare
from jobs.checkpoints.settings import CompareConfig
from jobs.evaluate import COMMAND_LINE
from pipeline.labels import Labels
from pipeline.miniature import Miniature
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store import layout
from pipeline.store.storage import Store


def save_model(folder: Path, labels: Labels, stride: int, num_frames: int) -> str:
    """Save a random model with checkpoint.json. Return its folder."""
    torch.manual_seed(stride)
    shape = ASTConfig(len(labels), num_frames, freq_stride=stride, time_stride=stride, width=24, depth=1, num_heads=1)
    model = AST(shape)
    torch.nn.init.normal_(model.head.linear.weight)
    description = {
        "model": vars(shape),
        "train": {"loss": "bce"},
        "labels": {"mids": labels.mids, "names": labels.names},
        "mean": -7.0,
        "std": 4.0,
    }
    checkpoint = Checkpoint(LoopState(1), model.state_dict(), description=description)
    return str(folder / save_checkpoint(Store(str(folder)), f"stride-{stride}", checkpoint))


def run_evaluate(*argv: object) -> int:
    return COMMAND_LINE.main([str(word) for word in argv])


@pytest.mark.slow
def test_ensemble_averages_the_scores(snapshot: Snapshot, tmp_path: Path) -> None:
    checkpoints = [save_model(tmp_path, snapshot.labels, 16, 512), save_model(tmp_path, snapshot.labels, 12, 256)]
    scores = []
    for name, chosen in (("a", checkpoints[:1]), ("b", checkpoints[1:]), ("both", checkpoints)):
        flags = ("--root", snapshot.store.root, "--output", tmp_path / name, "--bootstrap", 20)
        assert run_evaluate("--checkpoints", *chosen, *flags) == 0
        scores.append(np.load(tmp_path / name / "scores.npz"))
    a, b, both = scores
    np.testing.assert_allclose(both["scores"], (a["scores"] + b["scores"]) / 2, atol=1e-6)
    metrics = json.loads((tmp_path / "both" / "metrics.json").read_text())
    scored = both["targets"].any(axis=0)
    expected = average_precision_score(both["targets"][:, scored], both["scores"][:, scored], average="macro")
    assert metrics["mAP"] == pytest.approx(expected, abs=1e-6)
    assert metrics["mAP_low"] <= metrics["mAP_high"]
    table = pd.read_csv(tmp_path / "both" / "classes.csv")
    assert table["mid"].tolist() == list(snapshot.labels.mids)
    assert table["average_precision"].mean() == pytest.approx(expected, abs=1e-6)

    running = pd.read_csv(tmp_path / "both" / "checkpoints.csv")
    assert running["mean_so_far_mAP"].tolist() == pytest.approx([running["mAP"][0], expected], abs=1e-6)
    assert (tmp_path / "both" / "classes.png").stat().st_size > 1000
    assert (tmp_path / "both" / "precision_recall.png").stat().st_size > 1000
    assert str(both["keys"][0]) in (tmp_path / "both" / "clips.html").read_text()


def test_perfect_scores_are_written_as_valid_json(snapshot: Snapshot) -> None:
    rows = snapshot.rows_of(("eval",))
    targets = snapshot.targets(rows).toarray().astype(bool)
    for are_positive, names in ((targets, {"mAP", "auc", "d_prime"}), (targets | True, {"mAP"})):
        metrics = Evaluation(are_positive.astype(float), are_positive, tagging_metrics(are_positive, are_positive))
        written = json.loads(json.dumps(metrics.metrics_by_name, allow_nan=False))
        assert written.keys() == names
        assert written["mAP"] == 1


def test_unknown_class_is_rejected_before_scoring(snapshot: Snapshot, capsys: pytest.CaptureFixture[str]) -> None:
    name = snapshot.labels.names[0]
    assert run_evaluate("--checkpoints", "none", "--root", snapshot.store.root, "--classes", name, name[:-1]) == 2
    assert f"found {name[:-1]!r}" in (shown := capsys.readouterr().err) and repr(name) in shown


def test_out_of_memory_suggests_a_smaller_batch(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AST, "forward", run_out)
    checkpoint = save_model(tmp_path, snapshot.labels, 16, 256)
    assert run_evaluate("--checkpoints", checkpoint, "--root", snapshot.store.root, "--batch-size", 6) == 1
    assert "out of memory with --batch-size 6; try --batch-size 3" in capsys.readouterr().err


def test_classes_are_matched_by_name_and_other_classes_rejected(
    snapshot: Snapshot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = Labels(snapshot.labels.mids[::-1], snapshot.labels.names[::-1])
    others = Labels(snapshot.labels.mids, ("something else", *snapshot.labels.names[1:]))
    scores = []
    for name, labels in (("same", snapshot.labels), ("turned", turned), ("others", others)):
        checkpoint = save_model(tmp_path / name, labels, 16, 128)
        flags = ("--root", snapshot.store.root, "--output", tmp_path / name)
        assert run_evaluate("--checkpoints", checkpoint, *flags) == int(name == "others")
        if name != "others":
            scores.append(np.load(tmp_path / name / "scores.npz")["scores"])
    np.testing.assert_allclose(scores[1], scores[0][:, ::-1], atol=1e-6)
    assert "MismatchError" in (shown := capsys.readouterr().err) and "class 0 is 'something else'" in shown


@pytest.mark.slow
def test_named_clips_are_scored_and_compared(
    snapshot: Snapshot,
    miniature: Miniature,
    empty_database: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = Path(shutil.copytree(snapshot.store.root, tmp_path / "store"))
    shutil.copytree(miniature.metadata_folder, root / layout.METADATA)
    shutil.copyfile(empty_database, root / layout.MLFLOW_DATABASE)
    keys = snapshot.index["key"].take(snapshot.rows_of(("eval",))).to_pylist()
    segments = root / layout.segments_file("eval")
    segments.write_text(segments.read_text() + 'missing-id1, 0.0, 10.0, "/m/09x0r"\n')
    (tmp_path / "list.txt").write_text("\n".join([*keys[1:6], "missing-id1"]))
    folders = []
    for stride in (16, 12):
        checkpoint = save_model(tmp_path, snapshot.labels, stride, 256)
        folders.append(tmp_path / f"evaluation-{stride}")
        flags = ("--root", root, "--output", folders[-1], "--clips", tmp_path / "list.txt")
        assert run_evaluate("--checkpoints", checkpoint, *flags) == 0
        assert "5 of 6; 1 missing" in capsys.readouterr().out
        scores, metrics = np.load(folders[-1] / "scores.npz"), json.loads((folders[-1] / "metrics.json").read_text())
        assert scores["keys"].tolist() == keys[1:6]
        assert metrics["coverage"] == "5 of 6; 1 missing"
        scored = scores["targets"].any(axis=0)
        expected = average_precision_score(scores["targets"][:, scored], scores["scores"][:, scored], average="macro")
        assert metrics["mAP"] == pytest.approx(expected, abs=1e-6)
    compare(CompareConfig((str(folders[0]), str(folders[1])), str(root), str(tmp_path / "page.html")))
    assert "Metrics on the common clips (5 clips that all scored; of the 6 clips of" in capsys.readouterr().out
    assert "Metrics on the common clips" in (tmp_path / "page.html").read_text()
