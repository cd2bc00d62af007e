"""Measure the error of mixing stored fbanks instead of waveforms, as AST does, over pairs of recorded sounds.

Each sound is at most ten seconds of a file below the given folders, speech and other sounds alike. Files, pairs and
λ ~ Beta(10, 10) depend on a fixed seed. Prints one JSON line: mean absolute differences in nats over the frames and
bins of the clip, and their means by the length of the partner.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ast_model.data.augment import mix_power, mix_waveforms
from ast_model.data.loader import Batch
from bench.lines import print_line
from pipeline.audio.decode import decode_file
from pipeline.errors import InputError
from pipeline.fbank import compute_fbank
from pipeline.fbank_settings import FRAME_SHIFT, SAMPLE_RATE_HZ, num_frames_of

NUM_FRAMES = 1024
MAX_SAMPLES, MIN_SAMPLES = 10 * SAMPLE_RATE_HZ, SAMPLE_RATE_HZ
EXTENSIONS = {".wav", ".flac", ".ogg", ".oga", ".mp3"}
NUM_EDGE_FRAMES = 2
"""Number of frames that span the partner's end."""


def read_sounds(folders: Sequence[Path]) -> list[np.ndarray]:
    """Decode all sounds of at least a second to int16."""
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.suffix in EXTENSIONS)
    sounds = []
    for file in files:
        try:
            waveform = decode_file(file)[:MAX_SAMPLES]
        except InputError:
            continue
        if len(waveform) >= MIN_SAMPLES and np.abs(waveform).max() > 0:
            sounds.append(np.rint(waveform * 32767).astype(np.int16))
    if len(sounds) < 2:
        raise SystemExit(f"expected sounds of at least a second, found {len(sounds)} in {len(files)} files")
    return sounds


def make_batches(one: np.ndarray, other: np.ndarray, mixup_lambda: float) -> tuple[Batch, Batch]:
    """Return the loader's batches of one mixed clip, from stored audio and from stored fbanks."""
    waveforms = [torch.from_numpy(sound)[None] for sound in (one, other)]
    num_samples = [torch.tensor([len(sound)]) for sound in (one, other)]
    of_audio = Batch(
        features="waveform",
        num_frames=NUM_FRAMES,
        rows=np.zeros(1, np.int64),
        clips=waveforms[0],
        lengths_B=num_samples[0],
        targets_BC=torch.zeros(1, 1),
        mixed=torch.zeros(1, dtype=torch.int64),
        partners=waveforms[1],
        partner_lengths_Q=num_samples[1],
        lambda_Q=torch.tensor([mixup_lambda], dtype=torch.float32),
        uniforms=torch.zeros(1, 6),
    )
    fbanks = [_stored(waveform[0]) for waveform in waveforms]
    num_frames = [torch.tensor([num_frames_of(len(sound))]) for sound in (one, other)]
    of_fbanks = dataclasses.replace(
        of_audio,
        features="fbank",
        clips=fbanks[0],
        lengths_B=num_frames[0],
        partners=fbanks[1],
        partner_lengths_Q=num_frames[1],
    )
    return of_audio, of_fbanks


def _stored(waveform: Tensor) -> Tensor:
    """Return the stored fbank, padded: (1, T, M) float16."""
    waveform = waveform.float() / 32768
    fbank_TM = compute_fbank(waveform - waveform.mean())
    return torch.nn.functional.pad(fbank_TM, (0, 0, 0, NUM_FRAMES - len(fbank_TM))).half()[None]


def mix_linearly(batch: Batch) -> Tensor:
    """Mix log-mel values linearly, with the partner padded at the floor."""
    silence = float(np.log(np.finfo(np.float32).eps))
    partner_QTM = batch.partners.float().clone()
    partner_QTM[:, int(batch.partner_lengths_Q) :] = silence
    mixup_lambda = float(batch.lambda_Q)
    return mixup_lambda * batch.clips.float() + (1 - mixup_lambda) * partner_QTM


def measure(one: np.ndarray, other: np.ndarray, mixup_lambda: float) -> dict[str, float]:
    """Return mean absolute differences from the true mixture in nats, and the bias of mixing powers."""
    audio, stored = make_batches(one, other, mixup_lambda)
    num_frames = int(stored.lengths_B)
    true_TM = mix_waveforms(audio)[0, :num_frames]
    power_TM = mix_power(stored)[0, :num_frames] - true_TM
    linear_TM = mix_linearly(stored)[0, :num_frames] - true_TM
    end = len(other) // FRAME_SHIFT
    edge_TM = power_TM[max(0, end - NUM_EDGE_FRAMES) : end + 1] if len(other) < len(one) else power_TM[:0]
    return {
        "power": float(power_TM.abs().mean()),
        "linear": float(linear_TM.abs().mean()),
        "power_bias": float(power_TM.mean()),
        "power_edge": float(edge_TM.abs().mean()) if len(edge_TM) else float("nan"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders with recorded sounds")
    parser.add_argument("--num-pairs", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sounds = read_sounds(arguments.folders)
    random = np.random.default_rng(0)
    found = []
    for mixup_lambda in random.beta(10, 10, arguments.num_pairs).tolist():
        one, other = random.choice(len(sounds), 2, replace=False)
        found.append(measure(sounds[one], sounds[other], mixup_lambda))
    columns = {name: np.array([row[name] for row in found]) for name in found[0]}
    rest: dict[str, float] = {f"{name}_90_percent": np.quantile(columns[name], 0.9) for name in ("power", "linear")}
    rest |= {name: float(np.nanmean(columns[name])) for name in ("power_bias", "power_edge")}
    rest |= {"num_pairs": len(found), "num_sounds": len(sounds)}
    rest["mean_s"] = float(np.mean([len(sound) for sound in sounds])) / SAMPLE_RATE_HZ
    peer = "adding logarithms", float(columns["linear"].mean())
    print_line("adding powers", "nats from mixed waveforms", float(columns["power"].mean()), peer, **rest)


if __name__ == "__main__":
    main()
