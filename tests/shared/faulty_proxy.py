"""A network that can be bad: a TCP proxy in front of a real server, for tests of faults.

Owns what happens to the bytes that the server answers with. A test sets the attributes while
connections are open; each is looked at for every piece that passes.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class FaultyProxy:
    """Forwards to a port on this machine, as well as it is told to."""

    def __init__(self, target: int) -> None:
        self.delay = 0.0
        """Seconds that every piece of an answer is kept back."""
        self.cut_after: int | None = None
        """Of each connection's answers, the bytes that come through before it breaks."""
        self.change: Callable[[bytes], bytes] = lambda piece: piece
        """What becomes of every piece of an answer."""
        self.answered = 0
        """Bytes of answers that came through, over all connections."""
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Break every connection and take no more."""
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                for pump in (self._ask, self._answer):
                    threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while piece := client.recv(65_536):
                server.sendall(piece)
            server.shutdown(socket.SHUT_WR)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while piece := server.recv(4_096):
                time.sleep(self.delay)
                if self.cut_after is not None:
                    piece = piece[: max(self.cut_after - passed, 0)]
                client.sendall(self.change(piece))
                passed += len(piece)
                self.answered += len(piece)
                if self.cut_after is not None and passed >= self.cut_after:
                    break
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def faulty_proxy(target: int) -> Iterator[FaultyProxy]:
    """A proxy in front of `target` until the block ends, at first without a fault."""
    proxy = FaultyProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
