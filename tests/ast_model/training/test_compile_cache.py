"""The compile cache, with real compilations in processes of their own."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ast_model.training.compile_cache import FOLDER_VARIABLE, CompileCache
from pipeline.store.storage import Store

COMPILE = """
import sys, tempfile
from pathlib import Path
import torch
from ast_model.training.compile_cache import CompileCache
from pipeline.store.storage import Store

cache = CompileCache(Store(sys.argv[1]), "compiled/key.tar.gz", Path(sys.argv[2]))
cache.load()
function = torch.compile(lambda x: torch.sin(x).square().sum(), dynamic=False)
function(torch.ones(64, requires_grad=True)).backward()
cache.save()
counters = torch._dynamo.utils.counters["inductor"]
print(counters["fxgraph_cache_miss"], counters["fxgraph_cache_hit"])
"""


def compile_on(machine: Path, store: Path) -> list[int]:
    """Compile in a process with this machine's folder; return the misses and hits of inductor's cache."""
    env = {name: value for name, value in os.environ.items() if name != FOLDER_VARIABLE}
    env |= {"PYTHONPATH": os.pathsep.join(sys.path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    command = [sys.executable, "-c", COMPILE, str(store), str(machine)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return [int(count) for count in ended.stdout.split()[-2:]]


@pytest.mark.rehearsal
def test_second_machine_reuses_the_code_that_the_first_one_compiled(tmp_path: Path) -> None:
    misses, hits = compile_on(tmp_path / "first", tmp_path / "store")
    assert (misses > 0, hits) == (True, 0)
    stored = tmp_path / "store" / "compiled" / "key.tar.gz"
    written_ns = stored.stat().st_mtime_ns
    assert compile_on(tmp_path / "second", tmp_path / "store") == [0, misses]
    assert stored.stat().st_mtime_ns == written_ns


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CompileCache:
    monkeypatch.setenv(FOLDER_VARIABLE, "")  # restored after the test
    folder = tmp_path / "machine" / "key"
    folder.mkdir(parents=True)
    (folder / "kernel.py").write_text("code")
    cache = CompileCache(Store(str(tmp_path / "store")), "compiled/key.tar.gz", folder)
    cache.save()
    return cache


@pytest.mark.parametrize("damage", [lambda data: data[:40], lambda data: data[:-1] + b"x", lambda data: b""])
def test_damaged_cache_costs_a_warning_and_is_replaced(
    cache: CompileCache, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage
) -> None:
    good = cache.store.read_bytes(cache.name)
    cache.store.write_bytes(cache.name, damage(good))
    other = CompileCache(cache.store, cache.name, tmp_path / "other" / "key")
    with caplog.at_level(logging.WARNING):
        other.load()
    assert "compiling again, because the compile cache can't be used" in caplog.text
    assert os.environ[FOLDER_VARIABLE] == str(other.folder)
    assert not other.folder.exists()
    other.folder.mkdir(parents=True)  # as inductor does
    (other.folder / "kernel.py").write_text("code")
    other.save()
    third = CompileCache(cache.store, cache.name, tmp_path / "third" / "key")
    third.load()
    assert (third.folder / "kernel.py").read_text() == "code"


def test_store_that_refuses_writes_costs_a_warning(
    cache: CompileCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    other = CompileCache(Store(str(tmp_path / "file")), cache.name, cache.folder)
    other.save()
    assert "the next start compiles again, because the compile cache can't be stored" in caplog.text
