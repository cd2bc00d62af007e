"""Call the service's application without a server."""

import asyncio
import gzip
import io
import json
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
import torch
from httpx2 import ASGITransport, AsyncClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from ast_model.config import ASTConfig
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from ast_model.service.limits import Limits
from ast_model.service.service import PendingWindow, Result, ServedModel, Service, run_batch
from ast_model.tagging.options import TaggingOptions
from jobs.service.web import Figures, make_app
from pipeline.audio.decode import encode_flac

SHAPE = ASTConfig(3, num_frames=128, freq_stride=16, time_stride=16, width=48, depth=1, num_heads=3)
LABELS = ("Speech", "Dog, barking", "Rain")
LIMITS = Limits(max_mb=1.0, max_total_mb=1.5, max_audio_s=20.0, max_windows=50, max_requests=2, upload_s=0.5)
LOCAL = "http://127.0.0.1:8000"


def make_tagger(seed: int = 0) -> Tagger:
    torch.manual_seed(seed)
    return Tagger(AST(SHAPE), ModelMetadata(LABELS, -5, 4), "cpu")


def noise(num_samples: int) -> bytes:
    values = np.random.default_rng(num_samples).uniform(-0.3, 0.3, num_samples)
    return encode_flac(values.astype(np.float32))


def wav(samples: np.ndarray, rate_hz: int = 16_000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(samples.shape[1])
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        out.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def float_wav(samples: np.ndarray) -> bytes:
    data = samples.astype("<f4").tobytes()
    format_chunk = np.array([3, 1], "<u2").tobytes() + np.array([16_000, 64_000], "<u4").tobytes()
    format_chunk += np.array([4, 32], "<u2").tobytes()
    chunks = b"fmt " + len(format_chunk).to_bytes(4, "little") + format_chunk
    chunks += b"data" + len(data).to_bytes(4, "little") + data
    return b"RIFF" + (4 + len(chunks)).to_bytes(4, "little") + b"WAVE" + chunks


def silent_video() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame(32, 32, "rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def encrypted() -> bytes:
    """Return AAC in MP4 with a plain header and encrypted samples, as sold by some shops."""
    file = io.BytesIO()
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "0" * 31 + "1", "encryption_kid": "0" * 31 + "2"}
    key["fflags"] = "+bitexact"  # or the samples are others each time, and now and then some of them can be decoded
    with av.open(file, "w", format="mp4", container_options=key) as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.random.default_rng(0).normal(0, 0.1, (1, 32_000)).astype("f4"), "fltp", "mono"
        )
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def long_sound(hours: float) -> bytes:
    """Return silence at a low rate, hours of audio in few bytes."""
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=1_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4_000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 1_000
        for number in range(int(hours * 900)):
            frame.pts = number * 4_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


async def run(work: PendingWindow) -> Result:
    return (await asyncio.to_thread(run_batch, [work]))[0]


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return make_tagger()


@pytest.fixture(scope="module")
def service(tagger: Tagger) -> Service:
    return Service(ServedModel(tagger, "a folder"), LIMITS, run)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_app(service, LIMITS, "", Figures()), LOCAL) as client:
        yield client


def test_tags_equal_the_taggers(client: TestClient, tagger: Tagger) -> None:
    sound = noise(40_000)
    answer = client.post("/v1/tag", params={"top_k": 2, "name": "../a/dog.flac"}, content=sound).json()
    expected = tagger.tag(sound, 2)
    assert [tag["label"] for tag in answer["tags"]] == [label for label, _ in expected]
    assert [tag["score"] for tag in answer["tags"]] == pytest.approx([score for _, score in expected], abs=1e-5)
    assert (answer["name"], answer["length_s"], answer["timeline"]) == ("dog.flac", 2.495, None)
    embedding = client.post("/v1/embed", content=sound).json()["embedding"]
    np.testing.assert_allclose(embedding, tagger.embed([sound])[0], atol=1e-5)
    assert client.get("/v1/labels").json()["labels"] == list(LABELS)
    assert client.get("/healthz").json() == {"status": "ok", "version": ""}


def test_timeline_equals_the_taggers(client: TestClient, tagger: Tagger) -> None:
    sound = noise(40_000)
    asked = {"timeline": True, "window_s": 1, "hop_s": 0.5, "classes": ["Rain", "Dog, barking"], "spectrogram": True}
    answer = client.post("/v1/tag", params=asked, content=sound).json()
    expected = tagger.timeline(sound, 1, 0.5)
    for label in ("Rain", "Dog, barking"):
        found = {tag["start_s"]: tag["score"] for tag in answer["timeline"] if tag["label"] == label}
        assert found == pytest.approx(expected[label].to_dict(), abs=1e-5)
    assert {tag["label"] for tag in answer["tags"]} == {"Rain", "Dog, barking"}
    assert max(tag["end_s"] for tag in answer["timeline"]) == 2.495
    assert answer["spectrogram"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("format", ["csv", "csv-excel", "jsonl", "parquet", "raven", "audacity"])
def test_review_files_are_returned_by_tagging_or_made_from_tags(client: TestClient, format: str) -> None:
    sound, asked = noise(40_000), {"timeline": True, "name": "dog \u2014 1\n.flac"}
    at_once = client.post("/v1/tag", params={**asked, "format": format}, content=sound)
    answer = client.post("/v1/tag", params=asked, content=sound).json()
    later = client.post(
        "/v1/file", params={"format": format}, json={"name": answer["name"], "tags": answer["timeline"]}
    )
    assert at_once.status_code == later.status_code == 200
    assert 'filename="dog _ 1 .flac.' in later.headers["content-disposition"]
    if format == "parquet":
        tables = [pd.read_parquet(io.BytesIO(response.content)) for response in (at_once, later)]
        pd.testing.assert_frame_equal(tables[0], tables[1])
        assert set(tables[0]["file"]) == {"dog \u2014 1 .flac"}
    else:
        assert at_once.content == later.content and b"Rain" in later.content


def test_all_kinds_of_sounds_are_accepted(client: TestClient) -> None:
    many_channels = wav(np.random.default_rng(0).integers(-9_000, 9_000, (19_200, 8)), 192_000)
    assert client.post("/v1/tag", content=many_channels).json()["length_s"] == pytest.approx(0.1, abs=0.02)


PLAYLIST = b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n"
CONCAT = b"ffconcat version 1.0\nfile /etc/passwd\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "empty body"),
        (b"this is text, whatever it is called", "can't be decoded"),
        (noise(40_000)[:9_000], "can't be decoded"),
        (wav(np.ones((40_000, 1)))[:-30_000], "fewer bytes than its header states"),
        (silent_video(), "no audio stream"),
        (encrypted(), "can't be decoded"),
        (float_wav(np.full(16_000, np.nan)), "not finite"),
        (PLAYLIST, "can't be decoded"),
        (CONCAT, "can't be decoded"),
        (long_sound(1), "longer than 0.333"),
    ],
    ids="empty text truncated-flac truncated-wav video encrypted nan playlist concat an-hour".split(),
)
def test_invalid_sound_is_refused_with_a_message(client: TestClient, content: bytes, sentence: str) -> None:
    for path in ("/v1/tag", "/v1/embed"):
        response = client.post(path, content=content)
        assert response.status_code == 422 and sentence in response.json()["error"]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"top_k": 0}, "'top_k': Input should be greater"),
        ({"classes": "Dog barking"}, "did you mean 'Dog, barking'?"),
        ({"timeline": True, "hop_s": 0.01}, "at most 50 windows"),
        ({"timeline": True, "window_s": 100}, "window_s between"),
        ({"format": "xls"}, "'format'"),
        ({"threshold": 1, "format": "csv"}, "lower the threshold"),
    ],
)
def test_invalid_parameters_are_refused_with_a_message(client: TestClient, asked: Any, sentence: str) -> None:
    response = client.post("/v1/tag", params=asked, content=noise(40_000))
    assert response.status_code == 422 and sentence in response.json()["error"]


def test_unknown_paths_and_methods_are_refused_with_a_message(client: TestClient) -> None:
    assert client.get("/v1/nothing").status_code == 404 and client.get("/v1/nothing").json()["error"]
    assert client.get("/v1/tag").status_code == 405 and client.get("/v1/tag").json()["error"]


def test_uploads_are_cut_off_at_the_limit_regardless_of_headers(client: TestClient) -> None:
    num_read = 0

    def endless() -> Iterator[bytes]:
        nonlocal num_read
        while num_read < 100:
            num_read += 1
            yield bytes(100_000)

    assert client.post("/v1/tag", content=bytes(1_000_001)).status_code == 413
    assert client.post("/v1/tag", content=noise(40_000), headers={"content-length": "9999999"}).status_code == 413
    assert client.post("/v1/tag", content=endless()).status_code == 413  # in chunks, without a length


async def post(service: Service, content: AsyncIterator[bytes] | bytes, token: str = "", **headers: Any):
    transport = ASGITransport(app=make_app(service, LIMITS, token, Figures()))  # pyright: ignore[reportArgumentType]
    async with AsyncClient(transport=transport, base_url=LOCAL) as client:
        return await client.post("/v1/tag", content=content, headers=headers)


def test_slow_upload_is_abandoned(service: Service) -> None:
    async def trickle(receive_forever: asyncio.Event) -> tuple[int, str]:
        gate, sent = make_app(service, LIMITS, "", Figures()), []

        async def receive() -> dict[str, object]:
            await receive_forever.wait()
            raise AssertionError

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        scope = {"type": "http", "path": "/v1/tag", "method": "POST", "headers": [(b"host", b"localhost:8000")]}
        await gate(scope, receive, send)  # pyright: ignore[reportArgumentType]
        assert gate.num_bytes == gate.num_requests == 0
        return sent[0]["status"], json.loads(sent[1]["body"])["error"]

    assert asyncio.run(trickle(asyncio.Event())) == (408, "expected the whole upload within 0.5 s")


def test_excess_uploads_get_429_with_retry_after(tagger: Tagger) -> None:
    async def main() -> list[int]:
        may_go_on = asyncio.Event()

        async def run_later(work: PendingWindow) -> Result:
            await may_go_on.wait()
            return await run(work)

        gate = make_app(Service(ServedModel(tagger, "a folder"), LIMITS, run_later), LIMITS, "", Figures())
        transport = ASGITransport(app=gate)  # pyright: ignore[reportArgumentType]
        async with AsyncClient(transport=transport, base_url=LOCAL) as client:
            waiting = [asyncio.create_task(client.post("/v1/tag", content=noise(16_000))) for _ in range(2)]
            while gate.num_requests < 2:
                await asyncio.sleep(0)
            refused = await client.post("/v1/tag", content=noise(16_000))
            assert refused.headers["retry-after"] == "2" and "2 requests are waiting" in refused.json()["error"]
            # Also by bytes: what is still arriving counts, too.
            gate.num_requests -= 2
            assert (await client.post("/v1/tag", content=bytes(999_999) + noise(16_000))).status_code == 413
            gate.num_bytes += 1_000_000
            assert (await client.post("/v1/tag", content=bytes(900_000))).status_code == 429
            gate.num_bytes -= 1_000_000
            gate.num_requests += 2
            may_go_on.set()
            done = [response.status_code for response in await asyncio.gather(*waiting)]
        assert gate.num_requests == gate.num_bytes == 0
        return done

    assert asyncio.run(main()) == [200, 200]


def test_requests_without_the_token_are_refused(service: Service) -> None:
    sound, token = noise(16_000), "a token of some length"
    for header in ("", "Bearer wrong", b"Bearer \xc4\xd6", token, f"Basic {token}"):
        response = asyncio.run(post(service, sound, token, authorization=header))
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    for header in (f"Bearer {token}", f"bearer  {token} "):
        assert asyncio.run(post(service, sound, token, authorization=header, host="tags.org")).status_code == 200


def test_forms_and_compressed_uploads_are_refused_with_a_remedy(client: TestClient) -> None:
    sound = noise(16_000)
    form = client.post("/v1/tag", files={"file": ("dog.flac", sound)})
    assert form.status_code == 415
    assert "Content-Type: multipart/form-data" in form.json()["error"] and "--data-binary" in form.json()["error"]
    compressed = client.post("/v1/tag", content=gzip.compress(sound), headers={"content-encoding": "gzip"})
    assert compressed.status_code == 415 and "Content-Encoding: gzip" in compressed.json()["error"]
    for headers in ({"content-encoding": "identity"}, {"content-type": "application/x-www-form-urlencoded"}):
        assert client.post("/v1/tag", content=sound, headers=headers).status_code == 200


def test_websocket_is_rejected_during_its_handshake(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect("/v1/tag"):
        pass
    assert closed.value.code == 1008


def test_damaged_weights_give_status_500(tagger: Tagger) -> None:
    broken = make_tagger()
    torch.nn.init.constant_(broken.model.head.linear.bias, torch.nan)
    response = asyncio.run(post(Service(ServedModel(broken, "a folder"), LIMITS, run), noise(16_000)))
    assert response.status_code == 500 and "expected finite scores" in response.json()["error"]


def test_without_a_token_foreign_pages_are_refused(client: TestClient) -> None:
    sound = noise(16_000)
    assert client.post("/v1/tag", content=sound, headers={"host": "rebound.example:8000"}).status_code == 403
    assert client.post("/v1/tag", content=sound, headers={"origin": "https://other.example"}).status_code == 403
    assert client.post("/v1/tag", content=sound, headers={"origin": LOCAL}).status_code == 200
    assert client.get("/", headers={"host": "[::1"}).status_code == 403


def test_page_loads_nothing_from_other_servers(client: TestClient) -> None:
    for path, media_type in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        response = client.get(path)
        assert response.headers["content-type"].startswith(media_type)
        assert "default-src 'none'; script-src 'self'" in response.headers["content-security-policy"]
        assert "http:" not in response.text and "https:" not in response.text and "style=" not in response.text


def test_metrics_are_prometheus_text(client: TestClient) -> None:
    client.post("/v1/tag", content=noise(16_000))
    client.get("/of/a/stranger")
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    paths = {sample.labels["path"] for sample in families["ast_requests"].samples}
    assert "/v1/tag" in paths and "/of/a/stranger" not in paths
    assert families["ast_requests_waiting"].samples[0].value == 0


def test_request_keeps_the_model_with_which_it_started(tagger: Tagger) -> None:
    """Exchanging the model between two requests or during a request drops none of them."""

    async def main() -> None:
        old, new = ServedModel(tagger, "m", "1"), ServedModel(make_tagger(1), "m", "2")
        service: Service

        async def run_and_exchange(work: PendingWindow) -> Result:
            service.model = new
            return run_batch([work])[0]

        service = Service(old, LIMITS, run_and_exchange)
        sound = noise(64_000)
        first, second = await service.tag(sound, TaggingOptions()), await service.tag(sound, TaggingOptions())
        for answer, model in ((first, old), (second, new)):
            scores = [tag["score"] for tag in answer["tags"]]
            assert answer["version"] == model.version
            assert scores == pytest.approx([score for _, score in model.tagger.tag(sound)], abs=1e-5)

    asyncio.run(main())


def test_batch_may_contain_windows_of_two_models(tagger: Tagger) -> None:
    old, new = ServedModel(tagger, "m", "1"), ServedModel(make_tagger(1), "m", "2")
    fbank_TM = tagger.fbank(np.random.default_rng(0).uniform(-0.3, 0.3, 16_000))
    results = run_batch([PendingWindow(model, fbank_TM) for model in (old, new, old)])
    for model, (scores_C, _) in zip((old, new, old), results, strict=True):
        np.testing.assert_allclose(scores_C, model.tagger.scores_of_fbank(fbank_TM), atol=1e-5)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_requests_never_cause_a_server_error(client: TestClient, data: st.DataObject) -> None:
    """Uploads are damaged sounds and noise. Parameters are drawn from the API description, partly within its bounds."""
    paths = client.get("/openapi.json").json()["paths"]
    path = data.draw(st.sampled_from(["/v1/tag", "/v1/embed"]))
    params = {}
    for parameter in paths[path]["post"].get("parameters", []):
        if data.draw(st.booleans()):
            text, number = st.text(max_size=20), st.floats().map(repr) | st.integers().map(str)
            values = text | number | st.sampled_from(["true", "csv", "raven", "1", "0.5", "Rain"])
            params[parameter["name"]] = data.draw(values)
    sound = bytearray(noise(8_000))
    for _ in range(data.draw(st.integers(0, 5))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    content = data.draw(st.sampled_from([bytes(sound), bytes(sound[: data.draw(st.integers(0, len(sound)))])]))
    response = client.post(path, params=params, content=content)
    assert response.status_code in (200, 422), response.text
    if response.status_code == 422:
        assert response.json()["error"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.dictionaries(st.sampled_from(["name", "tags"]), st.text() | st.none() | st.lists(st.text()))
    | st.builds(
        lambda name, label, score: {"name": name, "tags": [{"start_s": 0, "end_s": 1, "label": label, "score": score}]},
        st.text(),
        st.text(),
        st.floats(),
    ),
    format=st.sampled_from(["csv", "jsonl", "parquet", "raven", "audacity"]),
)
def test_fuzzed_tables_never_cause_a_server_error(client: TestClient, body: object, format: str) -> None:
    response = client.post("/v1/file", params={"format": format}, content=json.dumps(body))
    assert response.status_code in (200, 422), response.text


def test_paths_and_addresses_in_requests_are_never_opened(client: TestClient, tmp_path: Path) -> None:
    """A path or an address instead of a sound is treated as text, and nothing is opened."""
    (tmp_path / "sound.flac").write_bytes(noise(16_000))
    for content in (f"{tmp_path}/sound.flac", f"file://{tmp_path}/sound.flac", "http://127.0.0.1:1/a.wav"):
        assert client.post("/v1/tag", content=content.encode()).status_code == 422


@pytest.mark.rehearsal
def test_every_answer_matches_the_api_description(service: Service) -> None:
    """Fuzz each route with schemathesis, with valid and invalid requests."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
    bearer = {"authorization": "Bearer a token of some length"}
    gate = make_app(service, LIMITS, "a token of some length", Figures())
    schema = schemathesis.openapi.from_asgi("/openapi.json", gate, headers=bearer)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 6
    for operation in operations:
        # A request without parameters can only be right.
        for mode in list(schemathesis.GenerationMode)[: 2 if list(operation.query) else 1]:

            @settings(
                max_examples=100,
                deadline=None,
                suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                case.call_and_validate(checks=checks, headers=bearer)

            ask()
