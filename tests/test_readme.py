"""Public names and links of the README."""

import importlib
import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
NAMES = re.findall(r"^\| `((?:pipeline|ast_model)\.[\w.]+)", README, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_public_name_can_be_imported(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_readme_lists_seven_public_names() -> None:
    assert len(NAMES) == 7


def test_links_and_images_exist() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert [target for target in targets if not (Path(__file__).parents[1] / target).exists()] == []
