"""The command line of the service."""

from pathlib import Path

import pytest

from ast_model.tracking.registry import REGISTERED
from jobs.config import ServeConfig
from jobs.launch.serve import find_version, read_token
from jobs.serve import COMMAND_LINE
from pipeline.errors import ConfigError, InputError


def test_other_addresses_than_loopback_need_a_token(tmp_path: Path) -> None:
    words = ["--checkpoint", "a-model", "--host", "0.0.0.0"]
    with pytest.raises(ConfigError, match="expected --token-file for --host 0"):
        COMMAND_LINE.parse(words)
    file = tmp_path / "token"
    assert COMMAND_LINE.parse([*words, "--token-file", str(file)]).token_file == str(file)
    file.write_text("short\n")
    with pytest.raises(InputError, match="at least 16 characters"):
        read_token(str(file))
    file.write_text(f"{'x' * 20}\nand a remark\n")
    assert read_token(str(file)) == "x" * 20


def test_only_our_own_model_is_followed(tmp_path: Path) -> None:
    for name in ("models:/other@champion", f"models:/{REGISTERED}"):
        with pytest.raises(ConfigError, match=f"expected models:/{REGISTERED}@ALIAS"):
            find_version(ServeConfig(name, root=str(tmp_path)))
