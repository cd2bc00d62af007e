"""Fit names of any length and script into plots."""

import logging
import unicodedata
from collections.abc import Iterable
from functools import cache

from matplotlib import get_data_path, rcParams
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font

log = logging.getLogger(__name__)

MAX_WIDTH = 48
"""Maximum width of a name, in Latin letters. Longer names would leave no space for the plot."""
MISSING = "\u25a1"
"""Replacement for characters that no installed font has, a white square."""
PLACEHOLDER_FONT = "Last Resort"
"""matplotlib's font with a box for every character."""
DEFAULT_FONT = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"


def fit_text(text: str, max_width: int = MAX_WIDTH) -> str:
    """Shorten text in the middle, and escape it, so that matplotlib prints it as plain text and not as mathematics."""
    text = "".join(character if character.isprintable() else " " for character in text)
    text = "".join(MISSING if _font_with(character) is None else character for character in _shorten(text, max_width))
    return text.replace("$", r"\$")


def font_families(texts: Iterable[str]) -> list[str]:
    """Return the default fonts, then further fonts that the texts need, in matplotlib's fallback order."""
    needed = {_font_with(character) for text in texts for character in text}
    return [*rcParams["font.family"], *sorted(name for name in needed if name)]


def _shorten(text: str, max_width: int) -> str:
    if text_width(text) <= max_width:
        return text
    return _take(text, (max_width - 1) // 2) + "…" + _take(text[::-1], max_width // 2)[::-1]


def _take(text: str, max_width: int) -> str:
    """Return the start of a text up to a width."""
    width = 0
    for position, character in enumerate(text):
        width += text_width(character)
        if width > max_width:
            return text[:position]
    return text


def text_width(text: str) -> int:
    """Return the width in columns: two for Chinese, Japanese and Korean characters, otherwise one."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


@cache
def _font_with(character: str) -> str | None:
    """Return the family of a font with this character, "" for the default font, or None without such a font."""
    if FT2Font(DEFAULT_FONT).get_char_index(ord(character)):
        return ""
    for font in fontManager.ttflist:
        if font.name.startswith(PLACEHOLDER_FONT):
            continue
        try:
            if FT2Font(font.fname).get_char_index(ord(character)):
                return font.name
        except (OSError, RuntimeError):  # a removed or damaged font file
            continue
    log.warning("plots show %s for %r: install a font with it, such as fonts-noto-cjk", MISSING, character)
    return None
