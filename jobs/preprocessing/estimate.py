"""Estimate the time and bytes of a preprocessing run. docs/scale.md has figures and prices for all of AudioSet."""

import os

CPU_S_PER_CLIP = 0.02
"""CPU time per clip for decoding, fbank and writing, measured by bench/convert.py."""
FETCHED_BYTES_PER_CLIP = 1.2e6
"""Download size per clip. On YouTube, this is about 200 s of audio at 48 kbit/s. Clips of mirrors or copies have about
0.2 to 1.4 MB."""
STORED_BYTES_PER_CLIP = 258e3
"""Size of a float16 fbank of 10 s and its JSON."""
AUDIO_BYTES_PER_CLIP = 214e3
"""Size of the FLAC that `keep_audio` adds."""


def estimate_lines(num_segments: int, clips_per_hour: int, num_addresses: int, keep_audio: bool) -> list[str]:
    """Return lines of text with estimates for the segments that are due.

    clips_per_hour: limit per address; 0 for none.
    """
    num_cores = os.cpu_count() or 1
    hours = num_segments * CPU_S_PER_CLIP / 3600 / num_cores
    limit = "no hourly limit"
    if clips_per_hour:
        hours = max(hours, num_segments / clips_per_hour / num_addresses)
        limit = f"{clips_per_hour} clips an hour from each of {num_addresses} addresses"
    stored = num_segments * (STORED_BYTES_PER_CLIP + AUDIO_BYTES_PER_CLIP * keep_audio)
    duration = f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
    fetched = num_segments * FETCHED_BYTES_PER_CLIP
    return [
        f"time     about {duration} on this machine's {num_cores} cores; {limit}",
        f"bytes    at most {_in_gb(fetched)} fetched, {_in_gb(stored)} stored",
    ]


def _in_gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
