import pytest

from ast_model.evaluation.plot_text import MISSING, fit_text, font_families


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dog", "Dog"),
        ("abcdefghijk", "abcd…hijk"),
        ("$5 a\tday", r"\$5 a day"),
        ("Öl_für", "Öl_für"),
    ],
)
def test_text_is_shortened_and_escaped(text: str, expected: str) -> None:
    assert fit_text(text, 9) == expected


def test_wide_characters_count_twice() -> None:
    assert len(fit_text("狗" * 10, 9)) == 5


def test_unknown_characters_become_squares() -> None:
    unknown = "\U00012000"  # cuneiform
    assert fit_text(f"a{unknown}b") == f"a{MISSING}b"


def test_fonts_with_the_needed_characters_are_added() -> None:
    default = font_families(["plain"])
    assert font_families(["\U0001d7ce bold zero"]) == [*default, "STIXGeneral"]
