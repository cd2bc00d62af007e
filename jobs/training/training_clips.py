"""Select the training clips of a snapshot."""

from ast_model.config import TrainConfig
from pipeline.config import SelectionConfig
from pipeline.quality.selection import exclude_clips, parse_expression
from pipeline.snapshots.snapshot import Snapshot


def check_selection(selection: SelectionConfig) -> None:
    """Raise ConfigError for a malformed `--data.exclude`, before any costly step."""
    for expression in selection.exclude:
        parse_expression(expression)


def select_training_clips(snapshot: Snapshot, selection: SelectionConfig, train: TrainConfig) -> Snapshot:
    """Return the snapshot without the training clips that `--data.exclude` matches."""
    if not selection.exclude:
        return snapshot
    return exclude_clips(snapshot, selection.exclude, train.train_splits, train.eval_split)
