"""Read Speech Commands' official folder."""

from pathlib import Path

from pipeline.errors import InputError
from pipeline.recordings.tables import LabelledClip

CLIP_MS = 1_000
LISTS = {"validation_list.txt": "valid", "testing_list.txt": "test"}
NOISE_FOLDER = "_background_noise_"


def read_speech_commands(folder: Path) -> tuple[list[LabelledClip], list[str]]:
    """Return the clips and the words. Files in neither list are training files. Raises InputError if the folder is not
    valid."""
    split_of: dict[str, str] = {}
    for name, split in LISTS.items():
        try:
            lines = (folder / name).read_text(encoding="utf-8").split()
        except OSError as error:
            raise InputError(f"expected Speech Commands' {name} in {folder}, found: {error}") from error
        split_of |= dict.fromkeys(lines, split)
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.glob("*/*.wav"))]
    names = [name for name in names if not name.startswith(NOISE_FOLDER)]
    if missing := sorted(split_of.keys() - set(names)):
        raise InputError(
            f"{folder}: {len(missing)} of {len(split_of)} listed files are missing, such as {missing[0]}; unpack the"
            " archive again"
        )
    if len(names) == len(split_of):
        raise InputError(
            f"{folder}: expected training files, which are in neither list, found none; unpack the archive again"
        )
    words = sorted({name.split("/")[0] for name in names})
    return [
        LabelledClip(folder / name, (name.split("/")[0],), split_of.get(name, "train"), 0, CLIP_MS) for name in names
    ], words
