from collections import Counter

import pytest

from pipeline.snapshots.origins import MAX_FOLDERS, fold_folders, origin_of


@pytest.mark.parametrize(
    ("source", "origin"),
    [
        ("https://www.youtube.com/watch?v=-a_bcdefghi (format 18, yt-dlp 2026.10.26)", "youtube, format 18"),
        ("https://www.youtube.com/watch?v=abcdefghijk (format 249-drc, yt-dlp 1)", "youtube, format 249-drc"),
        ("hf://datasets/owner/copy@0123abc/data/bal_train/00.parquet/abcdefghijk", "hf://datasets/owner/copy"),
        ("hf://datasets/owner/copy/data/00.tar/audio/X.flac", "hf://datasets/owner/copy"),
        ("http://127.0.0.1:8000/media/abcdefghijk.webm", "http://127.0.0.1:8000"),
        ("file:///disk/copy/data/00.tar/audio/bal_train/X.flac", "file:///disk/copy/data"),
        ("s3://bucket/copy/eval.zip/eval.tar/X.wav", "s3://bucket/copy"),
        ("/media/Yabcdefghijk.wav", "/media"),
        ("miniature", "miniature"),
    ],
)
def test_origin_is_the_part_of_a_source_that_its_clips_share(source: str, origin: str) -> None:
    assert origin_of(source) == origin


def test_many_folders_count_under_their_parents() -> None:
    counts = Counter({f"/disk/media/{number:02x}": number for number in range(1, 30)} | {"youtube, format 251": 7})
    assert fold_folders(counts) == {"/disk/media": sum(range(1, 30)), "youtube, format 251": 7}
    few = Counter({f"/disk/{number}": 1 for number in range(MAX_FOLDERS)})
    assert fold_folders(few) == few
    assert fold_folders(Counter({f"/{number}": 1 for number in range(20)})).total() == 20
