"""Write a table for jobs/finetune.py from the recorded sounds in Debian packages.

    python scripts/recorded_sounds.py                                         list installed packages
    apt-get install klettres-data
    python scripts/recorded_sounds.py --package klettres-data --out sounds.csv
    python jobs/finetune.py --data sounds.csv --init …

Similar recordings, such as a picture's name in all languages or a drum struck softly and hard, share a split.
"""

import argparse
import csv
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.recordings.splits import split_groups

HEADER = ("path", "labels", "split")
DRUMS = {
    "kick": r"kick|bass ?drum|\bbd\b",
    "snare": r"snare|\bsd\b|rimshot",
    "hi-hat": r"hi-?hat|\bhat\b|_hat_|hh",
    "tom": r"tom",
    "cymbal": r"crash|ride|china|splash|cymbal",
    "clap": r"clap",
}
"""Patterns in the names of drum samples, tried in order; samples without a match are skipped."""

VELOCITY = re.compile(r"[-_ ]*(hardest|hard|med|softest|soft|normal|\d+)$", re.IGNORECASE)
"""Suffix of a sample's name for velocity or take."""


@dataclass(frozen=True)
class Sound:
    path: Path
    label: str
    group: str
    """Name shared by similar sounds; a group is never divided between splits."""


def find_stamps(folder: Path) -> Iterator[Sound]:
    """Yield the spoken names of Tux Paint's pictures, `NAME_desc_LANGUAGE.ogg`, with their language."""
    for file in sorted(folder.rglob("*_desc_*.ogg")):
        name, _, language = file.stem.partition("_desc_")
        yield Sound(file, language, f"{file.parent}/{name}")


def find_letters(folder: Path) -> Iterator[Sound]:
    """Yield KLettres' letters and syllables, `LANGUAGE/alpha/NAME.ogg`, with their language."""
    for file in sorted(folder.glob("*/*/*.ogg")):
        yield Sound(file, file.parts[-3], str(file))


def find_samples(folder: Path) -> Iterator[Sound]:
    """Yield Sonic Pi's samples, `KIND_NAME.flac`, with their kind."""
    for file in sorted(folder.glob("*_*.flac")):
        yield Sound(file, file.name.partition("_")[0], str(file))


def find_drums(folder: Path) -> Iterator[Sound]:
    """Yield the samples of Hydrogen's drum kits, `KIT/NAME.flac` or `.wav`, with their drum."""
    for file in sorted([*folder.glob("*/*.flac"), *folder.glob("*/*.wav")]):
        words = (label for label, words in DRUMS.items() if re.search(words, file.stem.lower()))
        if label := next(words, ""):
            yield Sound(file, label, f"{file.parent.name}/{VELOCITY.sub('', file.stem)}")


PACKAGES: dict[str, tuple[str, Callable[[Path], Iterator[Sound]]]] = {
    "tuxpaint-stamps-default": ("tuxpaint/stamps", find_stamps),
    "klettres-data": ("klettres", find_letters),
    "sonic-pi-samples": ("sonic-pi/samples", find_samples),
    "hydrogen-drumkits": ("hydrogen/data/drumkits", find_drums),
}
"""Debian packages: folder below the prefix, and a function that finds the sounds."""


def find_sounds(package: str, prefix: Path, min_per_class: int) -> list[Sound]:
    """Return a package's sounds in classes of at least `min_per_class`; empty if it is not installed."""
    folder, find = PACKAGES[package]
    sounds = list(find(prefix / folder))
    counts = Counter(sound.label for sound in sounds)
    return [sound for sound in sounds if counts[sound.label] >= min_per_class]


def write_table(sounds: Sequence[Sound], out: Path, eval_share: float) -> Counter[tuple[str, str]]:
    """Write a table for jobs/finetune.py; return the number of sounds by label and split."""
    labels_of: dict[str, list[str]] = defaultdict(list)
    for sound in sounds:
        labels_of[sound.group].append(sound.label)
    split_of = split_groups(labels_of, eval_share)
    rows = [(str(sound.path.absolute()), sound.label, split_of[sound.group]) for sound in sounds]
    with out.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
    return Counter((label, split) for _, label, split in rows)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", choices=PACKAGES, help="package with the sounds; default: list all packages")
    parser.add_argument("--out", type=Path, default=Path("sounds.csv"), help="table to write")
    parser.add_argument("--prefix", type=Path, default=Path("/usr/share"), help="folder of the installed packages")
    parser.add_argument("--min-per-class", type=int, default=15, help="minimum number of sounds per class")
    parser.add_argument("--eval-share", type=float, default=0.2, help="share of the groups in the evaluation split")
    args = parser.parse_args(argv)
    if not args.package:
        for package in PACKAGES:
            sounds = find_sounds(package, args.prefix, args.min_per_class)
            num_classes = len({sound.label for sound in sounds})
            is_installed = (args.prefix / PACKAGES[package][0]).is_dir()
            print(
                f"{package:26}"
                + (f"{len(sounds):5} sounds in {num_classes} classes" if is_installed else "not installed")
            )
        return 0
    sounds = find_sounds(args.package, args.prefix, args.min_per_class)
    if not sounds:
        folder = args.prefix / PACKAGES[args.package][0]
        print(f"expected sounds in {folder}, found none: apt-get install {args.package}", file=sys.stderr)
        return 1
    counts = write_table(sounds, args.out, args.eval_share)
    for label in sorted({sound.label for sound in sounds}):
        print(f"{label:12}{counts[label, 'train']:5} train{counts[label, 'eval']:5} eval")
    print(f"{len(sounds)} sounds in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
