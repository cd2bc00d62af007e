"""Write the miniature's tables in AudioSet's format."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.miniature.classes import CLASSES
from pipeline.records import Segment


def write_class_labels(path: Path) -> None:
    rows = [f'{i},{sound.mid},"{sound.name}"' for i, sound in enumerate(CLASSES)]
    _write_lines(path, ["index,mid,display_name", *rows])


def write_segments(path: Path, segments: Sequence[Segment]) -> None:
    labels = [mid for segment in segments for mid in segment.labels]
    num_ytids = len({segment.ytid for segment in segments})
    rows = [
        f'{each.ytid}, {each.start_ms / 1000:.3f}, {each.end_ms / 1000:.3f}, "{",".join(each.labels)}"'
        for each in sorted(segments, key=lambda segment: segment.ytid)
    ]
    _write_lines(
        path,
        [
            "# Segments csv of a miniature with made sounds",
            f"# num_ytids={num_ytids}, num_segs={len(segments)}, "
            f"num_unique_labels={len(set(labels))}, num_positive_labels={len(labels)}",
            "# YTID, start_seconds, end_seconds, positive_labels",
            *rows,
        ],
    )


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
