"""`make gpu` with few packages installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu import ENV, PARTS, Part, Report, markdown_table, run_part

ROOT = Path(__file__).parents[1]
ABSENT = (
    "aiohttp av boto3 botocore braceexpand matplotlib mlflow moto ray requests s3fs sqlalchemy tyro webdataset yt_dlp"
).split()
"""Dependencies of the project that `make gpu` must not need."""
FINDER_WITHOUT_ABSENT = f"""
import sys
from importlib.machinery import PathFinder

class FinderWithoutAbsent(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT!r} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = FinderWithoutAbsent
"""
TWO_STEPS = """
import itertools, sys, torch
import bench.attention, bench.fbank, bench.feeding, bench.gpu, bench.memory, bench.roofline
from ast_model.config import ASTConfig
from ast_model.distributed import World
from bench.stores import make_store
from bench.train_step import ours, stored_batches
from pipeline.store.storage import Store

world = World(0, 1, torch.device("cpu"))
config = ASTConfig(num_frames=64, freq_stride=16, time_stride=16, width=16, depth=1, num_heads=1)
batches = stored_batches(make_store(Store(sys.argv[1]), 1, 4), config, 2, world)
step = ours(config, batches, 2, world)
results = [step(), step()]
print([bool(result.loss.isfinite()) for result in results])
batches.close()
"""


@pytest.fixture
def bare_machine(tmp_path: Path) -> dict[str, str]:
    """Environment variables for a Python that cannot import the absent packages."""
    (tmp_path / "sitecustomize.py").write_text(FINDER_WITHOUT_ABSENT)
    return {**ENV, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


def python(arguments: list[str], env: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.process
def test_training_from_a_store_needs_few_packages(bare_machine: dict[str, str], tmp_path: Path) -> None:
    assert python(["-c", TWO_STEPS, str(tmp_path / "store")], bare_machine).strip().endswith("[True, True]")


@pytest.mark.process
def test_gpu_tests_need_few_packages(bare_machine: dict[str, str]) -> None:
    tests = next(part for part in PARTS if part.name == "tests")
    assert "test_augmentation_matches_the_cpu" in python([*tests.command, "--collect-only"], bare_machine)


@pytest.mark.process
def test_parts_without_need_of_a_gpu_run_without_one(bare_machine: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    bare_machine["CUDA_VISIBLE_DEVICES"] = ""
    printed = python(["-m", "bench.gpu", "--out", str(out), "--parts", "tests,fbank"], bare_machine)
    report = json.loads(out.read_text())
    assert [part["status"] for part in report["parts"]] == ["skipped without a GPU", "done"]
    result, hugging_face = report["results"]
    assert (result["name"], hugging_face["peer"]) == ("fbank", "ASTFeatureExtractor")
    assert f"| fbank | {result['figure']} clips/s (device cpu, batch_size 4) | torchaudio, clip by clip" in printed
    assert "Parts that need a GPU were skipped" in printed


@pytest.mark.process
def test_results_of_a_part_are_kept_when_its_deadline_ends_it(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json", {"device": "none"})
    line = '{"name": "ours", "unit": "samples/s", "figure": 390.0, "peer": "transformers", "peer_figure": 300.0}'
    code = f"import time; print({line!r}, flush=True); time.sleep(600)"
    outcome = run_part(Part("slow", ("-c", code), deadline_s=2), lambda text: report.add_line("slow", text))
    report.add_part(outcome)
    assert outcome["status"] == "ended at its deadline"
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["results"][0]["figure"] == 390
    assert "| ours | 390.0 samples/s | transformers: 300.0 |  | 1.3 |" in markdown_table(content["results"])


def test_deadlines_fit_into_nine_minutes() -> None:
    assert sum(part.deadline_s for part in PARTS) <= 9 * 60 - 30
