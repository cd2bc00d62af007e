"""Lists of evaluation clips, compared with scikit-learn on the same clips."""

import base64
import dataclasses
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from ast_model.config import TrainConfig
from ast_model.evaluation.clip_lists import PUBLISHED_LISTS, Coverage, find_listed_clips, published_ids
from ast_model.evaluation.evaluate import Evaluation
from ast_model.evaluation.missing_clips import bound_whole_list
from ast_model.evaluation.predictions import Predictions, encode_predictions, make_predictions, parse_predictions
from ast_model.evaluation.published_lists import DIGESTS, NUM_SEGMENTS, PATTERNS
from ast_model.metrics import tagging_metrics
from ast_model.tracking.comparison import compare_on_common_clips
from ast_model.training.plan import TrainingPlan
from pipeline.errors import ConfigError, MismatchError, NoClipsError
from pipeline.miniature import Miniature
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store import layout
from pipeline.store.storage import Store

MISSING = "missing-id1"


@pytest.fixture
def listed(snapshot: Snapshot, miniature: Miniature, tmp_path: Path) -> Snapshot:
    """The snapshot, in a store that has the CSV files of its segments, and one more segment, which was not fetched."""
    shutil.copytree(miniature.metadata_folder, tmp_path / layout.METADATA)
    file = tmp_path / layout.segments_file("eval")
    last = file.read_text().splitlines()[-1]
    file.write_text(file.read_text() + f"{MISSING}{last[last.index(',') :]}\n")
    return dataclasses.replace(snapshot, store=Store(str(tmp_path)))


def test_published_lists_have_their_published_sizes() -> None:
    patterns = np.frombuffer(lzma.decompress(base64.b85decode(PATTERNS.replace("\n", ""))), np.uint8)
    sizes = {f"{name}": int((patterns >> bit & 1).sum()) for bit, name in enumerate(DIGESTS)}
    sizes["common-18781"] = int((patterns == 2 ** len(DIGESTS) - 1).sum())
    assert len(patterns) == NUM_SEGMENTS
    assert {name: int(name.rpartition("-")[2]) for name in PUBLISHED_LISTS} == sizes


def test_published_lists_need_googles_segments(listed: Snapshot) -> None:
    with pytest.raises(MismatchError, match=r"expected Google's eval_segments\.csv with 20,371 segments"):
        find_listed_clips(listed, "eval", "panns-18885")
    with pytest.raises(MismatchError, match="found 20,371 segments"):
        published_ids("panns-18885", [f"{number:011d}" for number in range(NUM_SEGMENTS)])


def test_a_file_selects_stored_clips_and_counts_missing_ones(listed: Snapshot, tmp_path: Path) -> None:
    rows = listed.rows_of(("eval",))
    stored = listed.index["key"].take(rows).to_pylist()
    chosen = [stored[3].rpartition("_")[0], stored[0], MISSING]
    file = tmp_path / "list.txt"
    file.write_text("# ids\n" + "\n".join(chosen) + "\n\n")
    found, num_listed = find_listed_clips(listed, "eval", str(file))
    assert (found.tolist(), num_listed) == ([rows[0], rows[3]], 3)
    plan = TrainingPlan(listed, TrainConfig(eval_clips=str(file)))
    assert plan.eval_rows.tolist() == found.tolist()
    assert str(plan.eval_coverage) == "2 of 3; 1 missing"
    assert str(Coverage("panns-18885", 18_885, 18_790)) == "18,790 of 18,885; 95 missing"


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("unknown-id1\n", MismatchError, "found 1 others, such as unknown-id1"),
        ("# none\n", ConfigError, "expected one YouTube id or key per line"),
        (None, ConfigError, "expected a file or one of ast-19185"),
    ],
)
def test_unusable_lists_are_refused(
    listed: Snapshot, tmp_path: Path, content: str | None, error: type[Exception], message: str
) -> None:
    if content is not None:
        (tmp_path / "list.txt").write_text(content)
    with pytest.raises(error, match=message):
        find_listed_clips(listed, "eval", str(tmp_path / "list.txt"))


def test_a_list_without_stored_clips_is_refused(listed: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(MISSING)
    with pytest.raises(NoClipsError, match=r"expected stored clips of .*list\.txt in eval"):
        find_listed_clips(listed, "eval", str(tmp_path / "list.txt"))


def draw(num_clips: int, num_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    targets = random.random((num_clips, num_classes)) < random.uniform(0.02, 0.1, num_classes)
    targets[0] = True
    return random.normal(size=targets.shape) + targets * random.uniform(0.5, 3, num_classes), targets


def make(keys: np.ndarray, scores: np.ndarray, targets: np.ndarray, clip_list: str = "", size: int = 0) -> Predictions:
    names = np.array([f"class {number}" for number in range(targets.shape[1])])
    return Predictions(keys, names, names, scores, targets, targets.sum(axis=0), 1, clip_list, size)


def test_models_are_compared_on_the_clips_that_all_scored() -> None:
    scores, targets = draw(300, 8)
    better = scores + targets
    keys = np.array([f"clip{number:03d}" for number in range(300)])
    first = make(keys[:280], scores[:280], targets[:280], "list.txt", 320)
    second = make(keys[::-1][:290], better[::-1][:290], targets[::-1][:290], "list.txt", 320)
    (section,) = compare_on_common_clips("AC", [first, second])
    for row, values in zip(section.rows, (scores, better), strict=True):
        expected = average_precision_score(targets[10:280], values[10:280], average="macro")
        assert str(row[1]).startswith(f"mAP {expected:.4f} [")
    assert "270 clips that all scored; of the 320 clips of list.txt, 50 are missing" in section.note
    low, high = (float(value) for value in str(section.rows[0][3]).split(" to "))
    assert low < float(str(section.rows[0][1]).split()[1]) < high
    (other,) = compare_on_common_clips("AB", [first, make(keys, better, targets)])
    assert other.header[-1] == "mAP on all scored clips"
    assert "of the 300 clips of all scored clips, 20 are missing" in other.note


def test_predictions_with_and_without_a_list_are_read(snapshot: Snapshot) -> None:
    rows = snapshot.rows_of(("eval",))
    targets = snapshot.targets(rows).toarray().astype(bool)
    evaluation = Evaluation(targets * 1.0, targets, tagging_metrics(targets * 1.0, targets), rows)
    coverage = Coverage("list.txt", len(rows) + 2, len(rows))
    found = make_predictions(evaluation, snapshot, (("train",), "eval"), epoch=3, coverage=coverage)
    again = parse_predictions(encode_predictions(found), "memory")
    assert (again.clip_list, again.num_listed, again.epoch) == ("list.txt", len(rows) + 2, 3)
    assert again.clips_text == f"clips of list.txt ({len(rows)} of {len(rows) + 2}; 2 missing)"


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.2])
def test_bounds_hold_in_200_random_deletions(share: float) -> None:
    scores, targets = draw(600, 20)
    whole = average_precision_score(targets, scores, average="macro")
    random, num_held = np.random.default_rng(1), 0
    for number in range(200):
        is_kept = np.ones(len(scores), dtype=bool)
        is_kept[random.choice(len(scores), round(share * len(scores)), replace=False)] = False
        low, high = bound_whole_list(scores[is_kept], targets[is_kept], int((~is_kept).sum()), seed=number)
        assert high - low < 0.2
        num_held += low <= whole <= high
    assert num_held >= 190
