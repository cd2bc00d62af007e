import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fsspec.config import conf

from pipeline.audio.decode import encode_flac
from pipeline.config import FetchConfig, RateLimitConfig
from pipeline.copies.containers import list_copy
from pipeline.copies.convert import CopyConversion, convert_container
from pipeline.copies.run import warn_if_moved
from pipeline.errors import InputError, SourceError
from pipeline.sources.rate_limit import LocalRateLimiter, Wait
from pipeline.store.storage import Store
from tests.hub import FIRST, SECOND, TOKEN, Hub, run_hub
from tests.pipeline.copies.layouts import id_in_json, plain_tar
from tests.pipeline.copies.test_convert import IDS, convert, rows_of, work_on

COPY = "hf://datasets/owner/copy"
TAR = "data/bal_train00.tar"


@pytest.fixture(scope="module")
def clips() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    return {ytid: encode_flac(rng.uniform(-0.1, 0.1, 16_000).astype(np.float32)) for ytid in IDS}


@pytest.fixture
def hub(tmp_path: Path, clips: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    plain_tar(tmp_path / "copy", clips)
    with run_hub(tmp_path / "copy") as hub:
        monkeypatch.setitem(conf, "hf", {"endpoint": hub.address})
        yield hub


@pytest.fixture
def work(tmp_path: Path) -> CopyConversion:
    work = work_on(Store(str(tmp_path / "store")))
    once = FetchConfig(max_attempts=1, backoff_s=0)
    limiter = LocalRateLimiter(RateLimitConfig(max_cooldown_s=1000), 0)
    return replace(work, conversion=replace(work.conversion, fetch=once), limiter=limiter)


def test_run_reads_one_commit_and_warns_if_the_repository_moves(
    hub: Hub, work: CopyConversion, tmp_path: Path, clips: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    copy = list_copy(COPY)
    shutil.copytree(tmp_path / "copy", tmp_path / "new")
    (tmp_path / "new" / TAR).write_bytes(b"another content")
    id_in_json(tmp_path / "new", clips)
    hub.folders[SECOND], hub.commit = tmp_path / "new", SECOND
    assert not convert(copy.containers[0], work).error
    sources = {row["source"] for row in rows_of(work.conversion.store)}
    assert sources == {f"{COPY}@{FIRST}/{TAR}/audio/bal_train/{ytid}.flac" for ytid in IDS}
    with caplog.at_level(logging.WARNING):
        warn_if_moved(copy)
    assert "has changed during this run" in caplog.text
    moved = list_copy(COPY)
    assert {container.address for container in moved.containers} == {
        f"{COPY}/{TAR}",
        f"{COPY}/20k/train/shard-00000.tar",
    }
    assert list_copy(f"{COPY}@{FIRST}").containers[0].address == f"{COPY}@{FIRST}/{TAR}"


@pytest.mark.parametrize("token", ["", "hf_ofSomebodyElse"])
def test_gated_repository_explains_how_to_log_in_without_the_token(
    hub: Hub, work: CopyConversion, token: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.is_gated = True
    monkeypatch.setenv("HF_TOKEN", token)
    (container,) = list_copy(COPY).containers
    advice = "hf auth whoami" if token else "hf auth login"
    expected = rf"HTTP 401 \(Access to owner/copy is restricted\).*huggingface.co/datasets/owner/copy.*{advice}"
    with caplog.at_level(logging.DEBUG), pytest.raises(SourceError, match=expected) as caught:
        convert_container(container, work)
    assert not token or (token not in caplog.text and token not in str(caught.value))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert not convert(container, work).error


def test_missing_repository_is_named(hub: Hub) -> None:
    with pytest.raises(InputError, match=r"can't list hf://datasets/owner/typo: .*repository not found"):
        list_copy("hf://datasets/owner/typo")


@pytest.mark.parametrize("status", [429, 503])
def test_throttled_address_cools_down_without_costing_an_attempt(hub: Hub, work: CopyConversion, status: int) -> None:
    (container,) = list_copy(f"{hub.address}/datasets/owner/copy/resolve/main/{TAR}").containers
    hub.refusals[TAR] = (status, {"Retry-After": "300"})
    wait = convert_container(container, work)
    assert isinstance(wait, Wait) and 299 < wait.seconds <= 390
    before = hub.requests["resolve"]
    assert isinstance(convert_container(container, work), Wait)
    assert hub.requests["resolve"] == before
    assert not convert(container, replace(work, limiter=LocalRateLimiter(RateLimitConfig(), 0))).error
    assert sorted(row["ytid"] for row in rows_of(work.conversion.store)) == IDS


def test_throttled_listing_is_repeated_after_the_stated_pause(hub: Hub) -> None:
    # fsspec asks with HEAD and, if that fails, with GET.
    hub.refusals[TAR] = (429, {"Retry-After": "0"})
    media = f"{hub.address}/datasets/owner/copy/resolve/main/{TAR}"
    assert len(list_copy(media).containers) == 1


def test_missing_file_of_a_pattern_is_named(hub: Hub) -> None:
    with pytest.raises(InputError, match=r"bal_train01\.tar"):
        list_copy(f"{hub.address}/datasets/owner/copy/resolve/main/data/bal_train{{00..01}}.tar")
