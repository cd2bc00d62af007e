"""Batch work on the device, in AST's order: mixup, padding, frequency mask, time mask, normalising, noise and roll.

Letters: B clips, Q partners, T frames, M mel bins.
"""

import torch
from torch import Tensor

from ast_model.config import AugmentConfig
from ast_model.loader import Batch
from pipeline.fbank import LOG_FLOOR

FREQ_WIDTH, FREQ_START, TIME_WIDTH, TIME_START, ROLL, NOISE = range(6)
"""Columns of `Batch.uniforms`."""
NOISE_LEVEL = 0.1
"""Strongest noise, in normalised units."""


def normalise(fbank_BTM: Tensor, mean: float, std: float) -> Tensor:
    """Return (x − mean) / (2·std), as AST does after padding with 0."""
    return (fbank_BTM - mean) / (2 * std)


def prepare(batch: Batch, mean: float, std: float) -> Tensor:
    """Return a batch as the model takes it, (B, T, M) float32, without augmentation."""
    return normalise(batch.fbank_BTM.float(), mean, std)


def augment(batch: Batch, config: AugmentConfig, mean: float, std: float) -> Tensor:
    """Return a batch as the model takes it for training, (B, T, M) float32.

    All randomness is in the batch, so the same draw gives the same sample on any rank.
    """
    fbank_BTM = mix_power(batch)
    fbank_BTM = _mask(fbank_BTM, 2, config.max_freq_mask_bins, batch.uniforms[:, FREQ_WIDTH : FREQ_START + 1])
    fbank_BTM = _mask(fbank_BTM, 1, config.max_time_mask_frames, batch.uniforms[:, TIME_WIDTH : TIME_START + 1])
    fbank_BTM = normalise(fbank_BTM, mean, std)
    if config.noise:
        fbank_BTM = fbank_BTM + _noise(fbank_BTM, batch.uniforms[:, NOISE])
    if config.max_roll_frames:
        fbank_BTM = _roll(fbank_BTM, config.max_roll_frames, batch.uniforms[:, ROLL])
    return fbank_BTM


def mix_power(batch: Batch) -> Tensor:
    """Mix clips with their partners as if their waveforms had been added, λ·a + (1 − λ)·b.

    Powers add up (the cross term is left out): log(λ²·exp a + (1 − λ)²·exp b). A partner is cut or padded with
    silence to the clip's length; what lies behind the clip stays 0.
    """
    fbank_BTM = batch.fbank_BTM.float()
    if not len(batch.mixed):
        return fbank_BTM
    silence = torch.log(torch.tensor(LOG_FLOOR))
    num_frames = fbank_BTM.shape[1]
    clip_QTM = fbank_BTM[batch.mixed]
    partner_QTM = batch.partner_QTM.float()
    partner_QTM = torch.where(_is_frame(batch.partner_frames_Q, num_frames), partner_QTM, silence)
    lam_Q11 = batch.lam_Q.view(-1, 1, 1)
    mixed_QTM = torch.logaddexp(clip_QTM + 2 * lam_Q11.log(), partner_QTM + 2 * torch.log1p(-lam_Q11))
    is_clip = _is_frame(batch.num_frames_B[batch.mixed], num_frames)
    fbank_BTM[batch.mixed] = torch.where(is_clip, mixed_QTM.clamp(min=silence.item()), 0.0)
    return fbank_BTM


def _is_frame(num_frames_B: Tensor, num_frames: int) -> Tensor:
    """Return (B, T, 1): True where a clip has a frame."""
    places = torch.arange(num_frames, device=num_frames_B.device)
    return (places < num_frames_B[:, None])[..., None]


def _mask(fbank_BTM: Tensor, axis: int, max_width: int, uniforms_B2: Tensor) -> Tensor:
    """Set one band per clip to 0; its width is uniform from 0 to `max_width`, as torchaudio's `mask_along_axis_iid`."""
    if max_width == 0:
        return fbank_BTM
    size = fbank_BTM.shape[axis]
    width_B = uniforms_B2[:, 0] * min(max_width, size)
    start_B = uniforms_B2[:, 1] * (size - width_B)
    first, last = start_B.long(), start_B.long() + width_B.long()
    places = torch.arange(size, device=fbank_BTM.device)
    is_masked = (places >= first[:, None]) & (places < last[:, None])
    return fbank_BTM.masked_fill(is_masked[:, None, :] if axis == 2 else is_masked[:, :, None], 0.0)


def _noise(fbank_BTM: Tensor, uniforms_B: Tensor) -> Tensor:
    """Return uniform noise; its strength and its values follow from one random number per clip."""
    noise = torch.empty_like(fbank_BTM)
    for clip_TM, uniform in zip(noise, uniforms_B.tolist(), strict=True):
        generator = torch.Generator(fbank_BTM.device).manual_seed(int(uniform * 2**32))
        clip_TM.uniform_(generator=generator)
    return noise * (uniforms_B * NOISE_LEVEL).view(-1, 1, 1)


def _roll(fbank_BTM: Tensor, max_frames: int, uniforms_B: Tensor) -> Tensor:
    """Shift each clip in time by −max_frames … max_frames − 1, round the end."""
    num_frames = fbank_BTM.shape[1]
    shift_B = (uniforms_B * 2 * max_frames).long() - max_frames
    places = (torch.arange(num_frames, device=fbank_BTM.device) - shift_B[:, None]) % num_frames
    return fbank_BTM.gather(1, places[..., None].expand_as(fbank_BTM))
