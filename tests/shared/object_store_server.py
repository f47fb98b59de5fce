"""A real object store for tests: moto's S3 server in a process of its own, spoken to over HTTP.

Beside the store's own client, a test looks into a bucket and damages it through plain requests.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import httpx

# What the client signs with; the server takes any.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "not-to-be-shown"}

_SERVER = """
import signal, sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", int(sys.argv[1]), verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
signal.pause()
"""
# It does not check signatures, but hides objects from requests without one.
_SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=anybody/20260101/us-east-1/s3/aws4_request,"
    " SignedHeaders=host, Signature=0"
}
_CLIENT = httpx.Client()  # one for all: making one takes longer than what it asks
_NAMESPACE = {"s3": "http://s3.amazonaws.com/doc/2006-03-01/"}


class ObjectStoreServer:
    """The running server; what it stores dies with it."""

    def __init__(self, port: int = 0) -> None:
        command = [sys.executable, "-c", _SERVER, str(port)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def create_bucket(self, name: str | None = None) -> Bucket:
        bucket = Bucket(self.port, name or f"bucket-{secrets.token_hex(4)}")
        _CLIENT.put(bucket.address).raise_for_status()
        return bucket

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """It accepts connections, as its kernel does, and says nothing."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Bucket:
    """A bucket as it is, past every cache."""

    def __init__(self, port: int, name: str) -> None:
        self.name = name
        self.address = f"http://127.0.0.1:{port}/{name}"

    def url(self, port: int | None = None, **options: object) -> str:
        """The store's URL for `adapters/`, where wanted by way of a proxy's `port`."""
        endpoint = self.address.removesuffix(f"/{self.name}")
        if port is not None:
            endpoint = f"http://127.0.0.1:{port}"
        said = {"endpoint": endpoint, "region": "us-east-1", "allow_http": "true"} | options
        query = "&".join(f"{name}={value}" for name, value in said.items())
        return f"s3://{self.name}/adapters?{query}"

    def keys(self) -> list[str]:
        listed = ElementTree.fromstring(self._ask("GET", self.address))
        return [key.text or "" for key in listed.findall("s3:Contents/s3:Key", _NAMESPACE)]

    def read(self, key: str) -> bytes:
        return self._ask("GET", f"{self.address}/{key}")

    def write(self, key: str, content: bytes) -> None:
        self._ask("PUT", f"{self.address}/{key}", content)

    def delete(self, key: str) -> None:
        self._ask("DELETE", f"{self.address}/{key}")

    def _ask(self, method: str, address: str, content: bytes | None = None) -> bytes:
        answer = _CLIENT.request(method, address, content=content, headers=_SIGNED)
        return answer.raise_for_status().content


@contextmanager
def object_store_server(port: int = 0) -> Iterator[ObjectStoreServer]:
    """A server on a free port, or on this one, until the block ends."""
    server = ObjectStoreServer(port)
    try:
        yield server
    finally:
        server.kill()
