"""Own sounds in minutes: the head beside a training of all weights, embeddings, and what was announced.

    apt-get install tuxpaint-stamps-default
    python -m bench.own_sounds [head embedding estimate]

2,000 recorded words in eight languages, cut to 2 s; the model is AST-tiny with random weights. Jobs run as a person
types them. Prints JSON lines; the whole takes half an hour of two cores.
"""

import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from ast_model.config import ASTConfig
from ast_model.embeddings.extract import BATCH_CLIPS
from ast_model.export import export_hugging_face
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from bench.lines import print_line
from scripts.recorded_sounds import find_sounds, write_table

ROOT = Path(__file__).parents[1]
PACKAGE, MIN_PER_CLASS = "tuxpaint-stamps-default", 500
NUM_CLIPS, CLIP_S, CLIP_FRAMES = 2_000, 2, 208
NUM_EPOCHS, FULL_S = 7, 1200.0
"""Epochs and seconds that a training of all weights is given to reach the head's accuracy: more than it has by default.

What it announced is printed, too.
"""
NUM_ROUNDS = 9
TIME = r"(?:(\d+):(\d\d):(\d\d)|([\d.]+) s)"


@dataclass
class JobOutput:
    """Lines that a job printed, with the seconds since its start."""

    lines: list[tuple[float, str]] = field(default_factory=list)
    seconds: float = 0.0

    def find(self, pattern: str) -> tuple[float, re.Match[str]]:
        """Return when the last line with a pattern came, and what was found."""
        found = [(at_s, match) for at_s, line in self.lines if (match := re.search(pattern, line))]
        if not found:
            raise SystemExit(f"expected a line like {pattern!r}, found:\n" + "\n".join(line for _, line in self.lines))
        return found[-1]


def run_job(*words: object, max_s: float = float("inf")) -> JobOutput:
    """Run one of the jobs; ask it to stop after `max_s`, whereupon it saves and ends."""
    output, started_s = JobOutput(), time.monotonic()
    command = [sys.executable, *map(str, words)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        assert job.stdout is not None
        is_stopping = False
        for line in job.stdout:
            output.lines.append((time.monotonic() - started_s, line.rstrip()))
            if not is_stopping and output.lines[-1][0] > max_s:
                is_stopping = True
                job.send_signal(signal.SIGTERM)
    output.seconds = time.monotonic() - started_s
    return output


def seconds_said(match: re.Match[str]) -> float:
    hours, minutes, seconds, fraction = match.groups()
    return float(fraction) if fraction else 3600 * int(hours) + 60 * int(minutes) + int(seconds)


def make_table(folder: Path, num_clips: int) -> Path:
    """Write a table of recorded words, drawn from all of the larger languages."""
    sounds = find_sounds(PACKAGE, Path("/usr/share"), MIN_PER_CLASS)
    if not sounds:
        raise SystemExit(f"expected the sounds of {PACKAGE}, found none: apt-get install {PACKAGE}")
    table = folder / f"{num_clips}.csv"
    write_table(random.Random(0).sample(sounds, num_clips), table, eval_share=0.2)
    return table


def finetune(table: Path, root: Path, *words: object, max_s: float = float("inf")) -> JobOutput:
    fixed = ("--clip-s", CLIP_S, "--size", "tiny", "--no-use-gpu", "--root", root, "--data", table)
    return run_job("jobs/finetune.py", *fixed, *words, max_s=max_s)


def measure_head(folder: Path) -> None:
    """Compare a head with a training of all weights, and a second head with the first."""
    table, root = make_table(folder, NUM_CLIPS), folder / "head"
    first = finetune(table, root, "--head-only")
    second = finetune(table, root, "--head-only")
    costs = r"time +([\d.]+) s for embeddings, ([\d.]+) s for the head"
    accuracy = float(first.find(r"evaluation +accuracy ([\d.]+)")[1][1])
    first_s, second_s = (sum(map(float, job.find(costs)[1].groups())) for job in (first, second))
    print_line("second head on the same sounds", "seconds", second_s, ("first head", first_s))
    print_line("second head, the whole job", "seconds", second.seconds, ("first head", first.seconds))
    # On the same store, whose clips are decoded: the head's job took that time besides.
    full = finetune(table, root, "--no-head-only", "--workers", 2, "--num-epochs", NUM_EPOCHS, max_s=FULL_S)
    reached = [(at_s, float(found[1])) for at_s, line in full.lines if (found := re.search(r"accuracy ([\d.]+)", line))]
    times = [at_s for at_s, each in reached if each >= accuracy]
    best = f"at {max(each for _, each in reached):.3f}" if reached else "in its first epoch"
    peer = "all weights to the same accuracy" if times else f"all weights, stopped {best}"
    figures = {"accuracy": accuracy, "samples": int(full.find(r"(\d+) samples in")[1][1])}
    figures["announced_full_s"] = seconds_said(full.find(rf"about {TIME} with")[1])
    print_line("table to an evaluated head", "seconds", first.seconds, (peer, min([*times, full.seconds])), **figures)


def cpu_seconds(compute: Callable[[], object]) -> float:
    started_s = time.process_time()
    with torch.inference_mode():
        compute()
    return time.process_time() - started_s


def measure_embedding(folder: Path) -> None:
    """Compare embeddings with those of transformers, of the same weights on one core, in the same batches."""
    from transformers import ASTModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    for size, frames in (("tiny", CLIP_FRAMES), ("nano", CLIP_FRAMES), ("tiny", 1024)):
        torch.manual_seed(0)
        # With one epsilon, which is all that transformers has, embeddings are the same number by number.
        shape = {"num_classes": 8, "num_frames": frames, "head_norm_eps": 1e-6}
        model = AST({"tiny": ASTConfig.tiny, "nano": ASTConfig.nano}[size](**shape)).eval()
        address = folder / f"{size}-{frames}"
        export_hugging_face(model, ModelMetadata(tuple("abcdefgh"), 0.0, 0.5), address)
        peer = ASTModel.from_pretrained(address).eval()
        fbank_BTM = torch.randn(BATCH_CLIPS["cpu"], frames, model.config.num_mel_bins)
        computes: dict[str, Callable[[], Tensor]] = {
            "ours": lambda model=model, fbank_BTM=fbank_BTM: model.embed(fbank_BTM),
            "peer": lambda peer=peer, fbank_BTM=fbank_BTM: peer(fbank_BTM).last_hidden_state[:, :2].mean(dim=1),
        }
        with torch.inference_mode():
            torch.testing.assert_close(computes["ours"](), computes["peer"](), rtol=1e-3, atol=1e-4)
        times: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(NUM_ROUNDS):
            for name, compute in computes.items():
                times[name].append(cpu_seconds(compute))
        ours, theirs = (len(fbank_BTM) / median(times[name]) for name in ("ours", "peer"))
        print_line(f"embedding, {size}, {frames / 100:.1f} s", "clips per core second", ours, ("transformers", theirs))


def measure_estimates(folder: Path) -> None:
    """Hold what three trainings said of their time against the clock."""
    table, took = make_table(folder, 300), r"steps in (\d+):(\d\d):(\d\d)()"
    full = {
        "demo": run_job("jobs/audioset.py", "demo", "--root", folder / "demo"),
        "finetune": finetune(table, folder / "few", "--no-head-only", "--num-epochs", 3),
    }
    for name, job in full.items():
        said_s = seconds_said(job.find(rf"about {TIME} with")[1])
        print_line(f"estimate, {name}", "seconds", said_s, ("what it took", seconds_said(job.find(took)[1])))
    head = finetune(make_table(folder, NUM_CLIPS), folder / "many", "--head-only")
    said_at_s, said = head.find(rf"processors: about {TIME}")
    took_s = head.find("embedded ")[0] - said_at_s
    print_line("estimate, head-only", "seconds", seconds_said(said), ("what it took", took_s))


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measures: dict[str, Callable[[], None]] = {
            "head": lambda: measure_head(folder),
            "embedding": lambda: measure_embedding(folder),
            "estimate": lambda: measure_estimates(folder),
        }
        for each in names or list(measures):
            measures[each]()


if __name__ == "__main__":
    main(sys.argv[1:])
