"""An evaluation that ends with a signed verdict.

Owns the gate that signs, and that what is measured and signed is the served form of the adapter,
rounding included (docs/decisions/0004-signed-verdicts.md). Refuses the judgement (`gate.py`).
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adapters.artifact import artifact_digest, read_manifest, write_manifest
from adapters.base import BaseModelInfo
from adapters.gate import KEY_FILE, sign, signing_key
from adapters.limits import Limits
from adapters.normalise import normalise
from adapters.provenance import derive_manifest
from adapters.validation import validate
from adapters.verdict import Verdict, VerdictLine
from training.evaluation.evaluate import Evaluation, evaluate
from training.evaluation.gate import Thresholds, judge, load_thresholds
from training.evaluation.results import Report
from training.model import ResidentBase


@dataclass(frozen=True)
class SigningGate:
    """Thresholds, the digest of their file as it stands in a verdict, and who signs."""

    thresholds: Thresholds
    digest: str
    key: Ed25519PrivateKey


def open_gate(path: Path, key: Path | None = None) -> SigningGate:
    """The gate of a file of thresholds; `key` is a PEM file, by default the user's own.

    Raises ConfigError, and AdapterError for what is no key.
    """
    thresholds = load_thresholds(path)
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return SigningGate(thresholds, digest, signing_key(key or KEY_FILE))


def evaluate_gated(
    base: ResidentBase, wanted: Evaluation, gate: SigningGate, *, progress: bool = False
) -> Report:
    """Evaluate the adapters in the form in which they would be served, and judge them.

    Each one under test has its signed verdict in the report and in its manifest. Raises what
    `evaluate` raises, and InvalidAdapter for one that no registry would take.
    """
    with ExitStack() as held:
        served = [
            replace(
                one,
                folder=held.enter_context(served_form(one.folder, base.info)),
                served_form=True,
            )
            for one in wanted.candidates
        ]
        found = evaluate(base, replace(wanted, candidates=served), progress=progress)
        for one in served:
            if one.name not in wanted.against:
                lines = judge(gate.thresholds, found.items, one.name)
                verdict = write_verdict(one.given, one.folder, base.info, lines, gate)
                found.model(one.name).verdict = verdict
    return found


@contextmanager
def served_form(adapter: Path, base: BaseModelInfo) -> Iterator[Path]:
    """The adapter as it would be served, in a folder of the same name that is gone afterwards.

    Raises InvalidAdapter for one that no registry would take.
    """
    validate(adapter, base, Limits())
    with tempfile.TemporaryDirectory(prefix="bapo-gate-") as work:
        served = Path(work, adapter.resolve().name)
        normalise(adapter, served)
        yield served


def write_verdict(
    adapter: Path,
    served: Path,
    base: BaseModelInfo,
    lines: Sequence[VerdictLine],
    gate: SigningGate,
) -> Verdict:
    """Sign what was said of `served` and write it into the adapter's manifest; the verdict."""
    found = validate(adapter, base, Limits())
    name = adapter.resolve().name
    manifest = read_manifest(adapter) or derive_manifest(adapter, base, found, name)
    verdict = Verdict(
        digest=artifact_digest(served),
        base_fingerprint=base.fingerprint,
        gate=gate.digest,
        passed=all(line.passed for line in lines),
        lines=list(lines),
    )
    signed = sign(verdict, gate.key)
    write_manifest(adapter, manifest.model_copy(update={"schema_version": 3, "verdict": signed}))
    return signed
