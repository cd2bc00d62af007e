"""Measure batched fbanks on this machine's device; the peers are torchaudio and Hugging Face's extractor.

    python -m bench.fbank

Uses a GPU if available. torchaudio computes one clip after another on the same device; `ASTFeatureExtractor` does so on
the CPU, and its output is copied to the device. Checks that the results agree, then prints one JSON line per pair:
clips of 10 s per second, medians of alternating rounds.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torchaudio.compliance import kaldi
from transformers import ASTFeatureExtractor

from ast_model.data.augment import normalise
from bench.lines import print_line
from pipeline.fbank import compute_fbank
from pipeline.fbank_settings import NUM_MEL_BINS, SAMPLE_RATE_HZ

NUM_ROUNDS = 5
USUAL_DIFFERENCE, LARGEST_DIFFERENCE = 1e-4, 5e-3
"""Bounds for 99.9 % of the values, and for the logarithms of bins that are nearly empty compared with their frame.
Rounding of the float32 Fourier transform dominates there; torchaudio's own CPU and GPU results differ as much."""


def torchaudio_loop(waveform_BS: Tensor) -> Tensor:
    """Compute fbanks clip by clip, as AST's own code does."""
    fbanks = [
        kaldi.fbank(
            waveform_S[None],
            htk_compat=True,
            sample_frequency=SAMPLE_RATE_HZ,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=NUM_MEL_BINS,
            dither=0.0,
            frame_shift=10,
        )
        for waveform_S in waveform_BS
    ]
    return torch.stack(fbanks)


def seconds_of(compute: Callable[[], Tensor], device: torch.device) -> float:
    started = time.perf_counter()
    compute()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num_clips = 64 if device.type == "cuda" else 4
    torch.manual_seed(0)
    waveform_BS = (0.1 * torch.randn(num_clips, 10 * SAMPLE_RATE_HZ)).to(device)
    extractor, arrays = ASTFeatureExtractor(), list(waveform_BS.cpu().numpy())

    def features() -> Tensor:
        """Pad with zeros, then normalise, as the extractor does."""
        fbank_BTM = compute_fbank(waveform_BS)
        padded_BTM = nnf.pad(fbank_BTM, (0, 0, 0, extractor.max_length - fbank_BTM.shape[1]))
        return normalise(padded_BTM, extractor.mean, extractor.std)

    def extract() -> Tensor:
        found = extractor(arrays, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")["input_values"]
        return found.to(device)

    computations = {
        "fbank": lambda: compute_fbank(waveform_BS),
        "torchaudio, clip by clip": lambda: torchaudio_loop(waveform_BS),
        "fbank, padded and normalised": features,
        "ASTFeatureExtractor": extract,
    }
    seconds: dict[str, list[float]] = {name: [] for name in computations}
    found = {name: compute() for name, compute in computations.items()}  # also warms up
    pairs = list(zip(list(computations)[::2], list(computations)[1::2], strict=True))
    for ours, theirs in pairs:
        differences = (found[ours] - found[theirs]).abs().flatten()
        assert differences.kthvalue(int(0.999 * len(differences))).values < USUAL_DIFFERENCE
        assert differences.max() < LARGEST_DIFFERENCE
    for _ in range(NUM_ROUNDS):
        for name, compute in computations.items():
            seconds[name].append(seconds_of(compute, device))
    rates = {name: num_clips / median(each) for name, each in seconds.items()}
    for ours, theirs in pairs:
        print_line(ours, "clips/s", rates[ours], (theirs, rates[theirs]), device=device.type, batch_size=num_clips)


if __name__ == "__main__":
    main()
