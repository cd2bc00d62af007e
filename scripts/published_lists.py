"""Write ast_model/evaluation/published_lists.py from evaluation lists that publications scored.

    python -m scripts.published_lists eval_segments.csv ast-19185.txt audiomosaic-19012.txt panns-18885.txt

A list has one YouTube id per line, sorted. The module contains no ids: only which of Google's segments, in the order of
their ids, are in each list, and the SHA-256 of each list.
"""

import base64
import hashlib
import lzma
import sys
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).parents[1] / "ast_model" / "evaluation" / "published_lists.py"


def main(segments: str, *lists: str) -> None:
    lines = Path(segments).read_text().splitlines()
    ids = sorted(line.split(",")[0] for line in lines if not line.startswith("#"))
    members = [set(Path(name).read_text().split()) for name in lists]
    # One bit per list for each segment.
    patterns = np.array([sum(1 << bit for bit, list_ in enumerate(members) if each in list_) for each in ids], np.uint8)
    text = base64.b85encode(lzma.compress(patterns.tobytes(), preset=9 | lzma.PRESET_EXTREME)).decode()
    digests = {Path(name).stem: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in lists}
    entries = "\n".join(f'    "{name}": "{digest}",' for name, digest in digests.items())
    OUTPUT.write_text(
        f'"""Evaluation lists of publications, by Google\'s table of segments. See scripts/published_lists.py."""\n'
        f"\nNUM_SEGMENTS = {len(ids)}\n"
        '"""Segments in Google\'s eval_segments.csv."""\n'
        f"DIGESTS = {{\n{entries}\n}}\n"
        '"""SHA-256 of each list, with one id per line in sorted order."""\n'
        'PATTERNS = """\n' + "\n".join(text[start : start + 116] for start in range(0, len(text), 116)) + '\n"""\n'
        '"""One byte per segment in the order of ids, with a bit per list. Compressed by LZMA, in base 85."""\n'
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
