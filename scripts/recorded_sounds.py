"""Make a table for jobs/finetune.py from recorded sounds that a Linux distribution's packages hold.

    python scripts/recorded_sounds.py                                         lists what is installed
    apt-get install klettres-data
    python scripts/recorded_sounds.py --package klettres-data --out sounds.csv
    python jobs/finetune.py --data sounds.csv --init …

Recordings that resemble each other, such as a picture's name in all languages or a drum struck softly and hard, are in
the same split.
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
"""Words in the names of drum samples, the first that is found counts; other samples are left out."""


VELOCITY = re.compile(r"[-_ ]*(hardest|hard|med|softest|soft|normal|\d+)$", re.IGNORECASE)
"""At the end of a sample's name: how hard the drum was struck, or which take it is."""


@dataclass(frozen=True)
class Sound:
    path: Path
    label: str
    group: str
    """What it resembles: a group is in one split."""


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
"""Of Debian's names: the folder below the prefix, and how its sounds are found."""


def find_sounds(package: str, prefix: Path, min_per_class: int) -> list[Sound]:
    """Return a package's sounds, of the classes with enough of them; none if it is not installed."""
    folder, find = PACKAGES[package]
    sounds = list(find(prefix / folder))
    counts = Counter(sound.label for sound in sounds)
    return [sound for sound in sounds if counts[sound.label] >= min_per_class]


def write_table(sounds: Sequence[Sound], out: Path, eval_share: float) -> Counter[tuple[str, str]]:
    """Write a table for jobs/finetune.py, and return how many sounds each label and split has."""
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
    parser.add_argument("--package", choices=PACKAGES, help="package to take the sounds of; lists all unless set")
    parser.add_argument("--out", type=Path, default=Path("sounds.csv"), help="table to write")
    parser.add_argument("--prefix", type=Path, default=Path("/usr/share"), help="folder that packages install into")
    parser.add_argument("--min-per-class", type=int, default=15, help="sounds that a class must have")
    parser.add_argument("--eval-share", type=float, default=0.2, help="share of the groups to evaluate on")
    args = parser.parse_args(argv)
    if not args.package:
        for package in PACKAGES:
            sounds = find_sounds(package, args.prefix, args.min_per_class)
            num_classes = len({sound.label for sound in sounds})
            is_there = (args.prefix / PACKAGES[package][0]).is_dir()
            print(
                f"{package:26}" + (f"{len(sounds):5} sounds in {num_classes} classes" if is_there else "not installed")
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
