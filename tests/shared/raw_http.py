"""HTTP by hand, byte for byte, for what no client library would send."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from urllib.parse import urlsplit


@contextmanager
def connected(url: str, timeout: float = 60) -> Iterator[socket.socket]:
    """A connection to the server of `url`."""
    place = urlsplit(url)
    with socket.create_connection((str(place.hostname), int(place.port or 80)), timeout) as open_:
        yield open_


def head(method: str, path: str, key: str | None, *headers: str) -> bytes:
    """A request's head, its headers as they are given."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1")


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in lower case and body of the next answer."""
    response = HTTPResponse(connection)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return response.status, headers, response.read()


def is_closed(connection: socket.socket, seconds: float) -> bool:
    """Whether the server closes the connection within so many seconds."""
    connection.settimeout(seconds)
    try:
        while connection.recv(65_536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True
