"""What a store's URL says: `s3://bucket/prefix?endpoint=https://host&region=name`.

Owns its grammar and the default time limits. Refuses secrets: those come from the environment
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …), as does whatever else the URL leaves out. No message
repeats the URL, since somebody may have put a key in it.
"""

import re
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from adapters.errors import StoreError

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_PREFIX = re.compile(r"([A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*)?")

Seconds = Annotated[float, Field(gt=0, le=3600)]


class StoreOptions(BaseModel):
    """The part of the URL after the question mark."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str | None = None
    """Where the object store listens; without it, at Amazon's address for the region."""
    region: str | None = Field(None, min_length=1, max_length=64)
    allow_http: bool = False
    """Speak to it without TLS."""
    virtual_hosted_style_request: bool = False
    """The endpoint's host name already says the bucket."""
    connect_timeout: Seconds = 3.0
    """A host that is away is noticed after this; one that is there answers in milliseconds."""
    read_timeout: Seconds = 10.0
    """A host that falls silent is given up after this. It is silent, too, while a part of an upload
    is on its way: 10 MiB must get there in this time, by default at 1 MB/s."""
    timeout: Seconds = 300.0
    """The longest that one file may take, however steadily it comes: 100 MB at 350 kB/s."""

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, endpoint: str | None) -> str | None:
        parts = urlsplit(endpoint or "https://unsaid")
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError("write it as https://host:port")
        return endpoint


@dataclass(frozen=True)
class StoreUrl:
    """A bucket, the prefix of every key in it, and how it is reached."""

    bucket: str
    prefix: str
    options: StoreOptions


def parse_store_url(url: str) -> StoreUrl:
    """Read the URL of an object store. Raises StoreError with a sentence on what is wrong."""
    try:
        parts = urlsplit(url)
        options = StoreOptions.model_validate(_pairs(parts.query))
    except ValidationError as error:
        raise StoreError(f"The store's URL is wrong: {_first_problem(error)}.") from None
    except ValueError:
        raise _wrong("it cannot be read") from None
    prefix = parts.path.strip("/")
    if parts.scheme != "s3":
        raise _wrong("it does not begin with s3://")
    if not _BUCKET.fullmatch(parts.netloc):
        raise _wrong("between s3:// and the next / there must be a bucket's name, and no key")
    if not _PREFIX.fullmatch(prefix) or {".", ".."} & set(prefix.split("/")) or parts.fragment:
        raise _wrong("its path may have letters, digits and !_.*'()- between single slashes")
    if (options.endpoint or "").startswith("http:") and not options.allow_http:
        raise _wrong("its endpoint is without TLS: use https, or allow it with allow_http=true")
    return StoreUrl(parts.netloc, prefix, options)


def _pairs(query: str) -> dict[str, str]:
    return dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True)) if query else {}


def _wrong(what: str) -> StoreError:
    return StoreError(f"The store's URL is wrong: {what}. For example: s3://bucket/prefix")


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_input=False, include_url=False)[0]
    if problem["type"] == "extra_forbidden":
        return f"it has an option other than {', '.join(StoreOptions.model_fields)}"
    return f"{problem['loc'][0]}: {problem['msg'].removeprefix('Value error, ')}"
