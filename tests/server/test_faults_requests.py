"""What a stranger can send, byte for byte: each is answered or cut, and the server is as before."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest

from raw_http import answer, connected, head, is_closed
from served import Served, chat, refused

CHAT = "/v1/chat/completions"
JSON = "Content-Type: application/json"
CLIENT_SECONDS = 8  # as the fixture's server is set
MEBIBYTE = 1024 * 1024


@pytest.fixture
def connection(served: Served) -> Iterator[socket.socket]:
    with connected(served.server.url) as open_:
        yield open_


@pytest.fixture(autouse=True)
def _all_is_well_afterwards(served: Served) -> Iterator[None]:
    yield
    after = chat(served, served.keys["pirate"], max_tokens=2)
    assert after.headers["X-Adapter-Id"] == "pirate@1"
    assert served.server.call("GET", "/admin/engine")["restarts"] == 0


def code_of(body: bytes) -> str:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["code"])


def post(connection: socket.socket, key: str | None, body: bytes, *headers: str) -> Any:
    length = f"Content-Length: {len(body)}"
    connection.sendall(head("POST", CHAT, key, JSON, length, *headers) + body)
    return answer(connection)


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [',
        b"",
        b"\xff\xfe\x00",
        b'{"messages": [{"role": "user", "content": "\xc3\x28"}]}',
        b"[" * 100_000,
        b"null",
        b'"messages"',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": ' + b"9" * 5000 + b"}",
    ],
    ids=["cut", "empty", "utf-16", "utf-8", "deep", "null", "text", "digits"],
)
def test_a_body_that_is_no_request(served: Served, connection: socket.socket, body: bytes) -> None:
    status, _, text = post(connection, served.keys["pirate"], body)
    assert (status, code_of(text)) == (400, "invalid_request")


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": float("nan")},
        {"temperature": 1e308},
        {"seed": 2**64},
        {"seed": -(2**63) - 1},
        {"top_p": -1},
        {"top_k": 2**40},
        {"logit_bias": {"99999999": 1}},
        {"logit_bias": {"1": float("inf")}},
        {"stop": ["x"] * 100_000},
        {"stop_token_ids": [2**70]},
        {"min_tokens": 10**9},
        {"n": 0},
        {"truncate_prompt_tokens": -5},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": [{"role": "user", "content": "\x00"}]},
        {"model": "pirate\r\nX-Evil: 1"},
        {"vllm_xargs": {"a": "b"}, "unknown": {"field": [1]}},
        {"messages": None},
        {"messages": True},
        {"messages": [None]},
        {"messages": [{"role": "user", "content": [7]}]},
        {"messages": [{"role": "user", "content": [["text"]]}]},
        {"tools": 7, "tool_choice": "required"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_values_that_make_no_sense_are_the_clients_fault(
    served: Served, connection: socket.socket, options: dict[str, Any]
) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, **options}
    status, headers, text = post(connection, served.keys["pirate"], json.dumps(body).encode())
    assert status < 500, text
    assert "x-evil" not in headers
    if status != 200:
        code_of(text)


@pytest.mark.parametrize(
    "body",
    [
        {"input": "x", "tools": True},
        {"input": [{"type": "message", "id": "m", "role": "assistant", "status": "completed"}]},
        {"input": [{"role": "user", "content": [7]}]},
        {
            "input": [
                {
                    "type": "message",
                    "id": "m",
                    "role": "assistant",
                    "status": "completed",
                    "content": [],
                }
            ]
        },
    ],
    ids=["tools", "no content", "a number", "empty content"],
)
def test_responses_that_make_no_sense_are_the_clients_fault(
    served: Served, body: dict[str, Any]
) -> None:
    answered = httpx.post(
        f"{served.server.url}/v1/responses",
        headers={"Authorization": f"Bearer {served.keys['pirate']}"},
        json=body,
        timeout=60,
    )
    refused(answered, 400, "invalid_request")


def test_unknown_fields_are_no_error(served: Served) -> None:
    answered = chat(served, served.keys["pirate"], max_tokens=2, never_heard_of={"a": [1]})
    assert answered.status_code == 200


CONSENT = "/v1/feedback/consent"


@pytest.mark.parametrize(("method", "path"), [("POST", CHAT), ("PUT", CONSENT)])
def test_50_megabytes_by_their_own_word(
    served: Served, connection: socket.socket, method: str, path: str
) -> None:
    """Refused before anything of it is read."""
    size = f"Content-Length: {50 * MEBIBYTE}"
    connection.sendall(head(method, path, served.keys["pirate"], JSON, size))
    status, _, text = answer(connection)
    assert (status, code_of(text)) == (413, "request_too_large")


@pytest.mark.parametrize(("method", "path"), [("POST", CHAT), ("PUT", CONSENT)])
def test_50_megabytes_in_chunks(
    served: Served, connection: socket.socket, method: str, path: str
) -> None:
    """Refused once it is too much, whatever follows."""
    chunked = "Transfer-Encoding: chunked"
    connection.sendall(head(method, path, served.keys["pirate"], JSON, chunked))
    piece = b"%x\r\n" % MEBIBYTE + b" " * MEBIBYTE + b"\r\n"
    for _ in range(50):
        connection.sendall(piece)
    status, _, text = answer(connection)
    assert (status, code_of(text)) == (413, "request_too_large")


@pytest.mark.parametrize("claimed", ["-1", "one", "1, 2", "999999999999999999999999"])
def test_lengths_that_are_none(served: Served, connection: socket.socket, claimed: str) -> None:
    length = f"Content-Length: {claimed}"
    connection.sendall(head("POST", CHAT, served.keys["pirate"], JSON, length) + b"{}")
    assert answer(connection)[0] == 400


def test_two_lengths_smuggle_nothing(served: Served, connection: socket.socket) -> None:
    both = ("Content-Length: 5", "Transfer-Encoding: chunked")
    connection.sendall(head("POST", CHAT, served.keys["pirate"], JSON, *both) + b"0\r\n\r\nGET ")
    assert answer(connection)[0] == 400
    assert is_closed(connection, 2)


def test_more_than_was_said_is_not_read_as_a_body(
    served: Served, connection: socket.socket
) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}).encode()
    length = f"Content-Length: {len(body)}"
    connection.sendall(head("POST", CHAT, served.keys["pirate"], JSON, length) + body + b"}}}}")
    assert answer(connection)[0] in (200, 400)
    assert is_closed(connection, 2)


def test_less_than_was_said_is_cut_off_in_time(served: Served, connection: socket.socket) -> None:
    began = time.monotonic()
    connection.sendall(
        head("POST", CHAT, served.keys["pirate"], JSON, "Content-Length: 100") + b'{"messages"'
    )
    status, headers, text = answer(connection)
    assert (status, code_of(text)) == (408, "request_timeout")
    assert headers["connection"] == "close"
    assert is_closed(connection, 1)
    assert CLIENT_SECONDS - 0.5 < time.monotonic() - began < CLIENT_SECONDS + 4


def seconds_of_dribbling(url: str, request: bytes, begun: int) -> float:
    """Until the server closes on somebody who has sent so much and goes on byte by byte."""
    began = time.monotonic()
    with connected(url) as connection, suppress(ConnectionError):
        connection.sendall(request[:begun])
        for at in range(begun, begun + 10 * (CLIENT_SECONDS + 6)):
            connection.sendall(request[at : at + 1])
            time.sleep(0.1)
    return time.monotonic() - began


def test_a_request_that_dribbles_in_is_cut_off_in_time(served: Served) -> None:
    """A byte now and then buys no time, not even for a body that was refused already."""
    asked = {
        key: head("POST", CHAT, key, JSON, "Content-Length: 100000") + b" " * 1000
        for key in (served.keys["pirate"], "wrong")
    }
    dribblers = [(asked[served.keys["pirate"]], 5)]
    dribblers += [(request, len(request) - 900) for request in asked.values()]
    with ThreadPoolExecutor() as threads:
        spent = list(threads.map(lambda d: seconds_of_dribbling(served.server.url, *d), dribblers))
    assert min(spent) > CLIENT_SECONDS - 0.5, spent
    assert max(spent) < CLIENT_SECONDS + 5, spent


def test_a_connection_that_says_nothing_is_closed(connection: socket.socket) -> None:
    assert is_closed(connection, CLIENT_SECONDS + 4)


def test_a_body_that_keeps_coming_has_the_time_it_needs(
    served: Served, connection: socket.socket
) -> None:
    """16 KiB a second and more: slow, and right."""
    content = json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2})
    body = content.encode() + b" " * (CLIENT_SECONDS + 2) * 32 * 1024
    connection.sendall(
        head("POST", CHAT, served.keys["pirate"], JSON, f"Content-Length: {len(body)}")
    )
    for start in range(0, len(body), 8 * 1024):
        connection.sendall(body[start : start + 8 * 1024])
        time.sleep(0.25)
    assert answer(connection)[0] == 200


def test_a_half_closed_connection_counts_as_left(served: Served) -> None:
    for body in (b"", b'{"mess'):
        with connected(served.server.url) as connection:
            connection.sendall(
                head("POST", CHAT, served.keys["pirate"], JSON, "Content-Length: 90") + body
            )
            connection.shutdown(socket.SHUT_WR)
            assert is_closed(connection, 2)


@pytest.mark.parametrize("path", ["/v1/models/%ff%fe", "/v1/models/%0d%0aX-Evil:%201", "/%00"])
def test_paths_that_are_no_text(served: Served, connection: socket.socket, path: str) -> None:
    connection.sendall(head("GET", path, served.keys["pirate"]))
    status, headers, text = answer(connection)
    assert (status, "x-evil" in headers) == (404, False)
    assert code_of(text) in ("model_not_found", "not_found")


@pytest.mark.parametrize(
    "name", ["\xff\xfe", "pirate\x00", "a" * 5000, "../../etc", "%0d%0aX-Evil: 1"]
)
@pytest.mark.parametrize("header", ["X-Adapter-Id", "X-User-Id"])
def test_header_values_that_name_nobody(
    served: Served, connection: socket.socket, header: str, name: str
) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()
    status, headers, _ = post(connection, served.keys["pirate"], body, f"{header}: {name}")
    assert status in ((400, 404) if header == "X-Adapter-Id" else (400, 403))
    assert "x-evil" not in headers


@pytest.mark.parametrize(
    "lines",
    [
        ["X-Adapter-Id: pirate\r\n folded: formal"],
        ["X-Adapter-Id : pirate"],
        ["X-Adapter-Id\x00: pirate"],
        ["X-Adapter-Id: pirate\nX-User-Id: likes-formal"],
    ],
)
def test_headers_that_are_none(served: Served, connection: socket.socket, lines: list[str]) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}).encode()
    status, headers, _ = post(connection, served.keys["pirate"], body, *lines)
    assert status in (400, 403, 404), headers


def test_a_second_x_user_id_forges_nothing(served: Served, connection: socket.socket) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}).encode()
    names = ("X-User-Id: likes-pirate", "X-User-Id: likes-formal")
    _, headers, _ = post(connection, served.keys["pirate"], body, *names)
    assert headers["x-adapter-id"] == "pirate@1"
    with connected(served.server.url) as other:
        status, _, text = post(other, served.keys["pirate"], body, *reversed(names))
        assert (status, code_of(text)) == (403, "not_allowed")


def test_a_user_who_is_not_there_has_nothing(served: Served) -> None:
    headers = {"X-User-Id": "nobody-yet", "X-Adapter-Id": "pirate"}
    path = "/admin/users/likes-formal/keys"
    key = served.server.call("POST", path, json={"role": "service"})["key"]
    refused(chat(served, key, headers=headers), 404, "model_not_found")
