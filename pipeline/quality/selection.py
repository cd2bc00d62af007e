"""Exclude training clips by expressions such as `silence > 0.9` or `codec == mp3 and bit_rate < 32000`.

A clip is excluded if any of the expressions is true for it. An expression is true if all its conditions are true. A
condition on an unknown measure is false.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import, so pyright does not see them.

import difflib
import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, InputError, NoClipsError, quote
from pipeline.fbank_settings import FRAME_SHIFT_MS
from pipeline.measures.table import MEASURES_SCHEMA, NUMERIC_AND_TEXT, read_measures
from pipeline.quality.duplicates.pair_table import duplicate_groups, load_duplicates
from pipeline.segments import HELD_OUT_SPLITS
from pipeline.snapshots.snapshot import Snapshot, publish_selection

log = logging.getLogger(__name__)

COMPARISONS = {
    ">": pc.greater,
    ">=": pc.greater_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    "==": pc.equal,
    "!=": pc.not_equal,
}
CONDITION = re.compile(r"(\w+)\s*(?:(>=|<=|==|!=|>|<)\s*(\S+))?")
FLAGS = ("duplicate", "duplicate_of_eval")
"""Boolean columns. Conditions on them need no comparison."""
COLUMNS = (*NUMERIC_AND_TEXT, "duration_s", *FLAGS)


@dataclass(frozen=True)
class Condition:
    """A condition that compares a column with a value, or that tests a boolean column."""

    column: str
    comparison: str = ""
    value: float | str = ""


def parse_expression(expression: str) -> tuple[Condition, ...]:
    """Parse conditions joined by `and`. Raises ConfigError, which suggests a correction, if a condition is
    malformed."""
    return tuple(_parse_condition(part.strip(), expression) for part in re.split(r"\band\b", expression))


def _parse_condition(text: str, expression: str) -> Condition:
    found = CONDITION.fullmatch(text)
    if not found:
        raise ConfigError(
            f'--data.exclude: expected conditions such as "silence > 0.9", found {quote(text)} in {quote(expression)}'
        )
    column, comparison, value = found[1], found[2] or "", found[3] or ""
    if column not in COLUMNS:
        close = difflib.get_close_matches(column, COLUMNS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COLUMNS)}"
        raise ConfigError(f"--data.exclude: expected a column, found {quote(column)}; {hint}")
    if column in FLAGS:
        if comparison:
            raise ConfigError(f"--data.exclude: {column} takes no comparison, found {quote(text)}")
        return Condition(column)
    is_text = column != "duration_s" and pa.types.is_string(MEASURES_SCHEMA.field(column).type)
    if is_text:
        if comparison not in ("==", "!="):
            raise ConfigError(f"--data.exclude: {column} is text and takes == or !=, found {quote(text)}")
        return Condition(column, comparison, value.strip("'\""))
    number = math.nan
    with suppress(ValueError):
        number = float(value)
    if math.isnan(number):
        raise ConfigError(f"--data.exclude: expected {column}, a comparison and a number, found {quote(text)}")
    return Condition(column, comparison, number)


def exclude_clips(snapshot: Snapshot, expressions: Sequence[str], train: Collection[str], eval_split: str) -> Snapshot:
    """Publish a selection of a snapshot without the training clips for which any expression is true.

    Raises ConfigError if an expression is malformed, InputError if a column has no measures, and NoClipsError if no
    training clip is left.

    train: training splits. Clips of other splits are never excluded, so that metrics remain comparable.
    eval_split: split that `duplicate_of_eval` considers, in addition to `HELD_OUT_SPLITS`.
    """
    parsed = [parse_expression(expression) for expression in expressions]
    is_trained_on = np.isin(snapshot.splits, list(train))
    columns = {condition.column for conditions in parsed for condition in conditions}
    values = read_columns(snapshot, columns - {"duplicate"}, is_trained_on, eval_split)
    is_out = np.zeros(len(snapshot.index), bool)
    counts = {}
    # Exclude duplicates last, so that each group keeps a clip that no other expression excludes.
    duplicate = Condition("duplicate")
    for expression, conditions in sorted(zip(expressions, parsed, strict=True), key=lambda each: duplicate in each[1]):
        if duplicate in conditions and "duplicate" not in values:
            values |= read_columns(snapshot, {"duplicate"}, is_trained_on & ~is_out, eval_split)
        matches = find_matches(conditions, values) & is_trained_on
        counts[expression] = int(matches.sum())
        is_out |= matches
    said = ", ".join(f"{count} by {expression}" for expression, count in counts.items())
    log.info("--data.exclude excludes %d of %d training clips: %s", is_out.sum(), is_trained_on.sum(), said)
    if not (is_trained_on & ~is_out).any():
        raise NoClipsError(
            f"--data.exclude leaves none of the {is_trained_on.sum()} clips of {', '.join(sorted(train))}: {said};"
            " exclude less"
        )
    made_by = {"exclude": list(expressions), "splits": sorted(train), "num_excluded": counts}
    return publish_selection(snapshot, np.flatnonzero(~is_out), made_by)


def read_columns(
    snapshot: Snapshot, columns: Collection[str], is_trained_on: np.ndarray, eval_split: str
) -> dict[str, pa.ChunkedArray]:
    """Read the columns that expressions need, with one value per clip.

    Raises InputError, which names the command that adds the column, if a column is missing.
    """
    values: dict[str, pa.ChunkedArray] = {}
    if measured := [name for name in columns if name in NUMERIC_AND_TEXT]:
        table = read_measures(snapshot, measured)
        values = {name: table[name] for name in measured}
    for name, column in values.items():
        if column.null_count == len(column):
            raise InputError(
                f"--data.exclude: no clip of {snapshot.store.root} has the measure {name}; run `python"
                " jobs/preprocess.py measure` there (measures of the original media exist"
                " only for clips converted from now on)"
            )
    if "duration_s" in columns:
        values["duration_s"] = durations_of(snapshot)
    if flags := set(FLAGS) & set(columns):
        pairs = load_duplicates(snapshot)
        if pairs is None:
            raise InputError(
                f"--data.exclude: snapshot {snapshot.whole_id} has not been searched for near-identical clips; run"
                f" `python jobs/preprocess.py duplicates --root {snapshot.store.root}`"
            )
        is_held_out = np.isin(snapshot.splits, [eval_split, *HELD_OUT_SPLITS]) & ~is_trained_on
        found = mark_duplicates(duplicate_groups(snapshot, pairs), is_trained_on, is_held_out)
        values |= {name: pa.chunked_array([found[name]]) for name in flags}
    return values


def durations_of(snapshot: Snapshot) -> pa.ChunkedArray:
    """Return the duration of each clip (N,) in seconds."""
    return pa.chunked_array([snapshot.index["num_frames"].to_numpy() * FRAME_SHIFT_MS / 1000])


def mark_duplicates(groups: np.ndarray, is_trained_on: np.ndarray, is_held_out: np.ndarray) -> dict[str, np.ndarray]:
    """Return the masks (N,) `duplicate` and `duplicate_of_eval`, given groups of near-identical clips.

    If several training clips are near-identical, all except the first are duplicates.
    """
    is_first = np.zeros(len(groups), bool)
    rows = np.flatnonzero(is_trained_on)
    is_first[rows[np.unique(groups[rows], return_index=True)[1]]] = True
    return {
        "duplicate": is_trained_on & ~is_first,
        "duplicate_of_eval": is_trained_on & np.isin(groups, groups[is_held_out]),
    }


def count_leaks(snapshot: Snapshot, train: Collection[str], eval_split: str) -> int:
    """Count the evaluation clips that have an identical training clip or, if duplicates were searched, a near-identical
    one."""
    is_trained_on, is_evaluated = np.isin(snapshot.splits, list(train)), snapshot.splits == eval_split
    keys = snapshot.index["key"]
    trained_keys = keys.filter(pa.array(is_trained_on)).combine_chunks()
    is_leak = is_evaluated & pc.is_in(keys, value_set=trained_keys).to_numpy()
    pairs = load_duplicates(snapshot)
    if pairs is not None:
        groups = duplicate_groups(snapshot, pairs)
        is_leak |= is_evaluated & np.isin(groups, groups[is_trained_on])
    return int(is_leak.sum())


def find_matches(conditions: Sequence[Condition], values: Mapping[str, pa.ChunkedArray]) -> np.ndarray:
    """Return a mask (N,) of the clips that meet all conditions. values: the columns that the conditions refer to."""
    return np.logical_and.reduce([_evaluate(condition, values) for condition in conditions])


def _evaluate(condition: Condition, values: Mapping[str, pa.ChunkedArray]) -> np.ndarray:
    column = values[condition.column]
    if not condition.comparison:
        return column.to_numpy()
    found = COMPARISONS[condition.comparison](column, condition.value)
    return found.fill_null(False).to_numpy()
