"""uvicorn's HTTP protocol, which cuts off a request whose head does not end.

Owns the one bound that no application can have, since it is called when the head is complete;
uvicorn and its parser keep what they are sent until then, without a bound of their own.
"""

from __future__ import annotations

import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import HeadTooLarge, error_body


def bounded_http(head_bytes: int) -> type[HttpToolsProtocol]:
    """The protocol's class for `uvicorn.Config(http=…)`."""
    error = HeadTooLarge(f"the headers are larger than {head_bytes} bytes")
    body = json.dumps(error_body(str(error), error.type, error.code)).encode()
    answer = (
        b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
        b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )

    class BoundedHttp(HttpToolsProtocol):
        _in_head = False
        _head_bytes = 0

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
            if self._head_bytes > head_bytes and not self.transport.is_closing():
                self.transport.write(answer)
                self.transport.close()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head = True

        def on_headers_complete(self) -> None:
            self._in_head = False
            super().on_headers_complete()

    return BoundedHttp
