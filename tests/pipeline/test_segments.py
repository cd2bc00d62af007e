import logging
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.records import Segment
from pipeline.segments import read_segments

OFFICIAL = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=3, num_segs=3, num_unique_labels=3, num_positive_labels=4
# YTID, start_seconds, end_seconds, positive_labels
--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"
__p-iA312kg, 70.000, 77.500, "/m/02zsn"
Ab_-9xyz_12, 0.000, 10.000, "/m/09x0r"
"""
SEGMENTS = [
    Segment("--PJHxphWEs", 30_000, 40_000, ("/m/09x0r", "/t/dd00088"), "eval"),
    Segment("__p-iA312kg", 70_000, 77_500, ("/m/02zsn",), "eval"),
    Segment("Ab_-9xyz_12", 0, 10_000, ("/m/09x0r",), "eval"),
]
COPIES = {
    "official": OFFICIAL,
    "CRLF": OFFICIAL.replace("\n", "\r\n"),
    "byte-order mark": "\ufeff" + OFFICIAL,
    "no last line break": OFFICIAL.rstrip("\n"),
    "no first comment": OFFICIAL.partition("\n")[2],
    "no comments": OFFICIAL.split("positive_labels\n")[1],
    "one label without quotes": OFFICIAL.replace('"/m/02zsn"', "/m/02zsn"),
    "no quotes at all": OFFICIAL.replace('"', ""),
    "no decimals": OFFICIAL.replace(".000", ""),
    "no blanks": OFFICIAL.replace(", ", ","),
    "blank columns": OFFICIAL.replace('"\n', '",,,,\n').replace("2017\n", "2017,,,,\n"),
    "trailing blanks": OFFICIAL.replace("\n", "  \n"),
    "blank lines": OFFICIAL.replace("\n", "\n\n"),
    "a row twice": OFFICIAL + '__p-iA312kg, 70.000, 77.500, "/m/02zsn"\n',
    "a label twice": OFFICIAL.replace('"/m/02zsn"', '"/m/02zsn,/m/02zsn"'),
}


def write(folder: Path, text: str) -> str:
    file = folder / "eval_segments.csv"
    file.write_text(text, encoding="utf-8", newline="")
    return str(file)


@pytest.mark.parametrize("copy", COPIES)
def test_official_file_and_common_copies_read_the_same(tmp_path: Path, copy: str) -> None:
    assert read_segments(write(tmp_path, COPIES[copy])) == SEGMENTS


def test_keys_contain_the_whole_id() -> None:
    assert [segment.key for segment in SEGMENTS] == ["--PJHxphWEs_30000", "__p-iA312kg_70000", "Ab_-9xyz_12_0"]


def test_split_argument_overrides_the_file_name(tmp_path: Path) -> None:
    assert {segment.split for segment in read_segments(write(tmp_path, OFFICIAL), "mine")} == {"mine"}


def test_several_segments_of_one_video_are_kept(tmp_path: Path) -> None:
    text = OFFICIAL + '__p-iA312kg, 90.000, 97.500, "/m/02zsn"\n'
    assert [segment.start_ms for segment in read_segments(write(tmp_path, text))] == [30_000, 70_000, 0, 90_000]


def test_missing_rows_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_segments(write(tmp_path, OFFICIAL.replace("num_segs=3", "num_segs=20371")))
    assert "num_segs=20371 but contains 3 rows" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("abc, 0.000, 10.000", "found 3 columns"),
        ('../../x, 0.000, 10.000, "/m/1"', r"the id '\.\./\.\./x'"),
        ('a.b, 0.000, 10.000, "/m/1"', r"the id 'a\.b'"),
        (', 0.000, 10.000, "/m/1"', "the id ''"),
        ('abc, 10.000, 10.000, "/m/1"', "a start of 10.000 s and an end of 10.000 s"),
        ('abc, 10.000, 5.000, "/m/1"', "an end of 5.000 s"),
        ('abc, -1, 5, "/m/1"', "a start of -1 s"),
        ('abc, nan, 5, "/m/1"', "times 'nan' and '5'"),
        ('abc, 0, inf, "/m/1"', "times '0' and 'inf'"),
        ('abc, zero, 5, "/m/1"', "times 'zero' and '5'"),
        ('abc, 1_0, 20, "/m/1"', "times '1_0' and '20'"),
        ('abc, ٣, 5, "/m/1"', "times '٣' and '5'"),
        ('#NAME?, 0, 5, "/m/1"', "a YouTube id, found '#NAME\\?', which Excel writes"),
        ("abc, 0, 5, " + "/m/1," * 20_000, "at most 65536 bytes, found 1"),
        ("abc, 0, 5, ,,", "no labels"),
        ('abc, 0, 5, "/m/1', "an unclosed quote"),
        ('abc, 0, 5, "/m/1\ndef, 0, 5, "/m/2"', "an unclosed quote"),
        ('__p-iA312kg, 70.000, 80.000, "/m/02zsn"', "__p-iA312kg_70000 appears above with a different end"),
        ('__p-iA312kg, 70.000, 77.500, "/m/1"', "different labels"),
    ],
)
def test_malformed_row_is_rejected_with_its_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"eval_segments.csv, line 7:.*{message}"):
        read_segments(write(tmp_path, OFFICIAL + row + "\n"))


@pytest.mark.parametrize("text", ["", "# a comment\n", "\n\n"])
def test_file_without_rows_is_rejected(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"expected rows such as .*found none"):
        read_segments(write(tmp_path, text))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00binary"])
def test_binary_or_missing_file_is_reported(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "eval_segments.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"can't read the segments .*eval_segments.csv"):
        read_segments(str(file))


ids = st.text("ABCYZabcyz0189_-", min_size=11, max_size=11)
mids = st.from_regex(r"/(m|t|g)/[a-z0-9_]{2,8}", fullmatch=True)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    start_ms = draw(st.integers(0, 600_000))
    labels = tuple(sorted(draw(st.sets(mids, min_size=1, max_size=5))))
    return Segment(draw(ids), start_ms, start_ms + draw(st.integers(1, 10_000)), labels, "eval")


@pytest.mark.slow
@settings(deadline=None, max_examples=50)  # files are read
@given(st.lists(segments(), min_size=1, max_size=20, unique_by=lambda segment: segment.key))
def test_official_rows_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Segment]) -> None:
    lines = [f'{s.ytid}, {s.start_ms / 1000:.3f}, {s.end_ms / 1000:.3f}, "{",".join(s.labels)}"\n' for s in rows]
    assert read_segments(write(tmp_path_factory.getbasetemp(), "".join(lines))) == rows


LINES = st.sampled_from(
    [
        *OFFICIAL.splitlines(),
        'abcdefghijk, 0.000, 10.000, "/m/2,/m/1, /m/1"',
        'abcdefghijk, 0.000, 10.000, "/m/1,/m/2"',
        'abcdefghijk, 0.000, 10.000, "/m/1"',
        'abcdefghijk, 10.000, 20.000, "/m/Größe"',
        "short, 1, 2, /m/1,,,",
        "short,1.000,2.000,/m/1",
        "# num_segs=2",
        " ",  # not "", which would make one line break of the return before it and its own line feed
        '""',
        'abcdefghijk, 10.000, 5.000, "/m/1"',
        'abcdefghijk, 1000000.000, 1000001.000, "/m/1"',
        'abcdefghijk, 999999.000, 999999.999, "/m/1"',
        'abcdefghijk, 0.000, 10.000, " , "',
        'abcdefghijk, 0.000, 10.000, "/m/1',
        'a.b, 0.000, 10.000, "/m/1"',
    ]
)


def result_of(file: str) -> list[Segment] | str:
    try:
        return read_segments(file)
    except InputError as error:
        return str(error)


@settings(deadline=None, max_examples=50)  # files are read
@given(st.lists(LINES, max_size=8), st.lists(st.sampled_from(["\n", "\r\n", "\r"])), st.integers(1, 200))
def test_arrow_and_python_parse_rows_equally(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], breaks: list[str], block_bytes: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    ends = breaks + ["\n"] * len(lines)
    text = "".join(line + end for line, end in zip(lines, ends, strict=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.segments.BLOCK_BYTES", block_bytes)
        mixed = result_of(write(folder, text))
    # Rows that start with a space are not in the official form, so Python parses all of them.
    indented = "".join(f" {line}{end}" for line, end in zip(lines, ends, strict=False))
    assert mixed == result_of(write(folder, indented))


def test_huge_row_takes_little_memory(tmp_path: Path) -> None:
    file = write(tmp_path, "abc, 0, 5, " + "/m/1," * 10_000_000)
    tracemalloc.start()
    with pytest.raises(InputError, match="line 1: expected at most 65536 bytes"):
        read_segments(file)
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()
