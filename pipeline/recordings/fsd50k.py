"""Download FSD50K's split archives, and read its official folder."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import InputError, describe, quote
from pipeline.recordings.download import fetch_archive, join_split_zip, unpack
from pipeline.recordings.tables import LabelledClip

LONGEST_MS = 30_000
VOCABULARY = "FSD50K.ground_truth/vocabulary.csv"
SPLIT_OF = {"train": "train", "val": "valid"}
"""Names of our splits for the values of the column `split` in dev.csv."""
ARCHIVES = {
    "FSD50K.ground_truth": {"zip": "ca27382c195e37d2269c4c866dd73485"},
    "FSD50K.dev_audio": {
        "z01": "faa7cf4cc076fc34a44a479a5ed862a3",
        "z02": "8f9b66153e68571164fb1315d00bc7bc",
        "z03": "1196ef47d267a993d30fa98af54b7159",
        "z04": "d088ac4e11ba53daf9f7574c11cccac9",
        "z05": "81356521aa159accd3c35de22da28c7f",
        "zip": "c480d119b8f7a7e32fdb58f3ea4d6c5a",
    },
    "FSD50K.eval_audio": {"z01": "3090670eaeecc013ca1ff84fe4442aeb", "zip": "6fa47636c3a3ad5c7dfeba99f2637982"},
}
"""Expected md5 of each part, from soundata. The last part of a split zip contains its table of contents."""


def fetch_fsd50k(address: str, home: Path) -> Path:
    """Download, join and unpack all parts into `home`. Skips completed steps. Returns the official folder."""
    folder = home / "fsd50k"
    for name, digests in ARCHIVES.items():
        for ending, digest in digests.items():
            fetch_archive(f"{address}/{name}.{ending}", home / f"{name}.{ending}", digest)
        archive = home / f"{name}.zip"
        unpack(join_split_zip(archive) if len(digests) > 1 else archive, folder)
    return folder


def read_fsd50k(folder: Path) -> tuple[list[LabelledClip], list[str]]:
    """Return the clips of the splits train, valid and test, and the classes in the order of the vocabulary.

    Raises InputError for another folder, for missing audio, and, with the line, for tables that contradict each other.
    """
    mid_of = read_vocabulary(folder / VOCABULARY)
    clips = []
    for part in ("dev", "eval"):
        table = folder / f"FSD50K.ground_truth/{part}.csv"
        found = list(_read_table(table, folder / f"FSD50K.{part}_audio", mid_of))
        missing = [clip.path.name for clip in found if not clip.path.is_file()]
        if missing or not found:
            raise InputError(
                f"{table} names {len(found)} clips; {len(missing)} are not in {folder / f'FSD50K.{part}_audio'}"
                f" ({', '.join(missing[:3])}): unpack FSD50K.{part}_audio.zip, with all of its parts, into {folder}"
            )
        clips += found
    return clips, list(mid_of)


def read_vocabulary(table: Path) -> dict[str, str]:
    """Return the mid of each class in the order of the indices. Raises InputError for another order."""
    mid_of: dict[str, str] = {}
    try:
        with table.open(encoding="utf-8", newline="") as file:
            for position, row in enumerate(csv.reader(file)):
                if len(row) != 3 or row[0] != str(position) or row[1] in mid_of:
                    raise InputError(
                        f"{table}, line {position + 1}: expected index {position}, a new label and its mid, found"
                        f" {quote(','.join(row))}; use the official vocabulary.csv, which orders the classes"
                    )
                mid_of[row[1]] = row[2]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"expected FSD50K's {VOCABULARY} at {table}, found: {describe(error)}") from error
    return mid_of


def _read_table(table: Path, audio: Path, mid_of: Mapping[str, str]) -> Iterator[LabelledClip]:
    """Yield the clips of dev.csv (splits train and valid) or of eval.csv (split test)."""
    is_dev = table.name == "dev.csv"
    try:
        with table.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                where = f"{table}, line {reader.line_num}"
                labels = tuple(row["labels"].split(","))
                if unknown := [label for label in labels if label not in mid_of]:
                    raise InputError(f"{where}: the label {quote(unknown[0])} is not in {VOCABULARY}")
                if [mid_of[label] for label in labels] != row["mids"].split(","):
                    raise InputError(
                        f"{where}: expected the mids of {quote(row['labels'])} as in {VOCABULARY}, found"
                        f" {quote(row['mids'])}; the tables are from different releases"
                    )
                if is_dev and row["split"] not in SPLIT_OF:
                    raise InputError(f"{where}: expected the split train or val, found {quote(row['split'])}")
                split = SPLIT_OF[row["split"]] if is_dev else "test"
                yield LabelledClip(audio / f"{row['fname']}.wav", labels, split, 0, LONGEST_MS)
    except (OSError, KeyError, AttributeError, ValueError, csv.Error) as error:
        columns = "fname,labels,mids" + (",split" if is_dev else "")
        raise InputError(f"expected FSD50K's table with the columns {columns} at {table}, found: {error!r}") from error
