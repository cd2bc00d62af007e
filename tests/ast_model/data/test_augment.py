import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor
from torchaudio.functional import mask_along_axis_iid

from ast_model.config import AugmentConfig
from ast_model.data.augment import (
    FREQ_START,
    FREQ_WIDTH,
    NOISE,
    NOISE_LEVEL,
    ROLL,
    TIME_START,
    TIME_WIDTH,
    augment,
    mix_power,
    prepare,
)
from ast_model.data.loader import Batch
from ast_model.data.sampling import NUM_UNIFORMS
from pipeline.fbank_settings import LOG_FLOOR

NUM_FRAMES = 60
NOTHING = AugmentConfig(mixup_probability=0, max_freq_mask_bins=0, max_time_mask_frames=0)
AST_MEAN, AST_STD = -4.2677393, 4.5689974
AS_IT_IS = (0.0, 0.5)
"""Mean and standard deviation that make normalising the identity."""


def clips(num_frames: list[int], seed: int) -> Tensor:
    """Return fbanks with values down to the floor and padded with 0, as in the store."""
    random = np.random.default_rng(seed)
    fbank_BTM = random.uniform(np.log(LOG_FLOOR) - 3, 5, (len(num_frames), NUM_FRAMES, 128))
    fbank_BTM = np.maximum(fbank_BTM, np.log(LOG_FLOOR))
    for fbank_TM, num in zip(fbank_BTM, num_frames, strict=True):
        fbank_TM[num:] = 0
    return torch.from_numpy(fbank_BTM).half()


def make_batch(
    num_frames: list[int], mixed: tuple[int, ...] = (), partner_frames: tuple[int, ...] = (), seed: int = 0
) -> Batch:
    random = np.random.default_rng(seed)
    return Batch(
        features="fbank",
        num_frames=NUM_FRAMES,
        rows=np.arange(len(num_frames)),
        clips=clips(num_frames, seed),
        lengths_B=torch.tensor(num_frames),
        targets_BC=torch.zeros(len(num_frames), 1),
        mixed=torch.tensor(mixed, dtype=torch.int64),
        partners=clips(list(partner_frames), seed + 1),
        partner_lengths_Q=torch.tensor(partner_frames, dtype=torch.int64),
        lambda_Q=torch.from_numpy(random.beta(10, 10, len(mixed)).astype(np.float32)),
        uniforms=torch.from_numpy(random.random((len(num_frames), NUM_UNIFORMS), dtype=np.float32)),
    )


def test_mixed_powers_follow_the_formula() -> None:
    # Clips 0, 2 and 3 have partners of equal, smaller and larger length.
    batch = make_batch([60, 60, 60, 30], mixed=(0, 2, 3), partner_frames=(60, 25, 50))
    expected_BTM = batch.clips.double()
    power_QTM = batch.partners.double().exp()
    power_QTM[1, 25:] = LOG_FLOOR
    lam_Q11 = batch.lambda_Q.double().view(-1, 1, 1)
    mixed_QTM = lam_Q11.square() * expected_BTM[batch.mixed].exp() + (1 - lam_Q11).square() * power_QTM
    expected_BTM[batch.mixed] = mixed_QTM.clamp(min=LOG_FLOOR).log()
    expected_BTM[3, 30:] = 0
    torch.testing.assert_close(mix_power(batch).double(), expected_BTM, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("axis", "max_width"), [(2, 48), (1, 20), (2, 128), (1, 500)])
def test_masks_equal_torchaudios(axis: int, max_width: int) -> None:
    num_clips = 50
    torch.manual_seed(axis)
    width_B, start_B = torch.rand(num_clips), torch.rand(num_clips)
    batch = make_batch([NUM_FRAMES] * num_clips)
    columns = [FREQ_WIDTH, FREQ_START] if axis == 2 else [TIME_WIDTH, TIME_START]
    batch.uniforms[:, columns] = torch.stack([width_B, start_B], dim=1)
    field = "max_freq_mask_bins" if axis == 2 else "max_time_mask_frames"
    config = AugmentConfig(**{**vars(NOTHING), field: max_width})

    torch.manual_seed(axis)  # the same numbers again
    size = batch.clips.shape[axis]
    expected_BTM = mask_along_axis_iid(batch.clips.float(), min(max_width, size), 0.0, axis)
    found_BTM = augment(batch, config, *AS_IT_IS)
    assert (found_BTM == 0).any()
    torch.testing.assert_close(found_BTM, expected_BTM, rtol=0, atol=0)


def test_padding_and_silence_are_normalised_to_asts_values() -> None:
    batch = make_batch([40])
    batch.clips[0, :40] = np.log(LOG_FLOOR)
    for prepared_BTM in (prepare(batch, AST_MEAN, AST_STD), augment(batch, NOTHING, AST_MEAN, AST_STD)):
        assert prepared_BTM.dtype == torch.float32
        torch.testing.assert_close(prepared_BTM[0, :40], torch.full((40, 128), -1.278), rtol=0, atol=1e-3)
        torch.testing.assert_close(prepared_BTM[0, 40:], torch.full((20, 128), 0.46703), rtol=0, atol=1e-4)


def test_rolling_equals_torchs_roll() -> None:
    batch = make_batch([60] * 40)
    found_BTM = augment(batch, AugmentConfig(**{**vars(NOTHING), "max_roll_frames": 10}), *AS_IT_IS)
    shifts = np.floor(batch.uniforms[:, ROLL].numpy() * 20).astype(int) - 10
    assert {shifts.min(), shifts.max()} == {-10, 9}
    rolled = [clip_TM.roll(int(shift), 0) for clip_TM, shift in zip(batch.clips.float(), shifts, strict=True)]
    torch.testing.assert_close(found_BTM, torch.stack(rolled), rtol=0, atol=0)


def test_noise_has_the_drawn_strength() -> None:
    batch = make_batch([60] * 5)
    noise_BTM = augment(batch, AugmentConfig(**{**vars(NOTHING), "noise": True}), *AS_IT_IS) - batch.clips
    scaled_BTM = noise_BTM / (NOISE_LEVEL * batch.uniforms[:, NOISE]).view(-1, 1, 1)
    assert -0.01 < scaled_BTM.min() < 0.01 < 0.99 < scaled_BTM.max() < 1.01
    torch.testing.assert_close(scaled_BTM.mean(dim=(1, 2)), torch.full((5,), 0.5), rtol=0, atol=0.02)
    assert len(set(scaled_BTM[:, 0, 0].tolist())) == 5


def test_noise_is_uniform_and_independent_between_neighbours_and_clips() -> None:
    batch = make_batch([60] * 64)
    batch.clips.zero_()
    batch.uniforms[:, NOISE] = 0.5 + torch.arange(64) / 2**24  # seeds that differ in their last bits only
    noise_BTM = augment(batch, AugmentConfig(**{**vars(NOTHING), "noise": True}), *AS_IT_IS)
    uniform_BTM = (noise_BTM / (NOISE_LEVEL * batch.uniforms[:, NOISE]).view(-1, 1, 1)).double()
    assert uniform_BTM.min() >= 0
    assert uniform_BTM.max() < 1 + 1e-6
    for values in (uniform_BTM, uniform_BTM[0], uniform_BTM[:, 3, 7]):
        assert kstest(values.flatten().numpy(), "uniform").pvalue > 1e-3
    neighbours = [(uniform_BTM[:, :, 1:], uniform_BTM[:, :, :-1]), (uniform_BTM[:, 1:], uniform_BTM[:, :-1])]
    for one, other in [*neighbours, (uniform_BTM[1:], uniform_BTM[:-1])]:
        correlation = np.corrcoef(one.flatten().numpy(), other.flatten().numpy())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(one.numel())


def test_draw_gives_the_same_sample_in_any_batch() -> None:
    config = AugmentConfig(max_freq_mask_bins=40, max_time_mask_frames=20, noise=True, max_roll_frames=5)
    whole = make_batch([60, 50, 40, 30], mixed=(1, 3), partner_frames=(60, 45))
    part = Batch(
        features="fbank",
        num_frames=NUM_FRAMES,
        rows=whole.rows[2:],
        mixed=torch.tensor([1]),
        **{name: getattr(whole, name)[2:] for name in ("clips", "lengths_B", "targets_BC", "uniforms")},
        **{name: getattr(whole, name)[1:] for name in ("partners", "partner_lengths_Q", "lambda_Q")},
    )
    expected_BTM = augment(whole, config, AST_MEAN, AST_STD)[2:]
    torch.testing.assert_close(augment(part, config, AST_MEAN, AST_STD), expected_BTM, rtol=0, atol=0)
