"""Tag streams of any length, and compare with tagging whole recordings."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av
import numpy as np
import pytest
import torch

from ast_model.config import ASTConfig
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from ast_model.tagging.options import TaggingOptions
from ast_model.tagging.streams import Tagged, Untagged, tag_recordings
from pipeline.audio.decode import DecodeError, decode_file, encode_flac, stream_file
from pipeline.fbank import compute_fbank, stream_fbank
from pipeline.records import Reason

SHAPE = ASTConfig(3, num_frames=128, freq_stride=16, time_stride=16, width=48, depth=1, num_heads=3)


@dataclass(frozen=True)
class Kept:
    """A recording in memory."""

    name: str
    content: bytes

    @contextmanager
    def open(self) -> Iterator[bytes]:
        yield self.content


def stereo(seconds: float) -> bytes:
    """Return noise at 44.1 kHz, louder on the right, with an offset."""
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, (2, int(seconds * 44_100))) * [[0.5], [1]] + 0.1
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream("pcm_f32le", rate=44_100, layout="stereo")
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    torch.manual_seed(0)
    return Tagger(AST(SHAPE), ModelMetadata(("Speech", "Dog", "Rain"), -5, 4), "cpu")


def test_streamed_features_equal_features_of_the_whole_recording() -> None:
    content = stereo(50)
    blocks = list(stream_file(content))
    assert len(blocks) > 3
    fbank_TM = torch.cat(list(stream_fbank(blocks)))
    np.testing.assert_allclose(fbank_TM, compute_fbank(torch.from_numpy(decode_file(content))), atol=2e-3)
    for broken, reason in ((content[:-9_000], Reason.TRUNCATED), (b"no sound", Reason.NOT_MEDIA)):
        with pytest.raises(DecodeError) as caught:
            list(stream_file(broken))
        assert caught.value.reason is reason


@pytest.mark.slow
@pytest.mark.parametrize(("timeline", "num_threads"), [(False, 1), (True, 1), (False, 3), (True, 3)])
def test_recordings_get_the_same_tags_alone_and_in_a_batch(tagger: Tagger, timeline: bool, num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    contents = [encode_flac(np.random.default_rng(n).normal(0, 0.1, 9_000 * n).astype(np.float32)) for n in range(1, 8)]
    contents.insert(3, b"no sound")
    recordings = [Kept(str(number), content) for number, content in enumerate(contents)]
    results = list(
        tag_recordings(tagger.scorer, recordings, TaggingOptions(top_k=3, timeline=timeline), with_spectrogram=True)
    )
    assert torch.get_num_threads() == num_threads
    torch.set_num_threads(before)
    for recording, result in zip(recordings, results, strict=True):
        if recording.content == b"no sound":
            assert isinstance(result, Untagged) and result.failure.reason is Reason.NOT_MEDIA
            continue
        assert isinstance(result, Tagged)
        fbank_TM = tagger.fbank(recording.content)
        assert result.tags["file"].eq(recording.name).all() and result.tags["end_s"].max() == result.length_s
        np.testing.assert_allclose(result.spectrogram_TM, fbank_TM, atol=2e-3)
        found = result.tags.pivot(index="start_s", columns="label", values="score")[list(tagger.labels)]
        expected = tagger.timeline(recording.content) if timeline else tagger.scores([recording.content])
        np.testing.assert_allclose(found, expected, atol=1e-4)
        if not timeline:
            np.testing.assert_allclose(result.embeddings_WD, tagger.embed([recording.content]), atol=1e-4)


def test_early_exit_of_the_caller_stops_decoding(tagger: Tagger) -> None:
    content = encode_flac(np.zeros(16_000, np.float32))
    results = tag_recordings(tagger.scorer, (Kept("endless", content) for _ in iter(int, 1)), TaggingOptions())
    assert isinstance(next(results), Tagged)
    results.close()
