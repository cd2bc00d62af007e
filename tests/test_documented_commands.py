"""Every documented command, parsed by its job and checked as far as possible without a cluster."""

import importlib
import itertools
import math
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from ast_model.training.checks import check_ranks

ROOT = Path(__file__).parents[1]
TEXTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "Makefile", "deploy/crontab", "deploy/Dockerfile"]
YAMLS = ["cluster.yaml", "cluster-gcp.yaml"]
JOBS = sorted(file.stem for file in (ROOT / "jobs").glob("*.py") if file.stem not in ("__init__", "config"))

COMMAND = re.compile(
    r"(?P<launcher>\bpython|\btorchrun\b[^\n`|]*?)\s+(?P<job>jobs/\w+\.py)\b(?P<arguments>[^\n`]*)", re.MULTILINE
)


class Command(NamedTuple):
    """Documented command of a job."""

    where: str
    launcher: str
    job: str
    arguments: list[str]

    def __str__(self) -> str:
        return f"{self.where}: {self.job} {' '.join(self.arguments)}"

    @property
    def num_torchrun_ranks(self) -> int:
        counts = re.findall(r"--(?:nproc-per-node|nnodes)[ =](\d+)", self.launcher)
        return math.prod(map(int, counts))


def find_commands() -> Iterator[Command]:
    for where, text in find_texts():
        text = re.sub(r"\\\n\s*", " ", text)
        for found in COMMAND.finditer(text):
            for arguments in read_arguments(found["arguments"]):
                yield Command(where, found["launcher"], found["job"], arguments)


def find_texts() -> Iterator[tuple[str, str]]:
    """Yield names and texts of pages, strings in YAML files, and docstrings of jobs and presets."""
    docs = [str(file.relative_to(ROOT)) for file in sorted((ROOT / "docs").glob("*.md"))]
    for name in [*TEXTS, *docs]:
        yield name, (ROOT / name).read_text(encoding="utf-8")
    for name in [*YAMLS, *(str(file.relative_to(ROOT)) for file in sorted((ROOT / "deploy").glob("*.yaml")))]:
        for document in yaml.safe_load_all((ROOT / name).read_text(encoding="utf-8")):
            yield name, "\n".join(find_strings(document))
    for job in JOBS:
        module = importlib.import_module(f"jobs.{job}")
        yield f"jobs/{job}.py", module.__doc__ or ""
        for name, preset in module.COMMAND_LINE.presets.items():
            yield f"jobs/{job}.py {name}", textwrap.dedent(preset.__doc__ or "")


def find_strings(node: Any) -> Iterator[str]:
    """Yield the strings of a YAML document; a list of words is joined to one command."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list) and node and all(isinstance(each, str) for each in node):
        yield "\n".join(node) if any(" " in each for each in node) else shlex.join(node)
    elif isinstance(node, list | dict):
        for child in node.values() if isinstance(node, dict) else node:
            yield from find_strings(child)


def read_arguments(text: str) -> Iterator[list[str]]:
    """Yield the words of a command, once per alternative in `a|b|c`."""
    # A comment, a redirection (but not `> 0.9`) or a column of explanations ends the command.
    text = (
        re.split(r"\s#|\s{4,}(?![\s-])|\s\||\s>>?(?!\s\d)|\s2>", f" {text}")[0]
        .replace("$(ROOT)", "ROOT")
        .replace("$(PORT)", "5000")
    )
    # An ellipsis is a value after a flag and otherwise omitted; optional words in brackets are included.
    text = re.sub(r"(--[\w.-]+) …", r"\1 VALUE", text)
    words = shlex.split(re.sub(r"\[|\]|…|\.\.\.", " ", text))
    words = [f"{word}-{number}" if word == "RUN" else word for number, word in enumerate(words)]
    choices = [word.split("|") if re.fullmatch(r"\w+(\|\w+)+", word) else [word] for word in words]
    yield from map(list, itertools.product(*choices))


BY_NAME = {str(command): command for command in find_commands()}


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME, ids=list(BY_NAME))
def test_documented_command_is_accepted(name: str) -> None:
    command = BY_NAME[name]
    if not command.arguments:
        assert (ROOT / command.job).exists()  # a file name in a sentence
        return
    job = importlib.import_module(command.job.removesuffix(".py").replace("/", "."))
    config = job.COMMAND_LINE.parse(command.arguments)
    if hasattr(config, "train"):
        fewest, most = config.ray.num_workers
        ranks = {command.num_torchrun_ranks} if "torchrun" in command.launcher else {fewest, most}
        for num_ranks in ranks:
            check_ranks(config.train, num_ranks)
        config.train.regularise.num_kept_patches(config.model.grid)


def test_every_job_is_documented() -> None:
    shown = {(command.job, bool(command.arguments)) for command in BY_NAME.values()}
    assert {(f"jobs/{job}.py", True) for job in JOBS} <= shown


def test_commands_are_found_in_pages_and_deploy_files() -> None:
    found = {command.where.split()[0] for command in BY_NAME.values() if command.arguments}
    assert {"README.md", "docs/cluster.md", "deploy/rayjob.yaml", "deploy/cronjob.yaml", "deploy/crontab"} <= found
    assert any(command.num_torchrun_ranks == 8 for command in BY_NAME.values() if "torchrun" in command.launcher)
    assert any("--workers 4:32" in name and name.startswith("docs/cluster.md") for name in BY_NAME)
