"""Augment batches on the device in AST's order: mixup, padding, frequency mask, time mask, normalising, noise, roll.

Axes: B clips, Q partners, T frames, M mel bins, S samples.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ast_model.config import AugmentConfig
from ast_model.data.loader import Batch
from ast_model.data.sampling import FREQ_START, FREQ_WIDTH, NOISE, ROLL, TIME_START, TIME_WIDTH
from pipeline.fbank import compute_fbank
from pipeline.fbank_settings import FRAME_LENGTH, FRAME_SHIFT, LOG_FLOOR

FULL_SCALE = 32768
"""Full scale of int16 samples."""
NOISE_LEVEL = 0.1
"""Maximum noise, in normalised units."""
SILENCE = torch.log(torch.tensor(LOG_FLOOR)).item()
"""Log-mel of digital silence, rounded to float32. Stored as a Python number, because `.item()` in a step would wait for
the device."""


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation for normalising fbanks."""

    mean: float
    std: float


def normalise(fbank_BTM: Tensor, mean: float, std: float) -> Tensor:
    """Return (x − mean) / (2·std). As in AST, padding is 0 before normalising."""
    return (fbank_BTM - mean) / (2 * std)


def prepare(batch: Batch, mean: float, std: float) -> Tensor:
    """Return the model's input (B, T, M) float32, without augmentation."""
    return normalise(mix(batch), mean, std)


def augment(batch: Batch, config: AugmentConfig, mean: float, std: float) -> Tensor:
    """Return the model's augmented input (B, T, M) float32.

    All random numbers come from the batch, so a draw gives the same sample on every rank.
    """
    return perturb(mix(batch), batch.uniforms, config, mean, std)


def perturb(fbank_BTM: Tensor, uniforms: Tensor, config: AugmentConfig, mean: float, std: float) -> Tensor:
    """Mask, normalise, add noise and roll mixed fbanks (B, T, M). No shape depends on the values."""
    fbank_BTM = _mask(fbank_BTM, 2, config.max_freq_mask_bins, uniforms[:, FREQ_WIDTH : FREQ_START + 1])
    fbank_BTM = _mask(fbank_BTM, 1, config.max_time_mask_frames, uniforms[:, TIME_WIDTH : TIME_START + 1])
    fbank_BTM = normalise(fbank_BTM, mean, std)
    if config.noise:
        fbank_BTM = fbank_BTM + _noise(fbank_BTM, uniforms[:, NOISE])
    if config.max_roll_frames:
        fbank_BTM = _roll(fbank_BTM, config.max_roll_frames, uniforms[:, ROLL])
    return fbank_BTM


def mix(batch: Batch) -> Tensor:
    """Return the batch's fbanks (B, T, M) float32, mixed with their partners and padded with 0."""
    return mix_power(batch) if batch.features == "fbank" else mix_waveforms(batch)


def mix_power(batch: Batch) -> Tensor:
    """Mix stored fbanks to approximate the mixture of their waveforms, λ·a + (1 − λ)·b.

    Adds the powers without the cross term: log(λ²·exp a + (1 − λ)²·exp b). Partners are cut or padded with silence to
    the length of the clip. Frames after the clip's end stay 0.
    """
    fbank_BTM = batch.clips.float()
    if not len(batch.mixed):
        return fbank_BTM
    num_frames = fbank_BTM.shape[1]
    clip_QTM = fbank_BTM[batch.mixed]
    partner_QTM = batch.partners.float()
    partner_QTM = torch.where(_is_within(batch.partner_lengths_Q, num_frames)[..., None], partner_QTM, SILENCE)
    lambda_Q11 = batch.lambda_Q.view(-1, 1, 1)
    mixed_QTM = torch.logaddexp(clip_QTM + 2 * lambda_Q11.log(), partner_QTM + 2 * torch.log1p(-lambda_Q11))
    is_clip = _is_within(batch.lengths_B[batch.mixed], num_frames)[..., None]
    fbank_BTM[batch.mixed] = torch.where(is_clip, mixed_QTM.clamp(min=SILENCE), 0.0)
    return fbank_BTM


def mix_waveforms(batch: Batch) -> Tensor:
    """Mix waveforms and compute their fbanks on the batch's device, exactly as in AST.

    Each waveform's mean is removed, the partner is padded with 0 or cut to the clip's length, and the mean of the
    mixture is removed again. Source: https://github.com/YuanGongND/ast,
    `src/dataloader.py`, `_wav2fbank`.
    """
    waveform_BS = _remove_mean(batch.clips.float() / FULL_SCALE, batch.lengths_B)
    if len(batch.mixed):
        partner_QS = _remove_mean(batch.partners.float() / FULL_SCALE, batch.partner_lengths_Q)
        num_samples = waveform_BS.shape[1]
        partner_QS = nnf.pad(partner_QS, (0, max(0, num_samples - partner_QS.shape[1])))[:, :num_samples]
        lambda_Q1 = batch.lambda_Q[:, None]
        mixed_QS = lambda_Q1 * waveform_BS[batch.mixed] + (1 - lambda_Q1) * partner_QS
        waveform_BS[batch.mixed] = _remove_mean(mixed_QS, batch.lengths_B[batch.mixed])
    fbank_BTM = compute_fbank(waveform_BS[:, : FRAME_LENGTH + (batch.num_frames - 1) * FRAME_SHIFT])
    num_frames_B = 1 + (batch.lengths_B - FRAME_LENGTH) // FRAME_SHIFT
    fbank_BTM = torch.where(_is_within(num_frames_B, fbank_BTM.shape[1])[..., None], fbank_BTM, 0.0)
    return nnf.pad(fbank_BTM, (0, 0, 0, batch.num_frames - fbank_BTM.shape[1]))


def _remove_mean(waveform_BS: Tensor, num_samples_B: Tensor) -> Tensor:
    """Remove each waveform's mean over its length, and set the padding to 0."""
    is_sample = _is_within(num_samples_B, waveform_BS.shape[1])
    waveform_BS = torch.where(is_sample, waveform_BS, 0.0)
    mean_B1 = waveform_BS.sum(1, keepdim=True, dtype=torch.float64) / num_samples_B[:, None]
    return torch.where(is_sample, waveform_BS - mean_B1.float(), 0.0)


def _is_within(lengths_B: Tensor, size: int) -> Tensor:
    """Return a mask (B, size): True before the end of each clip."""
    return torch.arange(size, device=lengths_B.device) < lengths_B[:, None]


def _mask(fbank_BTM: Tensor, axis: int, max_width: int, uniforms_B2: Tensor) -> Tensor:
    """Set a band of random width up to `max_width` to 0 in each clip, like torchaudio's `mask_along_axis_iid`."""
    if max_width == 0:
        return fbank_BTM
    size = fbank_BTM.shape[axis]
    width_B = uniforms_B2[:, 0] * min(max_width, size)
    start_B = uniforms_B2[:, 1] * (size - width_B)
    first, last = start_B.long(), start_B.long() + width_B.long()
    positions = torch.arange(size, device=fbank_BTM.device)
    is_masked = (positions >= first[:, None]) & (positions < last[:, None])
    return fbank_BTM.masked_fill(is_masked[:, None, :] if axis == 2 else is_masked[:, :, None], 0.0)


def _noise(fbank_BTM: Tensor, uniforms_B: Tensor) -> Tensor:
    """Return uniform noise. A single random number per clip determines its strength and values.

    Each value is a hash of this number and the value's position. All devices give the same noise, and none waits for a
    generator that is seeded on the CPU.
    """
    num_frames, num_bins = fbank_BTM.shape[1:]
    position_TM = torch.arange(num_frames * num_bins, device=fbank_BTM.device).view(num_frames, num_bins)
    seed_B11 = (uniforms_B * 2**32).long().view(-1, 1, 1)
    # Hash positions before combining them with the seed: similar seeds must not merely swap neighbouring values.
    bits_BTM = _hash32(_hash32(position_TM) ^ _hash32(seed_B11))
    noise_BTM = (bits_BTM >> 8).float() / 2**24  # the 24 bits of a float32's significand: [0, 1), never rounded up to 1
    return noise_BTM * (uniforms_B * NOISE_LEVEL).view(-1, 1, 1)


def _hash32(values: Tensor) -> Tensor:
    """Return 32 well-mixed bits of each number from 0 to 2³² − 1, as int64.

    There are no collisions, because multiplying by an odd number and folding the high bits are bijective. The factor is
    below 2³¹, so that no product overflows int64.
    """
    for _ in range(2):
        values = ((values ^ (values >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return values ^ (values >> 16)


def _roll(fbank_BTM: Tensor, max_frames: int, uniforms_B: Tensor) -> Tensor:
    """Roll each clip in time by −max_frames to max_frames − 1 frames."""
    num_frames = fbank_BTM.shape[1]
    shift_B = (uniforms_B * 2 * max_frames).long() - max_frames
    source = (torch.arange(num_frames, device=fbank_BTM.device) - shift_B[:, None]) % num_frames
    return fbank_BTM.gather(1, source[..., None].expand_as(fbank_BTM))
