"""Compare fbanks computed in batches on this machine's device with torchaudio's, clip by clip on the same device.

    python -m bench.fbank

Takes a GPU if there is one. Prints a JSON line: clips of 10 s a second, medians of rounds that take turns. The results
are compared first.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from bench.lines import print_line
from pipeline.fbank import NUM_MEL_BINS, SAMPLE_RATE_HZ, compute_fbank

NUM_ROUNDS = 5
TOLERANCE = 1e-4


def torchaudio_loop(waveform_BS: Tensor) -> Tensor:
    """Compute fbanks as AST's own code does, one clip after the other."""
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


def seconds_of(compute: Callable[[Tensor], Tensor], waveform_BS: Tensor) -> float:
    started = time.perf_counter()
    compute(waveform_BS)
    if waveform_BS.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num_clips = 64 if device.type == "cuda" else 4
    torch.manual_seed(0)
    waveform_BS = (0.1 * torch.randn(num_clips, 10 * SAMPLE_RATE_HZ)).to(device)
    ours, theirs = compute_fbank(waveform_BS), torchaudio_loop(waveform_BS)  # warms both up, too
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(NUM_ROUNDS):
        seconds["ours"].append(seconds_of(compute_fbank, waveform_BS))
        seconds["theirs"].append(seconds_of(torchaudio_loop, waveform_BS))
    rates = {name: num_clips / median(each) for name, each in seconds.items()}
    peer = ("torchaudio, clip by clip", rates["theirs"])
    print_line("fbank", "clips/s", rates["ours"], peer, device=device.type, batch_size=num_clips)


if __name__ == "__main__":
    main()
