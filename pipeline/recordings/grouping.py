"""Group clips that must stay in the same split: recordings, their copies, and groups defined by the user."""

import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from pipeline.errors import ConfigError, InputError, quote
from pipeline.recordings.sound_tables import LABEL_SEPARATOR, clean
from pipeline.recordings.tables import LabelledClip

log = logging.getLogger(__name__)


def group_by_name(clips: Sequence[LabelledClip], pattern: str) -> list[LabelledClip]:
    """Return the clips with groups that a pattern finds in their file names. A file without a match is a group.

    Raises ConfigError if no name matches, or if the clips have groups already.
    """
    if any(clip.group for clip in clips):
        raise ConfigError("expected either --group-by or a column group, found both; omit one of them")
    expression, group_of = re.compile(pattern), dict[Path, str]()
    for path in dict.fromkeys(clip.path for clip in clips):
        if found := expression.search(clean(path.name)):
            group_of[path] = "-".join(filter(None, found.groups())) or found[0]
    others = [clip.path.name for clip in clips if clip.path not in group_of]
    if not group_of:
        raise ConfigError(f"--group-by: expected a pattern that occurs in names such as {others[0]}, found {pattern!r}")
    if others:
        names = len(set(others))
        log.warning("--group-by: %d file names do not match, such as %s; each is its own group", names, others[0])
    log.info("--group-by: %d groups, such as %s", len(set(group_of.values())), next(iter(group_of.values())))
    return [replace(clip, group=group_of.get(clip.path, "")) for clip in clips]


def join_groups(clips: Sequence[LabelledClip], original_of: Mapping[Path, Path]) -> list[LabelledClip]:
    """Return the clips with their final groups. Stated groups are joined if they share a file or copies of a file.

    The group of all other clips is their file.
    """
    files = [str(original_of[clip.path]) for clip in clips]
    names = list(dict.fromkeys(clip.group for clip in clips if clip.group))
    node_of = {("group", name): node for node, name in enumerate(names)}
    node_of |= {("file", file): len(names) + place for place, file in enumerate(dict.fromkeys(files))}
    edges = [
        (node_of["group", clip.group], node_of["file", file])
        for clip, file in zip(clips, files, strict=True)
        if clip.group
    ]
    size = len(node_of)
    rows, columns = np.array(edges, int).reshape(-1, 2).T
    graph = sparse.coo_array((np.ones(len(edges), bool), (rows, columns)), shape=(size, size))
    component_of = csgraph.connected_components(graph, directed=False)[1]
    name_of: dict[int, str] = {}
    for (_, name), node in node_of.items():
        name_of.setdefault(int(component_of[node]), name)
    groups = (name_of[int(component_of[node_of["file", file]])] for file in files)
    return [replace(clip, group=group) for clip, group in zip(clips, groups, strict=True)]


def check_groups(clips: Sequence[LabelledClip], source: Path) -> None:
    """Raise InputError if a stated group is in several of the stated splits."""
    splits_of: dict[str, Counter[str]] = defaultdict(Counter)
    for clip in clips:
        if clip.group and clip.split:
            splits_of[clip.group][clip.split] += 1
    if leaks := {group: splits for group, splits in splits_of.items() if len(splits) > 1}:
        group, splits = next(iter(leaks.items()))
        found = " and ".join(f"{count} in {split}" for split, count in splits.items())
        raise InputError(
            f"{source}: expected all clips of a group in one split, found {len(leaks)} groups in several, such as"
            f" {quote(group)} with {found}; correct the table, or remove its splits and let the command choose them"
        )


def find_copies(clips: Sequence[LabelledClip]) -> dict[Path, Path]:
    """Map each file to the first file with the same content; warn about copies with different labels.

    Copies count as one file when splits are assigned, so that no copy of a training file is evaluated on. Only files of
    equal size are read.
    """
    labels_of: dict[Path, set[str]] = defaultdict(set)
    for clip in clips:
        labels_of[clip.path].update(clip.labels)
    paths_of: dict[int, list[Path]] = defaultdict(list)
    for path in labels_of:
        paths_of[path.stat().st_size].append(path)
    first_of: dict[tuple[int, str], Path] = {}
    original_of: dict[Path, Path] = {}
    for size, paths in paths_of.items():
        for path in paths:
            digest = _digest(path) if len(paths) > 1 else ""
            original_of[path] = first_of.setdefault((size, digest), path)
    copies = [(path, original) for path, original in original_of.items() if path != original]
    if contradictions := [(path, first) for path, first in copies if labels_of[path] != labels_of[first]]:
        path, first = contradictions[0]
        log.warning(
            "%d files have the same content as a file with different labels, such as %s (%s) and %s (%s); correct the"
            " wrong labels, or give both files all labels",
            len(contradictions),
            path,
            LABEL_SEPARATOR.join(sorted(labels_of[path])),
            first,
            LABEL_SEPARATOR.join(sorted(labels_of[first])),
        )
    return original_of


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
