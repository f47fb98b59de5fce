"""Whose verdicts count, and whether a version may be activated.

Owns Ed25519 signatures over verdicts and the rule. Refuses measuring. Whoever evaluates holds the
private key, a server only public ones: with everything a server knows nobody can make a verdict
(docs/decisions/0004-signed-verdicts.md).
"""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from adapters.errors import AdapterError, GateRefused
from adapters.verdict import Verdict

KEY_FILE = Path(platformdirs.user_config_dir("bapo-server"), "gate.pem")
"""Where the signing key of this user is, unless another is named."""


def sign(verdict: Verdict, key: Ed25519PrivateKey) -> Verdict:
    """The verdict with `key`'s public half and signature."""
    with_key = verdict.model_copy(update={"key": public_key(key), "signature": ""})
    return with_key.model_copy(update={"signature": key.sign(with_key.signed_bytes()).hex()})


def public_key(key: Ed25519PrivateKey) -> str:
    """The half that servers have, in hex."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def signing_key(path: Path = KEY_FILE) -> Ed25519PrivateKey:
    """The key in a PEM file; one that is not there is made, readable by its owner only.

    Raises AdapterError for a file that is no such key, OSError where it cannot be written.
    """
    if not path.exists():
        _make_key(path)
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise AdapterError(f"{path} is no unencrypted private key in PEM; name another.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise AdapterError(f"{path} is no Ed25519 key; name another.")
    return key


@dataclass(frozen=True)
class Gate:
    """The rule that only what passed may be activated; `keys` are the public keys that count."""

    keys: frozenset[str]

    def check(self, manifest: Mapping[str, Any] | None, digest: str, base: str) -> None:
        """Raise GateRefused unless a trusted verdict says that this very version passed."""
        if reason := self.refusal(manifest, digest, base):
            raise GateRefused(
                f"This server activates only what passed the gate, and {reason}. Run `bapo eval"
                " --gate` on it and publish it again; an admin can force an exception."
            )

    def refusal(self, manifest: Mapping[str, Any] | None, digest: str, base: str) -> str | None:
        """Why the version may not be activated, as a clause; None where it may."""
        said = (manifest or {}).get("verdict")
        if said is None:
            return "this version has no verdict"
        try:
            verdict = Verdict.model_validate(said)
        except ValidationError:
            return "its verdict cannot be read"
        if verdict.key not in self.keys:
            return "its verdict is not signed with a key that is trusted here"
        if not _is_signed(verdict):
            return "its verdict was changed after it was signed"
        if (verdict.digest, verdict.base_fingerprint) != (digest, base):
            return "its verdict is about another adapter or another base"
        if not verdict.passed:
            return f"it failed: {'; '.join(verdict.failed)}"
        return None


def gate_of(required: bool, keys: str | None) -> Gate | None:
    """The gate that `BAPO_REQUIRE_GATE` and `BAPO_GATE_KEYS` ask for.

    Raises ValueError, one sentence, where keys are missing or are none.
    """
    if not required:
        return None
    found = frozenset((keys or "").replace(",", " ").lower().split())
    if not found:
        raise ValueError("require_gate needs gate_keys: the public keys whose verdicts count")
    for key in found:
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        except ValueError:
            raise ValueError(f"gate_keys: {key[:80]!r} is no public key in hex") from None
    return Gate(found)


def gate_of_environment(environment: Mapping[str, str] | None = None) -> Gate | None:
    """The same for a verb on a registry that is here. Raises AdapterError."""
    names = os.environ if environment is None else environment
    wanted = names.get("BAPO_REQUIRE_GATE", "").strip().lower() not in ("", "0", "false", "no")
    try:
        return gate_of(wanted, names.get("BAPO_GATE_KEYS"))
    except ValueError as error:
        raise AdapterError(f"BAPO_REQUIRE_GATE is set, but {error}.") from None


def _is_signed(verdict: Verdict) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(verdict.key))
        key.verify(bytes.fromhex(verdict.signature), verdict.signed_bytes())
    except (InvalidSignature, ValueError):
        return False
    return True


def _make_key(path: Path) -> None:
    """A new key, whole or not at all; of two makers at once, one's is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        return
    finally:
        draft.unlink(missing_ok=True)
