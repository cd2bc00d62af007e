import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import FetchConfig, PreprocessConfig, YouTubeConfig
from pipeline.errors import ConfigError
from pipeline.sources import open_source, read_proxies
from pipeline.sources.youtube import YouTubeSource
from tests.mirror import Mirror

COOKIE = ".youtube.com\tTRUE\t/\tTRUE\t0\tSID\tsecret"
HEADER = "# Netscape HTTP Cookie File"


@pytest.fixture
def deno(tmp_path: Path) -> str:
    """A fake runtime that prints a version like deno's."""
    program = tmp_path / "deno"
    program.write_text("#!/bin/sh\necho deno 2.9.8\n")
    program.chmod(0o755)
    return f"deno:{program}"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rhino", "--youtube.js-runtime: expected bun, deno, node, quickjs, .* found 'rhino'"),
        ("deno:/nowhere/deno", "found no deno at /nowhere/deno.*pip install deno"),
        ("node:/etc/passwd", "found no node at /etc/passwd"),
    ],
)
def test_unusable_runtime_is_reported(setting: str, message: str) -> None:
    config = PreprocessConfig(youtube=YouTubeConfig(js_runtime=setting))
    with pytest.raises(ConfigError, match=message):
        open_source("youtube", config)


def test_outdated_runtime_is_reported(tmp_path: Path) -> None:
    program = tmp_path / "node"
    program.write_text("#!/bin/sh\necho v18.19.0\n")
    program.chmod(0o755)
    with pytest.raises(ConfigError, match=r"expected node 22.0.0 or later .* found 18.19.0 at .*pip install deno"):
        YouTubeSource(YouTubeConfig(js_runtime=f"node:{program}"), FetchConfig()).check()


def test_mismatched_yt_dlp_ejs_is_reported(deno: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = YouTubeSource(YouTubeConfig(js_runtime=deno), FetchConfig())
    source.check()
    monkeypatch.setattr("pipeline.sources.youtube_check.EJS_VERSION", "99.1.0")
    with pytest.raises(ConfigError, match=r"needs yt-dlp-ejs 99.1.0, found .*pip install yt-dlp-ejs==99.1.0"):
        source.check()
    monkeypatch.setattr("pipeline.sources.youtube_check.yt_dlp_ejs", None)
    with pytest.raises(ConfigError, match="found none"):
        source.check()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (f"{HEADER}\n\n{COOKIE}\n#HttpOnly_{COOKIE}\n", None),
        ('[{"domain": ".youtube.com"}]', "JSON"),
        (COOKIE, "another first line"),
        (f"{HEADER}\n{COOKIE}\n{COOKIE.replace(chr(9), ' ')}\n", "another number of fields in line 3"),
        (f"{HEADER}\n{COOKIE.replace('youtube', 'elsewhere')}\n", "no cookie of youtube.com"),
        (HEADER, "no cookie of youtube.com"),
    ],
)
def test_cookies_must_have_netscapes_format(content: str, found: str | None, deno: str, tmp_path: Path) -> None:
    path = tmp_path / "cookies.txt"
    path.write_text(content)
    source = YouTubeSource(YouTubeConfig(js_runtime=deno, cookies=str(path)), FetchConfig())
    if found is None:
        return source.check()
    with pytest.raises(ConfigError, match=f"--youtube.cookies {path}: .* found {found}") as raised:
        source.check()
    assert "secret" not in str(raised.value)


def test_unknown_clients_and_malformed_tokens_are_rejected(deno: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("web.gvs+secret\n")
    YouTubeSource(YouTubeConfig(js_runtime=deno, po_tokens=str(path), clients=("web", "-tv")), FetchConfig()).check()
    with pytest.raises(ConfigError, match=r"--youtube.clients: expected one of .*web.* found 'wbe'"):
        YouTubeSource(YouTubeConfig(js_runtime=deno, clients=("wbe",)), FetchConfig()).check()
    path.write_text("web:secret\n")
    with pytest.raises(ConfigError, match=r"CLIENT.CONTEXT\+TOKEN") as raised:
        YouTubeSource(YouTubeConfig(js_runtime=deno, po_tokens=str(path)), FetchConfig()).check()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("setting", ["opera", "chrome-", "chrome-1"])
def test_unknown_browser_is_rejected(setting: str, deno: str) -> None:
    pytest.importorskip("curl_cffi")
    YouTubeSource(YouTubeConfig(js_runtime=deno, impersonate="chrome"), FetchConfig()).check()
    with pytest.raises(ConfigError, match=rf"--youtube.impersonate: expected chrome, .*, found '{setting}'"):
        YouTubeSource(YouTubeConfig(js_runtime=deno, impersonate=setting), FetchConfig()).check()


def test_missing_curl_cffi_is_reported(deno: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.youtube_check.curl_cffi", None)
    with pytest.raises(ConfigError, match=r"needs curl_cffi; install it with: pip install '\.\[impersonate\]'"):
        YouTubeSource(YouTubeConfig(js_runtime=deno, impersonate="chrome"), FetchConfig()).check()


PLUGIN = """
from yt_dlp.extractor.youtube.pot.provider import PoTokenProvider, register_provider

@register_provider
class TokensOfOursPTP(PoTokenProvider):
    PROVIDER_VERSION, BUG_REPORT_LOCATION = "1.2.3", "nowhere"

    def is_available(self):
        return True

    def _real_request_pot(self, request):
        raise NotImplementedError
"""
CHECK = """
import logging, sys
from pipeline.config import YouTubeConfig
from pipeline.sources.youtube_check import check_youtube

logging.basicConfig(level=logging.INFO, stream=sys.stdout)
check_youtube(YouTubeConfig(js_runtime=sys.argv[1]), "", ["web.gvs+XXX"])
"""


@pytest.mark.process
def test_versions_and_po_token_plugins_are_logged(deno: str, tmp_path: Path) -> None:
    plugin = tmp_path / "yt_dlp_plugins/extractor/getpot_ours.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(PLUGIN)
    env = {**os.environ, "PYTHONPATH": f"{Path.cwd()}{os.pathsep}{tmp_path}"}
    said = subprocess.run([sys.executable, "-c", CHECK, deno], env=env, capture_output=True, text=True, check=True)
    assert re.search(
        r"yt-dlp \S+, deno 2\.9\.8, yt-dlp-ejs \S+, impersonates no browser, PO tokens by 1 of --youtube\.po-tokens,"
        r" TokensOfOurs 1\.2\.3",
        said.stdout,
    ), said


def test_unreachable_proxy_is_reported(mirror: Mirror, tmp_path: Path) -> None:
    path = tmp_path / "proxies"
    reachable = mirror.address.replace("://", "://user:secret@")
    path.write_text(f"{reachable}\n")
    assert read_proxies(FetchConfig(proxies=str(path))) == (reachable,)
    path.write_text(f"{reachable}\nhttp://user:secret@127.0.0.1:1\n")
    with pytest.raises(ConfigError, match=r"1 of the 2 proxies in .*: 127.0.0.1:1 \(Connection refused\)") as raised:
        read_proxies(FetchConfig(proxies=str(path)))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("line", ["", "host:3128", "http://[::1", "http://host:99999", "ftp://host"])
def test_invalid_proxy_line_is_rejected(line: str, tmp_path: Path) -> None:
    path = tmp_path / "proxies"
    path.write_text(line)
    with pytest.raises(
        ConfigError, match=r"expected one address per line, such as http://host:3128, found (other text|an empty)"
    ):
        read_proxies(FetchConfig(proxies=str(path)))


def test_empty_proxy_lines_count_in_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "proxies"
    path.write_text("http://127.0.0.1:1\n\nhttp://one http://two\n")
    with pytest.raises(ConfigError, match="found other text in line 3"):
        read_proxies(FetchConfig(proxies=str(path)))
