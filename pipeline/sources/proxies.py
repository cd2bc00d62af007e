"""Read the list of proxies and test them. Each proxy has its own rate limit."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from pipeline.config import FetchConfig
from pipeline.errors import ConfigError

DEFAULT_PORTS = {"http": 80, "https": 443, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}
CONNECT_TIMEOUT_S = 5.0
MAX_NAMED = 5


def read_proxies(config: FetchConfig) -> tuple[str, ...]:
    """Read the addresses of proxies, such as http://user:secret@host:3128, and test the connection to each proxy.

    Raises ConfigError if the file can't be read, a line is not an address, or a proxy is unreachable.
    """
    if not config.proxies:
        return ()
    try:
        lines = [line.strip() for line in Path(config.proxies).expanduser().read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the proxies {config.proxies}: {error}; correct --fetch.proxies") from error
    proxies = tuple(filter(None, lines))
    bad_lines = [number for number, line in enumerate(lines, 1) if line and not _split(line)]
    if bad_lines or not proxies:
        found = f"other text in line {bad_lines[0]}" if bad_lines else "an empty file"
        raise ConfigError(f"{config.proxies}: expected one address per line, such as http://host:3128, found {found}")
    with ThreadPoolExecutor(min(32, len(proxies))) as pool:
        errors = list(pool.map(_connect, proxies))
    lost = [f"{host_of(proxy)} ({error})" for proxy, error in zip(proxies, errors, strict=True) if error]
    if lost:
        more = f" and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
        raise ConfigError(
            f"can't connect to {len(lost)} of the {len(proxies)} proxies in {config.proxies}:"
            f" {', '.join(lost[:MAX_NAMED])}{more}; correct or remove them"
        )
    return proxies


def host_of(proxy: str) -> str:
    """Return a proxy's host and port without its credentials, for use in messages."""
    parts = _split(proxy)
    return f"{parts.hostname}:{parts.port or DEFAULT_PORTS[parts.scheme]}" if parts else "?"


def _split(proxy: str) -> SplitResult | None:
    try:
        parts = urlsplit(proxy)
        is_address = parts.scheme in DEFAULT_PORTS and parts.hostname and parts.port != 0 and proxy.split() == [proxy]
    except ValueError:
        return None
    return parts if is_address else None


def _connect(proxy: str) -> str | None:
    """Try to connect to a proxy. Returns the error, or None if the connection succeeds."""
    host, port = host_of(proxy).rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
