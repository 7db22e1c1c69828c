"""Media behind an address: off unless its host is allowed, and then only from public machines.

address -> scheme, host, port -> allowed? -> every resolved address public? -> dial that very address -> redirect? again

Checked where it is dialled: a name that resolves to another address a moment later is not asked again. Errors name the
host that was asked for, never what it resolved to, since that tells a stranger about this network.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from contextlib import suppress
from functools import partial
from threading import Timer
from urllib.parse import SplitResult, urljoin, urlsplit

from plait.serving.errors import RefusalError
from plait.serving.settings import Settings

PORTS = {"http": 80, "https": 443}
_CHUNK = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)


def fetch(url: str, settings: Settings) -> bytes:
    """The bytes behind an address.

    Args:
        url: http or https, on its usual port.
        settings: allowed hosts, bytes, seconds, redirects.

    Raises:
        RefusalError: 400 for whatever is not allowed, not found, too large or too slow.
    """
    # one clock for all redirects together: each alone could use up the time
    until = time.monotonic() + settings.fetch_seconds
    for _ in range(settings.max_redirects + 1):
        # every hop again: an allowed host may redirect into this network
        parts = _checked(url, settings)
        answer = _ask(parts, until, settings.max_body)
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer)
    raise _refused(urlsplit(url).hostname, f"more than {settings.max_redirects} redirects")


def _refused(host: str | None, reason: str) -> RefusalError:
    """400, in words that hold for every reason that lies inside this network."""
    return RefusalError(
        400, f"expected media that may be fetched, got {str(host)[:100]}: {reason}", code="media_not_fetched"
    )


def _checked(url: str, settings: Settings) -> SplitResult:
    """The parts of an address that may be asked. Raises RefusalError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise _refused("an address", "it is malformed") from error
    # other ports reach databases and caches that speak nearly HTTP; `user@` hides the true host from a reader
    if parts.scheme not in PORTS or parts.username is not None or port not in (None, PORTS[parts.scheme]):
        raise _refused(host, "only http and https on their usual ports, without a user, are fetched")
    # a line break in a path would be a second request on the same connection
    if not url.isascii() or not url.isprintable() or " " in url:
        raise _refused("an address", "it has characters that no address has")
    if not any(_matches(host, allowed) for allowed in settings.hosts):
        raise _refused(host, "this server fetches nothing from there; send the bytes as a data URI")
    return parts


def _matches(host: str, allowed: str) -> bool:
    """Whether a host is `example.org`, or below it for `*.example.org`."""
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet at large, also where it is written as IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # an IPv4 address can be written in four ways as an IPv6 one, private ones too
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            # NAT64 holds an IPv4 address
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None and not is_public(str(inner)):
            return False
    return ip.is_global and not ip.is_multicast


def addresses_of(host: str, port: int) -> list[str]:
    """Every address that a name stands for."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _ask(parts: SplitResult, until: float, max_bytes: int) -> bytes | str:
    """The content behind an address, or where it redirects to. Raises RefusalError."""
    host, port = parts.hostname or "", PORTS[parts.scheme]
    try:
        found = addresses_of(host, port)
        # all of them: one private address among public ones is how rebinding begins
        if not found or not all(is_public(address) for address in found):
            raise _refused(host, "not reached")
        # the very address that was looked at: asking for the name again could give another
        with socket.create_connection((found[0], port), timeout=_left(until)) as plain:
            channel = plain
            if parts.scheme == "https":
                channel = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
            # a host that sends a byte now and then is never late by itself
            alarm = Timer(_left(until), partial(_hang_up, channel))
            alarm.start()
            with channel:
                try:
                    return _read(channel, parts, max_bytes)
                finally:
                    alarm.cancel()
    except (OSError, http.client.HTTPException, UnicodeError, TimeoutError) as error:
        raise _refused(host, "not reached") from error


def _hang_up(channel: socket.socket) -> None:
    with suppress(OSError):  # closed already
        channel.shutdown(socket.SHUT_RDWR)


def _read(channel: socket.socket, parts: SplitResult, max_bytes: int) -> bytes | str:
    """Ask over an open connection; the body, or where it redirects to."""
    connection = http.client.HTTPConnection(parts.hostname or "")
    # http.client would dial by name
    connection.sock = channel
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", path, headers={"Accept-Encoding": "identity", "User-Agent": "plait"})
    with connection.getresponse() as answer:  # it keeps the channel open until it is closed itself
        return _content(answer, parts, max_bytes)


def _content(answer: http.client.HTTPResponse, parts: SplitResult, max_bytes: int) -> bytes | str:
    """The body of an answer within its bytes, or where it redirects to."""
    if answer.status in _REDIRECTS and (target := answer.headers.get("Location")):
        return target
    if answer.status != 200:
        raise _refused(parts.hostname, f"answered {answer.status}")
    # unpacked it could be a thousand times larger than what is counted here
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise _refused(parts.hostname, "sent it compressed, which was not asked for")
    blocks, size = [], 0
    while block := answer.read1(_CHUNK):
        size += len(block)
        if size > max_bytes:
            raise _refused(parts.hostname, f"more than {max_bytes} bytes")
        blocks.append(block)
    if answer.length:  # bytes that were promised and did not come
        raise _refused(parts.hostname, "it broke off")
    return b"".join(blocks)


def _left(until: float) -> float:
    """Seconds left. Raises TimeoutError where there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
