import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ast_model.checkpoints.checkpoint import Checkpoint, LoopState, save_checkpoint
from ast_model.config import ASTConfig
from ast_model.export import export_hugging_face
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.layouts import TIMM, to_layout
from ast_model.pretrained.load import load_pretrained
from ast_model.pretrained.metadata import ModelMetadata
from pipeline.audio.decode import encode_flac
from pipeline.errors import AudioTaggingError, ConfigError, InputError, MismatchError, WeightsError
from pipeline.labels import Labels
from pipeline.store.storage import Store

transformers.utils.logging.disable_progress_bar()

NAMES = ("Speech", "Dog, barking", "Rain")
LABELS = Labels(("/m/1", "/m/2", "/m/3"), NAMES)
TAGGING = ModelMetadata(NAMES, mean=-5.5, std=3.25)


def make_model(**overrides: Any) -> AST:
    torch.manual_seed(0)
    shape = {"num_classes": 3, "num_frames": 128, "freq_stride": 16, "time_stride": 16, "width": 48, "depth": 1}
    model = AST(ASTConfig(**{**shape, "num_heads": 3, **overrides})).eval()
    torch.nn.init.normal_(model.head.linear.weight)
    return model


def make_sound(num_samples: int, seed: int = 0) -> np.ndarray:
    """Noise that swells, on the grid of 16-bit samples and without a mean."""
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, num_samples) * np.linspace(0.01, 1, num_samples)
    return (np.rint((noise - noise.mean()) * 32768) / 32768).astype(np.float32)


@pytest.fixture
def tagger() -> Tagger:
    return Tagger(make_model(), TAGGING, "cpu")


def test_scores_are_those_of_transformers_pipeline(tmp_path: Path, tagger: Tagger) -> None:
    export_hugging_face(tagger.model, TAGGING, tmp_path / "ast")
    extractor = transformers.ASTFeatureExtractor.from_pretrained(tmp_path / "ast")
    theirs: Any = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "ast")
    sound = make_sound(12_000)
    sound -= sound.mean()
    inputs = extractor(sound, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        expected = torch.sigmoid(theirs.eval()(**inputs).logits).numpy()
    np.testing.assert_allclose(tagger.scores([sound]), expected, atol=1e-4)
    np.testing.assert_allclose(Tagger.load(tmp_path / "ast", device="cpu").scores([sound]), expected, atol=1e-4)


def test_array_bytes_and_path_give_the_same(tmp_path: Path, tagger: Tagger) -> None:
    sound = make_sound(20_000)
    (tmp_path / "a.flac").write_bytes(encode_flac(sound))
    scores = tagger.scores([sound, (tmp_path / "a.flac").read_bytes(), tmp_path / "a.flac", str(tmp_path / "a.flac")])
    np.testing.assert_allclose(scores, scores[:1].repeat(4, axis=0), atol=1e-4)
    ranked = tagger.tag(sound, top_k=2)
    assert [score for _, score in ranked] == sorted(scores[0].tolist(), reverse=True)[:2]
    assert scores[0][NAMES.index(ranked[0][0])] == ranked[0][1]


def test_long_audio_is_the_weighted_mean_of_its_windows(tagger: Tagger) -> None:
    sound = make_sound(400 + 160 * (2 * 128 + 31))  # two windows of 128 frames and one of 32
    table = tagger.timeline(sound, hop_s=1.28)
    assert table.index.tolist() == [0, 1.28, 2.56]
    assert tuple(table.columns) == NAMES
    expected = np.average(table, axis=0, weights=[128, 128, 32])
    np.testing.assert_allclose(tagger.scores([sound])[0], expected, atol=1e-6)
    np.testing.assert_allclose(table.iloc[0], tagger.scores([sound[: 400 + 160 * 127]])[0], atol=1e-3)
    assert tagger.embed([sound, sound]).shape == (2, 48)


def test_a_timeline_reaches_the_end_and_no_further(tagger: Tagger) -> None:
    table = tagger.timeline(make_sound(32_000), window_s=1.0, hop_s=0.25)  # 198 frames, windows of 98
    assert table.index.tolist() == [0, 0.25, 0.5, 0.75, 1.0]
    assert tagger.timeline(make_sound(8_000)).index.tolist() == [0]
    with pytest.raises(ConfigError, match=r"between 0\.025 and the model's 1\.28 s, found 10"):
        tagger.timeline(make_sound(8_000), window_s=10)
    with pytest.raises(ConfigError, match=r"hop_s must be a multiple of 0\.01 s, found 0\.125"):
        tagger.timeline(make_sound(8_000), hop_s=0.125)


@pytest.mark.parametrize(("loss", "total"), [("ce", 1.0), ("bce", None)])
def test_a_checkpoint_brings_labels_normalisation_and_loss(tmp_path: Path, loss: str, total: float | None) -> None:
    model = make_model()
    description = {
        "model": vars(model.config),
        "train": {"loss": loss},
        "labels": {"mids": LABELS.mids, "names": LABELS.names},
        "mean": -5.5,
        "std": 3.25,
    }
    checkpoint = Checkpoint(LoopState(1), model.state_dict(), description=description)
    folder = save_checkpoint(Store(str(tmp_path)), "run", checkpoint)
    tagger = Tagger.load(tmp_path / folder, device="cpu")
    assert tagger.metadata == ModelMetadata(NAMES, -5.5, 3.25, loss)  # pyright: ignore[reportArgumentType]
    scores = tagger.scores([make_sound(9_000)])
    assert scores.sum() == pytest.approx(total) if total else scores.sum() != pytest.approx(1, abs=1e-3)
    with pytest.raises(MismatchError, match="the same 3, but in another order"):
        Tagger.load(tmp_path / folder, labels=Labels(("/m/2", "/m/1", "/m/3"), ("Dog, barking", "Speech", "Rain")))


def test_a_head_follows_its_classes(tmp_path: Path) -> None:
    model = make_model()
    export_hugging_face(model, TAGGING, tmp_path / "ast")
    picked = load_pretrained(tmp_path / "ast", dataclasses.replace(model.config, num_classes=2), ("Rain", "Speech"))
    rows = model.head.linear.weight[[2, 0]]
    torch.testing.assert_close(picked.head.linear.weight, rows)
    for labels in (("Rain", "Speech", "Cat"), ("a", "b", "c")):
        fresh = load_pretrained(tmp_path / "ast", model.config, labels)
        assert not torch.isclose(fresh.head.linear.weight, model.head.linear.weight).any(dim=1).all()
        torch.testing.assert_close(fresh.blocks[0].mlp.up.weight, model.blocks[0].mlp.up.weight)  # pyright: ignore


def test_an_official_file_needs_labels(tmp_path: Path) -> None:
    model = make_model(num_frames=1024, width=64, num_heads=1)
    official = to_layout(model.state_dict(), TIMM, 1, "v.")
    torch.save({f"module.{name}": tensor for name, tensor in official.items()}, tmp_path / "audioset.pth")
    (tmp_path / "labels.csv").write_text(LABELS.to_csv())
    tagger = Tagger.load(tmp_path / "audioset.pth", labels=tmp_path / "labels.csv", device="cpu")
    assert (tagger.labels, tagger.metadata.mean) == (NAMES, -4.2677393)
    with pytest.raises(InputError, match=r"names of the classes.* class_labels_indices\.csv"):
        Tagger.load(tmp_path / "audioset.pth")
    with pytest.raises(MismatchError, match=r"expected 3 labels, .* found 2"):
        Tagger.load(tmp_path / "audioset.pth", labels=Labels(("a", "b"), ("a", "b")))


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, np.float32), "found shape \\(0,\\)"),
        (np.zeros(399, np.float32), "at least 400 samples"),
        (np.zeros((2, 16_000), np.float32), r"found shape \(2, 16000\)"),
        (np.full(16_000, 300.0), "a peak of 300"),
        (b"", "can't be decoded"),
        ("nowhere.wav", r"expected an audio file at .*nowhere\.wav, found none"),
        ({"array": np.zeros(16_000), "sampling_rate": 16_000}, "found dict; resample its array to 16 kHz"),
        ((np.zeros(16_000), 16_000), "found tuple; resample its waveform to 16 kHz"),
        (["a.wav", "b.wav"], "found list; .* several audios to `scores`"),
        (None, "found NoneType"),
        (np.array(["a.wav"]), "found ndarray of <U5"),
        (torch.zeros(16_000, dtype=torch.complex64), r"found Tensor of torch\.complex64"),
    ],
)
def test_what_is_no_audio_is_refused(tagger: Tagger, audio: Any, message: str) -> None:
    for use in (tagger.tag, tagger.timeline, lambda audio: tagger.scores([audio])):
        with pytest.raises(AudioTaggingError, match=message):
            use(audio)


def test_tensors_of_any_float_type_and_gradient_are_tagged(tagger: Tagger) -> None:
    sound = torch.from_numpy(make_sound(16_000))
    expected = tagger.scores([sound.numpy()])
    np.testing.assert_allclose(tagger.scores([sound.double().requires_grad_()]), expected, atol=1e-6)
    np.testing.assert_allclose(tagger.scores([sound.numpy().astype(np.float64)]), expected, atol=1e-6)


def test_scores_that_are_not_finite_are_reported_as_damaged_weights() -> None:
    tagger = Tagger(make_model(), TAGGING, "cpu")
    torch.nn.init.constant_(tagger.model.head.linear.bias, torch.nan)
    for use in (tagger.tag, tagger.timeline, lambda audio: tagger.embed([audio])):
        with pytest.raises(WeightsError, match="expected finite scores, found NaN or infinity in 1 of 1 windows"):
            use(make_sound(9_000))
    with pytest.raises(InputError, match="expected finite features"):
        tagger.scores_of_fbank(np.full((98, 128), np.nan, np.float32))


def test_a_single_audio_is_no_batch(tagger: Tagger) -> None:
    for audio in ("a.wav", b"RIFF", np.zeros(16_000), {"array": np.zeros(16_000)}, None, 3):
        with pytest.raises(InputError, match="pass a list"):
            tagger.scores(audio)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="at least one"):
        tagger.scores([])
