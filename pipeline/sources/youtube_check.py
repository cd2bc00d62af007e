"""Check yt-dlp's requirements for YouTube once, before a run uses any of its few requests per hour."""

import logging
import re
from typing import Any

import yt_dlp
from yt_dlp.dependencies import curl_cffi, yt_dlp_ejs
from yt_dlp.extractor.youtube._base import INNERTUBE_CLIENTS
from yt_dlp.extractor.youtube.jsc._builtin.vendor import VERSION as EJS_VERSION
from yt_dlp.extractor.youtube.pot._registry import _pot_providers
from yt_dlp.globals import supported_js_runtimes
from yt_dlp.networking.impersonate import ImpersonateTarget
from yt_dlp.version import __version__

from pipeline.config import YouTubeConfig
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

DEFAULT_RUNTIME = "deno"
INSTALL_RUNTIME = "install one with: pip install deno"
COOKIES_HEADER = r"#( Netscape)? HTTP Cookie File"
NUM_COOKIE_FIELDS = 7
CLIENT_SETS = ("default", "all")


def check_youtube(config: YouTubeConfig, cookies: str, po_tokens: list[str]) -> None:
    """Check the JavaScript runtime, the settings and the files that they name, and log the versions.

    Raises ConfigError if something is missing or invalid. yt-dlp itself only warns about settings that it can't use,
    and then fetches fewer clips.
    """
    runtime = check_js_runtime(config.js_runtime)
    check_ejs()
    check_clients(config.clients)
    with yt_dlp.YoutubeDL({"quiet": True}) as youtube:  # this loads the plugins
        check_impersonation(config.impersonate, youtube)
    if config.cookies:
        check_cookies(cookies, config.cookies)
    for token in po_tokens:
        if not re.fullmatch(r"[a-z_]+\.(gvs|player|subs)\+\S+", token):
            raise ConfigError(
                f"{config.po_tokens}: expected PO tokens as CLIENT.CONTEXT+TOKEN, such as web.gvs+XXX, found another"
                " form"
            )
    tokens = [f"{len(po_tokens)} of --youtube.po-tokens"] if po_tokens else []
    log.info(
        "YouTube: yt-dlp %s, %s, yt-dlp-ejs %s, impersonates %s, PO tokens by %s",
        *(__version__, runtime, EJS_VERSION, config.impersonate or "no browser"),
        ", ".join([*tokens, *po_token_providers()]) or "nothing",
    )


def po_token_providers() -> list[str]:
    """Return the names and versions of the PO-token plugins that yt-dlp found. yt-dlp itself includes none."""
    return [f"{provider.PROVIDER_NAME} {provider.PROVIDER_VERSION}" for provider in _pot_providers.value.values()]


def check_impersonation(setting: str, youtube: Any) -> None:
    """Raise ConfigError unless curl_cffi is installed and can impersonate the browser."""
    if not setting:
        return
    if curl_cffi is None:
        raise ConfigError(
            f"--youtube.impersonate {setting} needs curl_cffi; install it with: pip install '.[impersonate]'"
        )
    clients = sorted({target.client for target, _ in youtube._get_available_impersonate_targets()})
    try:
        is_available = youtube._impersonate_target_available(ImpersonateTarget.from_str(setting))
    except ValueError:
        is_available = False
    if not clients:
        raise ConfigError(
            f"yt-dlp {__version__} does not work with this version of curl_cffi; install a supported version: pip"
            " install '.[impersonate]'"
        )
    if not is_available:
        raise ConfigError(
            f"--youtube.impersonate: expected {', '.join(clients)}, optionally with a version as in chrome-131, found"
            f" {setting!r}"
        )


def check_js_runtime(setting: str) -> str:
    """Start the runtime once, and return its name and version. yt-dlp would ignore an unknown or broken runtime."""
    name, _, path = (setting or DEFAULT_RUNTIME).partition(":")
    runtimes = supported_js_runtimes.value
    if name not in runtimes:
        raise ConfigError(
            f"--youtube.js-runtime: expected {', '.join(sorted(runtimes))}, optionally with :PATH, found {setting!r}"
        )
    runtime = runtimes[name](path=path or None)
    if runtime.info is None:
        where = f"at {path}" if path else "on the PATH"
        raise ConfigError(
            f"YouTube's player needs a JavaScript runtime, but found no {name} {where}; {INSTALL_RUNTIME}, or name"
            " another runtime with --youtube.js-runtime, such as node:/usr/bin/node"
        )
    if not runtime.info.supported:
        minimum = ".".join(map(str, runtime.MIN_SUPPORTED_VERSION))
        raise ConfigError(
            f"expected {name} {minimum} or later for yt-dlp {__version__}, found {runtime.info.version} at"
            f" {runtime.info.path}; {INSTALL_RUNTIME}"
        )
    return f"{name} {runtime.info.version}"


def check_ejs() -> None:
    """Check the minor version of yt-dlp-ejs, which solves the player's challenges for yt-dlp."""
    found = yt_dlp_ejs.version if yt_dlp_ejs else "none"
    if found.split(".")[:2] != EJS_VERSION.split(".")[:2]:
        raise ConfigError(
            f"yt-dlp {__version__} needs yt-dlp-ejs {EJS_VERSION}, found {found}; install it with:"
            f" pip install yt-dlp-ejs=={EJS_VERSION}"
        )


def check_clients(clients: tuple[str, ...]) -> None:
    known = [name for name in INNERTUBE_CLIENTS if not name.startswith("_")]
    for client in clients:
        if client.removeprefix("-") not in (*known, *CLIENT_SETS):
            raise ConfigError(f"--youtube.clients: expected one of {', '.join(known)}, found {client!r}")


def check_cookies(text: str, path: str) -> None:
    """Check that the cookies are in Netscape's format. yt-dlp would skip other lines and continue as a guest."""
    lines = text.splitlines()
    cookies = [line for line in lines if line.strip() and (not line.startswith("#") or line.startswith("#HttpOnly_"))]
    bad_rows = [
        row for row, line in enumerate(lines, 1) if line in cookies and line.count("\t") != NUM_COOKIE_FIELDS - 1
    ]
    if text.lstrip()[:1] in ("[", "{"):
        found = "JSON"
    elif not re.match(COOKIES_HEADER, text):
        found = "another first line"
    elif bad_rows:
        found = f"another number of fields in line {bad_rows[0]}"
    elif not any("youtube.com" in cookie.split("\t")[0] for cookie in cookies):
        found = "no cookie of youtube.com"
    else:
        return
    raise ConfigError(
        f"--youtube.cookies {path}: expected Netscape's format, which starts with '# Netscape HTTP Cookie File' and has"
        f" {NUM_COOKIE_FIELDS} tab-separated fields per line, found {found}; export the cookies as cookies.txt"
    )
