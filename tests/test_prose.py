"""The countable rules of CONTRIBUTING's "Writing", checked over docstrings and comments."""

import ast
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "ast_model", "jobs")

MAX_PER_1000_WORDS = {
    r"what|whatever|whoever": 1.0,
    r"others?|those|ones": 2.6,
    r"(of|by|with|to|in) (which|whom)|whose": 0.9,
    r"lies?|stands?": 0.1,
}
"""Highest frequencies of words that usually stand in for a noun or a plain verb."""

FRAGMENT = re.compile(
    r"(as|at|by|for|from|if|in|of|once|said|to|unless|what|where|whether|which|who|with|without)\b", re.IGNORECASE
)
"""First words of docstrings that lack a subject or a verb."""
MAX_FRAGMENTS = 20

DIRECTIVE = re.compile(r"#\s*(pyright|type|noqa|ruff)\b")


def source_files() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def read_docstrings(file: Path) -> list[str]:
    """Return the docstrings of modules, classes, functions and attributes."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    bodies = [body for node in nodes if isinstance(body := getattr(node, "body", None), list)]
    values = [statement.value for body in bodies for statement in body if isinstance(statement, ast.Expr)]
    return [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]


def read_comments(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as stream:
        tokens = [token for token in tokenize.generate_tokens(stream.readline) if token.type == tokenize.COMMENT]
    return [token.string for token in tokens if not DIRECTIVE.match(token.string)]


@cache
def read_prose() -> str:
    texts = [text for file in source_files() for text in read_docstrings(file) + read_comments(file)]
    return " ".join(" ".join(texts).split())


@pytest.mark.parametrize(("words", "max_rate"), MAX_PER_1000_WORDS.items())
def test_words_that_replace_a_noun_are_rare(words: str, max_rate: float) -> None:
    prose = read_prose()
    found = re.findall(rf"\b(?:{words})\b", prose, re.IGNORECASE)
    assert 1000 * len(found) / len(re.findall(r"[A-Za-z']+", prose)) <= max_rate


def test_docstrings_start_with_a_noun_or_a_verb() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {text.strip()[:60]}"
        for file in source_files()
        for text in read_docstrings(file)
        if FRAGMENT.match(text.strip())
    ]
    assert len(found) <= MAX_FRAGMENTS, "\n".join(found)
