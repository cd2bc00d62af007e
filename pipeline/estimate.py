"""Estimate of what a run costs: time, bytes and, at stated prices, money."""

import math
from dataclasses import dataclass

from pipeline.records import CLIPS_PER_PART

SECONDS_PER_HOUR = 3600
GB = 1e9


@dataclass(frozen=True)
class CostConfig:
    """Assumptions about costs. Prices are those of AWS in us-east-1, on demand, in US dollars; look at yours."""

    num_addresses: int = 1
    """Nodes or proxies that ask at a time."""
    num_cores: int = 16
    """Cores of all nodes."""
    cpu_s_per_clip: float = 0.02
    """Decode, fbank and write, on one core; measured by bench/convert.py."""
    media_bytes_per_clip: float = 1.2e6
    """Fetched for each clip: about 200 s of video at 48 kbit/s for YouTube, 0.2 MB for a cut mirror."""
    stored_bytes_per_clip: float = 258e3
    """fp16 fbank of 10 s and its description."""
    audio_bytes_per_clip: float = 214e3
    """FLAC, with keep_audio."""
    yield_share: float = 0.8
    """Share of the segments that are still available."""
    price_per_core_hour: float = 0.0425
    price_per_gb_month: float = 0.023
    price_per_1000_puts: float = 0.005


@dataclass(frozen=True)
class Estimate:
    """Estimate for `num_segments`."""

    num_segments: int
    clips_per_hour: int
    """Per address; 0 is no limit."""
    clips_per_shard: int
    keep_audio: bool
    costs: CostConfig

    @property
    def num_clips(self) -> float:
        return self.num_segments * self.costs.yield_share

    @property
    def core_hours(self) -> float:
        return self.num_clips * self.costs.cpu_s_per_clip / SECONDS_PER_HOUR

    @property
    def address_hours(self) -> float:
        return self.num_segments / self.clips_per_hour if self.clips_per_hour else 0.0

    @property
    def wall_hours(self) -> float:
        """The slower of computing and asking."""
        return max(self.core_hours / self.costs.num_cores, self.address_hours / self.costs.num_addresses)

    @property
    def fetched_bytes(self) -> float:
        return self.num_clips * self.costs.media_bytes_per_clip

    @property
    def stored_bytes(self) -> float:
        audio = self.costs.audio_bytes_per_clip if self.keep_audio else 0
        return self.num_clips * (self.costs.stored_bytes_per_clip + audio)

    @property
    def num_puts(self) -> float:
        """Tar, measures and sidecar of each shard, and the parts of its journal."""
        return self.num_segments / self.clips_per_shard * (3 + math.ceil(self.clips_per_shard / CLIPS_PER_PART))

    def lines(self) -> list[str]:
        costs = self.costs
        rate = f"{self.clips_per_hour} an hour and address" if self.clips_per_hour else "no hourly limit"
        storage = self.stored_bytes / GB * costs.price_per_gb_month
        puts = self.num_puts / 1000 * costs.price_per_1000_puts
        computing = self.core_hours * costs.price_per_core_hour
        duration = f"{self.wall_hours:.1f} h" if self.wall_hours >= 1 else f"{self.wall_hours * 60:.1f} min"
        return [
            f"time     {duration}; {costs.num_cores} cores; addresses: {costs.num_addresses}, {rate}",
            f"         {self.core_hours:.1f} core-hours, {self.address_hours:.0f} address-hours",
            f"bytes    {self.fetched_bytes / GB:.1f} GB fetched, {self.stored_bytes / GB:.1f} GB stored",
            f"money    ${computing:.2f} computing, ${puts:.2f} for {self.num_puts:.0f} PUTs, ${storage:.2f} a month",
            f"assumed  {costs.yield_share:.0%} available, {costs.cpu_s_per_clip} s of a core and"
            f" {costs.media_bytes_per_clip / 1e6:.1f} MB fetched per clip, ${costs.price_per_core_hour} a core-hour,"
            f" ${costs.price_per_gb_month} a GB and month, ${costs.price_per_1000_puts} per 1,000 PUTs",
        ]
