"""A store in a bucket of any object store that speaks the S3 protocol.

Owns the layout in the bucket, and what the network's failures are called.
Refuses the cache (which hashes what arrives and decides what is forgotten) and the URL's grammar.

    <prefix>/blobs/<sha256>/adapter_config.json            written first, deleted last
    <prefix>/blobs/<sha256>/adapter_model.safetensors      written last, deleted first

A blob is complete when both objects are there; each appears whole or not at all, as S3 promises.
The bucket is the truth. The cache answers for what it has while the object store is away.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError
from obstore.store import S3Store

from adapters.artifact import SERVED_FILES, artifact_digest
from adapters.blobs import StoredBlob, check_content, hex_of
from adapters.cache import BlobCache
from adapters.errors import CorruptArtifact, StoreError
from adapters.files import write_durably
from adapters.leases import Lease, Turns
from adapters.store_url import StoreOptions, parse_store_url

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

BLOBS = "blobs"
# Three tries take half a second where nobody listens. None begins after five seconds, so that
# a request waits no longer than that and one time-out.
RETRIES: RetryConfig = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=5),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=1),
        "base": 2,
    },
}
# The smallest parts that S3 takes and few at once, for the time limit on each (`read_timeout`).
PART_BYTES = 5 * 2**20
PARTS_AT_ONCE = 2
_CHUNK = 2**20
_PATH = re.compile(rf"{BLOBS}/([0-9a-f]{{64}})/.+")


class ObjectStore:
    """A store in `bucket`, with what is in use here in `cache`."""

    def __init__(self, bucket: S3Store, cache: BlobCache) -> None:
        self._bucket = bucket
        self._cache = cache
        self._downloads = Turns()

    @property
    def disk(self) -> Path:
        return self._cache.disk

    def put(self, folder: Path) -> str:
        # Always sent, also where it is there: that dates it anew and mends what was damaged.
        digest = artifact_digest(folder)
        for name in SERVED_FILES:
            with _failures(digest):
                self._bucket.put(
                    _key(digest, name),
                    folder / name,
                    chunk_size=PART_BYTES,
                    max_concurrency=PARTS_AT_ONCE,
                )
        return digest

    def holds(self, digest: str) -> bool:
        with _failures(digest):
            found = self._bucket.list_with_delimiter(f"{BLOBS}/{hex_of(digest)}")["objects"]
        return {meta["path"].rpartition("/")[2] for meta in found} >= set(SERVED_FILES)

    def lease(self, digest: str) -> Lease:
        lease = self._cache.lease(digest)
        if lease is None:
            with self._downloads.of(digest):  # of many threads one downloads, the others wait
                lease = self._cache.lease(digest) or self._fetched(digest)
        return lease

    def verify(self, digest: str) -> None:
        with self._cache.draft() as draft:
            self._download(digest, draft)
            check_content(draft, digest)

    def remove(self, digest: str) -> bool:
        if not self._cache.remove(digest):
            return False
        for name in reversed(SERVED_FILES):
            with suppress(CorruptArtifact), _failures(digest):  # some stores miss what is gone
                self._bucket.delete(_key(digest, name))
        return True

    def stored(self) -> Iterator[StoredBlob]:
        found = defaultdict(list)
        with _failures():
            for page in self._bucket.list(BLOBS):
                for meta in page:
                    if ours := _PATH.fullmatch(meta["path"]):
                        found[ours[1]].append(meta)
        for value, metas in found.items():
            written = max(meta["last_modified"] for meta in metas)
            yield StoredBlob(f"sha256:{value}", sum(meta["size"] for meta in metas), written)

    def scratch(self) -> AbstractContextManager[Path]:
        return self._cache.draft()

    def _fetched(self, digest: str) -> Lease:
        with self._cache.draft() as draft:
            self._download(digest, draft)
            return self._cache.keep(draft, digest)

    def _download(self, digest: str, draft: Path) -> None:
        for name in SERVED_FILES:
            write_durably(draft / name, self._chunks(digest, name))

    def _chunks(self, digest: str, name: str) -> Iterator[bytes]:
        with _failures(digest):
            yield from self._bucket.get(_key(digest, name)).stream(min_chunk_size=_CHUNK)


def open_object_store(url: str, cache: Path, *, cache_bytes: int) -> ObjectStore:
    """The store at `url`, cached in the folder `cache`; nothing is asked of the network yet.

    Raises StoreError where the URL is wrong or the folder cannot be made.
    """
    address = parse_store_url(url)
    try:
        bucket = S3Store(
            address.bucket,
            prefix=address.prefix or None,
            config=_config(address.options),
            client_options=_client(address.options),
            retry_config=RETRIES,
        )
    except (BaseError, ValueError) as error:
        raise StoreError(
            "The object store cannot be set up: check the store's URL and the AWS_* variables."
        ) from error
    return ObjectStore(bucket, BlobCache(cache, cache_bytes))


def _config(options: StoreOptions) -> S3Config:
    config: S3Config = {
        "virtual_hosted_style_request": options.virtual_hosted_style_request,
        # Two at a time is all that is ever deleted, and not every store can do it in bulk.
        "disable_bulk_delete": True,
    }
    if options.endpoint:
        config["endpoint"] = options.endpoint
    if options.region:
        config["region"] = options.region
    return config


def _client(options: StoreOptions) -> ClientConfig:
    client: ClientConfig = {
        "connect_timeout": timedelta(seconds=options.connect_timeout),
        "read_timeout": timedelta(seconds=options.read_timeout),
        "timeout": timedelta(seconds=options.timeout),
    }
    if options.allow_http:
        client["allow_http"] = True
    return client


def _key(digest: str, name: str) -> str:
    return f"{BLOBS}/{hex_of(digest)}/{name}"


@contextmanager
def _failures(digest: str = "") -> Iterator[None]:
    """What obstore raises in this block is told in the domain's words."""
    try:
        yield
    except (BaseError, OSError) as error:
        reason = str(error)
        if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in reason:
            raise CorruptArtifact(
                f"The stored adapter {digest} is missing: upload it again."
            ) from error
        raise StoreError(_sentence(reason)) from error


def _sentence(reason: str) -> str:
    if "NoSuchBucket" in reason:
        return "The object store has no such bucket: create it, or correct the store's URL."
    if "/latest/api/token" in reason:  # of the cloud's machines, the last place it looks for keys
        return (
            "No credentials for the object store were found: set AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY."
        )
    if "403 Forbidden" in reason or "401 Unauthorized" in reason:
        return "The object store refuses: check AWS_ACCESS_KEY_ID and its rights to the bucket."
    if "BadScheme" in reason:
        return "The object store's endpoint is without TLS: allow it with allow_http=true."
    if "HTTP error" in reason:
        return "The object store does not answer: try again in a moment."
    return "The object store failed: try again in a moment."
