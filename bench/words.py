"""Synthetic speech in the layout of Speech Commands: ten words by espeak-ng in several voices, pitches and speeds.

Each voice is a speaker and appears in one split only, as in the official lists.
"""

import itertools
import subprocess
from pathlib import Path

WORDS = "yes no up down left right on off stop go".split()
VOICES = [f"en-us+{variant}" for variant in "m1 m2 m3 m4 m5 m6 m7 f1 f2 f3 f4 f5".split()]
HELD_OUT = {"en-us+m7": "validation_list.txt", "en-us+f5": "validation_list.txt"}
HELD_OUT |= {"en-us+m6": "testing_list.txt", "en-us+f4": "testing_list.txt"}
PITCHES, SPEEDS = (35, 65), (130, 190)


def make_words(folder: Path) -> None:
    """Write 480 files of 10 words and the two lists; needs espeak-ng."""
    lists: dict[str, list[str]] = {name: [] for name in HELD_OUT.values()}
    for word, (number, voice), pitch, speed in itertools.product(WORDS, enumerate(VOICES), PITCHES, SPEEDS):
        name = f"{word}/{number:08x}_nohash_{pitch}{speed}.wav"
        (folder / word).mkdir(parents=True, exist_ok=True)
        options = ["-v", voice, "-p", str(pitch), "-s", str(speed), "-w", str(folder / name)]
        subprocess.run(["espeak-ng", *options, word], check=True)
        if voice in HELD_OUT:
            lists[HELD_OUT[voice]].append(name)
    for list_name, names in lists.items():
        (folder / list_name).write_text("\n".join(names) + "\n")
