"""Is a folder from a stranger a LoRA that this base can serve, safely and rightly?

Owns the order of all checks on untrusted bytes, made before an engine sees them: what vLLM
refuses with an opaque error, and what it serves silently wrong. Refuses to change anything
(`normalise.py` does). Memory is bounded by the header's, itself bounded by what this base needs.
As many problems as can be told are told at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from adapters.artifact import (
    ADAPTER_FILES,
    IGNORED_FILES,
    WEIGHTS_FILE,
    Manifest,
    read_manifest,
)
from adapters.base import BaseModelInfo
from adapters.errors import IncompatibleBase, InvalidAdapter
from adapters.files import open_regular
from adapters.limits import Limits, ValidationReport
from adapters.lora_config import LoraSettings, coverage, read_config, settings_of
from adapters.lora_tensors import Pair, pairs_for
from adapters.magnitudes import Magnitudes, measure
from adapters.provenance import doubts_about_base
from adapters.strictjson import Malformed
from adapters.tensorfile import MAX_HEADER_BYTES, TensorFile, read_header

__all__ = ["Limits", "ValidationReport", "validate", "validate_form"]

BLUR = 0.02  # worth a warning; what is not converted has a tenth of it
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def validate(folder: Path, base: BaseModelInfo, limits: Limits) -> ValidationReport:
    """Check the adapter in `folder` against `base`. Raises InvalidAdapter, IncompatibleBase."""
    manifest, config, settings = _check_words(folder, base, limits)
    with _weights(folder) as (file, size):
        header, pairs = _check_layout(file, size, settings, base, limits)
        sizes = measure(file, pairs, settings.scale, base, limits)
    if sizes.problems:
        raise InvalidAdapter(sizes.problems)
    modules = tuple(sorted(pairs))
    doubts = (*_doubts(manifest, config, base), *_disagreements(config, modules, base))
    return ValidationReport(
        rank=settings.rank,
        scale=settings.scale,
        modules=modules,
        parameters=sum(entry.elements for entry in header),
        bytes=size,
        warnings=(*doubts, *_blurred(sizes)),
        change=sizes.change,
    )


def validate_form(folder: Path, base: BaseModelInfo, limits: Limits) -> None:
    """All of `validate` but the look at the numbers, which costs the time: enough to rewrite it."""
    _, _, settings = _check_words(folder, base, limits)
    with _weights(folder) as (file, size):
        _check_layout(file, size, settings, base, limits)


def _check_words(
    folder: Path, base: BaseModelInfo, limits: Limits
) -> tuple[Manifest | None, Mapping[str, Any], LoraSettings]:
    _check_listing(folder)
    manifest = read_manifest(folder)
    _check_base(manifest, base)
    config = read_config(folder)
    return manifest, config, settings_of(config, limits.max_rank)


@contextmanager
def _weights(folder: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The open file and its size; what is wrong with it is told as InvalidAdapter."""
    try:
        file, size = open_regular(folder / WEIGHTS_FILE)
        with file:
            yield file, size
    except Malformed as error:
        raise InvalidAdapter([f"{WEIGHTS_FILE} {error}"]) from None
    except OSError as error:
        raise InvalidAdapter([f"{WEIGHTS_FILE} cannot be read ({error.strerror})"]) from None


def _check_listing(folder: Path) -> None:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InvalidAdapter([f"the folder cannot be read ({error.strerror})"]) from None
    extra = [name for name in names if name not in (*ADAPTER_FILES, *IGNORED_FILES)]
    if extra:
        raise InvalidAdapter([_about_extra(name) for name in extra])


def _about_extra(name: str) -> str:
    if name.endswith(PICKLES):
        return f"{name[:80]!r} may hold a pickle, which can run code: save as {WEIGHTS_FILE}"
    return f"{name[:80]!r} is not accepted: send {', '.join(ADAPTER_FILES)}"


def _check_base(manifest: Manifest | None, base: BaseModelInfo) -> None:
    if manifest is None or manifest.base.assumed or manifest.base.fingerprint == base.fingerprint:
        return
    raise IncompatibleBase(
        [
            f"it was made for the base model {manifest.base.name!r} "
            f"({manifest.base.fingerprint[:19]}…), this is {base.name!r} "
            f"({base.fingerprint[:19]}…)"
        ]
    )


def _check_layout(
    file: BinaryIO, size: int, settings: LoraSettings, base: BaseModelInfo, limits: Limits
) -> tuple[TensorFile, Mapping[str, Pair]]:
    """The header, and the tensors by the module that they adapt.

    Raises InvalidAdapter, and Malformed with a clause about the file.
    """
    if size > limits.max_bytes:
        raise Malformed(f"is {size} bytes long, more than the {limits.max_bytes} allowed")
    header = read_header(file, size, max_header_bytes=_header_limit(base))
    pairs, problems = pairs_for(header, base, settings.rank)
    if not header.entries:
        problems.append(f"{WEIGHTS_FILE} holds no tensor")
    if problems:
        raise InvalidAdapter(problems)
    return header, pairs


def _header_limit(base: BaseModelInfo) -> int:
    """Twice what an adapter of every layer needs, and room for what tools add of their own."""
    return min(MAX_HEADER_BYTES, 2**16 + sum(2 * (len(name) + 200) for name in base.modules) * 2)


def _doubts(
    manifest: Manifest | None, config: Mapping[str, Any], base: BaseModelInfo
) -> Iterator[str]:
    """Why it may be for another base than this one, although nothing proves it."""
    if manifest is None:
        yield doubts_about_base(config, base)
    elif manifest.base.fingerprint != base.fingerprint:
        yield f"it was only assumed to be for the base model {manifest.base.name!r}"
    elif manifest.base.name != base.name:
        yield f"it calls the same base model {manifest.base.name!r}"


def _disagreements(
    config: Mapping[str, Any], modules: Sequence[str], base: BaseModelInfo
) -> Iterator[str]:
    """Where the config names other layers than the tensors: what is served are the tensors."""
    covers, changed = coverage(config), set(modules)
    if left_out := [module for module in modules if not covers(module)]:
        yield f"it changes layers that its config leaves out: {_some(left_out)}"
    # What a pattern leaves out is not known, because it is never run.
    if (
        type(config.get("target_modules")) is list
        and type(config.get("exclude_modules")) is not str
    ):
        missing = sorted(m for m in base.modules if m not in changed and covers(m))
        if missing:
            yield f"its config names layers that it does not change: {_some(missing)}"


def _blurred(sizes: Magnitudes) -> Iterator[str]:
    if sizes.blur > BLUR:
        yield (
            f"its two factors nearly cancel (a converted PiSSA or OLoRA?), so that rounding to "
            f"bf16 blurs its effect by some {sizes.blur:.0%}: a plain LoRA would be served sharper"
        )


def _some(modules: Sequence[str]) -> str:
    more = len(modules) - 1
    return f"{modules[0]} and {more} more" if more else modules[0]
