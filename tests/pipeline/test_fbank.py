import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchaudio.compliance import kaldi

from pipeline.errors import InputError
from pipeline.fbank import compute_fbank
from pipeline.fbank_settings import FBANK_SETTINGS, LOG_FLOOR, NUM_MEL_BINS, SAMPLE_RATE_HZ, num_frames_of

MAX_SAMPLES = 30 * SAMPLE_RATE_HZ
KINDS = ("silence", "noise", "tone", "click", "clipped", "offset", "ramp")


def reference_fbank(waveform: Tensor) -> Tensor:
    """AST's own call."""
    return kaldi.fbank(
        waveform[None],
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )


def make_waveform(kind: str, num_samples: int, level: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_samples, generator=generator)
    time = torch.arange(num_samples)
    shapes = {
        "silence": torch.zeros(num_samples),
        "noise": noise,
        "tone": torch.sin(time * (0.001 + seed % 3000 / 1000)),
        "click": (time % (seed % 5000 + 300) == 0).float(),
        "clipped": 10 * noise / level,
        "offset": 0.9 / level + noise,
        "ramp": time / num_samples,
    }
    return (level * shapes[kind]).clamp(-1, 1)


waveforms = st.builds(
    make_waveform,
    st.sampled_from(KINDS),
    st.one_of(st.integers(400, 2000), st.integers(400, MAX_SAMPLES)),
    st.floats(-9, 0).map(lambda exponent: 10**exponent),
    st.integers(0, 2**31),
)


@settings(max_examples=80, deadline=None)
@given(waveforms)
def test_equals_torchaudio(waveform: Tensor) -> None:
    fbank = compute_fbank(waveform)
    assert fbank.dtype == torch.float32
    assert fbank.shape == (num_frames_of(len(waveform)), NUM_MEL_BINS)
    torch.testing.assert_close(fbank, reference_fbank(waveform), rtol=0, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(400, 3 * SAMPLE_RATE_HZ), st.integers(1, 4), st.integers(0, 2**31))
def test_batch_equals_its_clips(num_samples: int, num_clips: int, seed: int) -> None:
    batch = torch.stack([make_waveform("noise", num_samples, 0.1, seed + i) for i in range(num_clips)])
    assert torch.equal(compute_fbank(batch), torch.stack([compute_fbank(clip) for clip in batch]))


@pytest.mark.parametrize(
    ("num_samples", "num_frames"), [(399, 0), (400, 1), (559, 1), (560, 2), (160_000, 998), (480_000, 2998)]
)
def test_number_of_frames(num_samples: int, num_frames: int) -> None:
    assert num_frames_of(num_samples) == num_frames


def test_silence_is_the_floor() -> None:
    floor = torch.tensor(LOG_FLOOR).log()
    assert torch.equal(compute_fbank(torch.zeros(1600)), floor.expand(8, NUM_MEL_BINS))


def test_mixed_precision_changes_nothing() -> None:
    waveform = make_waveform("noise", 16_000, 0.1, 0)
    expected = compute_fbank(waveform)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compute_fbank(waveform), expected)


def test_gradient_reaches_the_waveform_also_after_inference_mode() -> None:
    with torch.inference_mode():
        compute_fbank(torch.zeros(400))
    waveform = make_waveform("noise", 1600, 0.1, 0).requires_grad_()
    compute_fbank(waveform).sum().backward()
    assert waveform.grad is not None and waveform.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.zeros(399), "at least 400 samples"),
        (torch.zeros(2, 0), "at least 400 samples"),
        (torch.zeros(1, 1, 400), r"shape \(1, 1, 400\)"),
        (torch.zeros(400, dtype=torch.int16), "torch.int16"),
        (torch.zeros(400, dtype=torch.float64), "torch.float64"),
    ],
)
def test_refuses_what_it_cannot_take(waveform: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compute_fbank(waveform)


def test_settings_are_plain_values() -> None:
    assert all(isinstance(value, int | float | str) for value in FBANK_SETTINGS.values())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_equals_torchaudio_on_a_gpu(kind: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    batch = torch.stack([make_waveform(kind, 160_000, 0.1, seed) for seed in range(3)]).cuda()
    expected = torch.stack([reference_fbank(clip) for clip in batch])
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast("cuda", torch.bfloat16):
            fbank = compute_fbank(batch)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    torch.testing.assert_close(fbank, expected, rtol=0, atol=1e-5)
