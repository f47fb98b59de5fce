"""Verdicts: whose count, about which bytes, and what the registry does without one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adapters.arms import Arm, State
from adapters.artifact import (
    BaseReference,
    Manifest,
    artifact_digest,
    read_manifest,
    write_manifest,
)
from adapters.base import BaseModelInfo
from adapters.errors import AdapterError, GateRefused
from adapters.gate import Gate, gate_of, gate_of_environment, sign, signing_key
from adapters.normalise import normalise
from adapters.registry import Registry
from adapters.verdict import Verdict, VerdictLine

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = KEY.public_key().public_bytes_raw().hex()
GATE = Gate(frozenset({PUBLIC}))
SOME = "sha256:" + "0" * 64


@pytest.fixture
def adapter(craft: Callable[..., Path], base: BaseModelInfo) -> Path:
    folder = craft()
    reference = BaseReference(name="pocket", fingerprint=base.fingerprint)
    write_manifest(folder, Manifest(name="a", base=reference, method="bapo"))
    return folder


def verdict(digest: str, base: str, *, passed: bool = True) -> Verdict:
    line = VerdictLine(threshold="drift.kl <= 0.1", measured="0.3 of 40", passed=passed)
    return Verdict(digest=digest, base_fingerprint=base, gate=SOME, passed=passed, lines=[line])


def judged(
    folder: Path,
    work: Path,
    base: BaseModelInfo,
    *,
    passed: bool = True,
    changes: dict[str, Any] | None = None,
) -> Path:
    """A copy of the adapter whose manifest carries a signed verdict, with `changes` after it."""
    normalise(folder, work / "served")
    signed = sign(verdict(artifact_digest(work / "served"), base.fingerprint, passed=passed), KEY)
    shutil.copytree(folder, work / "judged")
    manifest = read_manifest(folder)
    assert manifest is not None
    said = signed.model_copy(update=changes or {})
    write_manifest(work / "judged", manifest.model_copy(update={"verdict": said}))
    return work / "judged"


def test_the_served_form_of_the_served_form_is_itself(adapter: Path, tmp_path: Path) -> None:
    normalise(adapter, tmp_path / "once")
    normalise(tmp_path / "once", tmp_path / "twice")
    assert artifact_digest(tmp_path / "once") == artifact_digest(tmp_path / "twice")


def test_what_passed_is_activated_and_the_verdict_survives_publishing(
    registry: Registry, adapter: Path, base: BaseModelInfo, tmp_path: Path
) -> None:
    registry.gate = GATE
    made = registry.publish("a", judged(adapter, tmp_path, base), base=base, activate=True)
    assert registry.describe("a")["active_version"] == made.version


@pytest.mark.parametrize(
    ("changes", "passed", "says"),
    [
        ({}, False, r"it failed: drift\.kl <= 0\.1 \(0\.3 of 40\)"),
        ({"passed": True}, False, "changed after it was signed"),
        ({"digest": SOME}, True, "changed after it was signed"),
        ({"signature": "0" * 128}, True, "changed after it was signed"),
        ({"key": "0" * 64}, True, "not signed with a key that is trusted"),
        ({"key": "", "signature": ""}, True, "not signed with a key that is trusted"),
    ],
)
def test_what_did_not_pass_is_not(
    registry: Registry,
    adapter: Path,
    base: BaseModelInfo,
    tmp_path: Path,
    changes: dict[str, Any],
    passed: bool,
    says: str,
) -> None:
    registry.gate = GATE
    folder = judged(adapter, tmp_path, base, passed=passed, changes=changes)
    with pytest.raises(GateRefused, match=says):
        registry.publish("a", folder, base=base, activate=True)
    assert registry.list_adapters() == []  # not half of it
    registry.publish("a", folder, base=base)
    with pytest.raises(GateRefused, match=says):
        registry.activate("a", 1)


def test_a_verdict_is_about_one_adapter_on_one_base() -> None:
    said = {"verdict": sign(verdict(SOME, SOME), KEY).model_dump(mode="json")}
    other = "sha256:" + "1" * 64
    assert GATE.refusal(said, SOME, SOME) is None
    for digest, base in ((other, SOME), (SOME, other)):
        assert "another adapter or another base" in str(GATE.refusal(said, digest, base))
    assert "no verdict" in str(GATE.refusal(None, SOME, SOME))
    assert "cannot be read" in str(GATE.refusal({"verdict": {"passed": "yes!"}}, SOME, SOME))


def test_an_exception_is_in_the_audit_log(
    registry: Registry, adapter: Path, base: BaseModelInfo
) -> None:
    registry.publish("a", adapter, base=base, activate=True)
    registry.publish("a", adapter, base=base)
    registry.gate = GATE
    with pytest.raises(GateRefused, match="no verdict"):
        registry.activate("a", 2, actor="root")
    registry.activate("a", 2, force=True, actor="root")
    entry = registry.audit("a", limit=1)[0]
    assert (entry.action, entry.actor) == ("adapter.activate", "root")
    assert entry.details["forced"] is True
    assert "no verdict" in entry.details["gate"]
    assert registry.rollback("a").version == 1  # the way back stays short


def test_an_arm_of_an_experiment_passes_the_gate_too(
    registry: Registry, adapter: Path, base: BaseModelInfo, tmp_path: Path
) -> None:
    """Only what an arm names by its number is asked; whatever is active was asked before."""
    registry.publish("good", judged(adapter, tmp_path, base), base=base)
    registry.publish("bad", adapter, base=base, activate=True)
    experiments, active = registry.experiments, Arm.of("active", "bad")
    experiments.create("a", [active, Arm.of("good", "good@1")])
    experiments.create("b", [active, Arm.of("bad", "bad@1", weight=0)])
    experiments.gate = GATE
    assert experiments.start("a", force=True).state is State.RUNNING
    assert "forced" not in registry.audit("a", limit=1)[0].details
    with pytest.raises(GateRefused, match=r"'bad' of 'b' serves 'bad@1'.* has no verdict"):
        experiments.start("b")
    assert experiments.get("b")[0].state is State.DRAFT
    assert experiments.start("b", force=True).state is State.RUNNING
    said = {"forced": True, "gate": {"bad": "this version has no verdict"}}
    assert registry.audit("b", limit=1)[0].details == said
    experiments.stop("b")
    with pytest.raises(GateRefused):
        experiments.start("b")  # an exception is made once
    assert experiments.conclude("b", "bad").winner == "bad"  # its users had it already


def test_force_without_need_is_no_exception(
    registry: Registry, adapter: Path, base: BaseModelInfo
) -> None:
    registry.publish("a", adapter, base=base, activate=True, force=True)
    assert "forced" not in registry.audit("a", limit=1)[0].details


def test_a_key_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "new" / "gate.pem"
    first = signing_key(path).private_bytes_raw()
    assert signing_key(path).private_bytes_raw() == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["gate.pem"]
    path.write_text("no key")
    with pytest.raises(AdapterError, match="no unencrypted private key"):
        signing_key(path)


def test_a_gate_needs_keys() -> None:
    assert gate_of(False, None) is None
    assert gate_of(True, f"{PUBLIC}, {PUBLIC.upper()}") == GATE
    for keys in (None, "", "abc", "zz" * 32):
        with pytest.raises(ValueError, match="gate_keys"):
            gate_of(True, keys)
    assert gate_of_environment({"BAPO_REQUIRE_GATE": "0"}) is None
    with pytest.raises(AdapterError, match="BAPO_REQUIRE_GATE"):
        gate_of_environment({"BAPO_REQUIRE_GATE": "1"})


def test_a_hostile_verdict_is_refused_as_a_manifest(tmp_path: Path) -> None:
    record = {"name": "a", "base": {"name": "b", "fingerprint": SOME}, "method": "bapo"}
    said = sign(verdict(SOME, SOME), KEY).model_dump(mode="json")
    for change in ({"lines": [said["lines"][0]] * 101}, {"key": "../x"}, {"surprise": 1}):
        (tmp_path / "manifest.json").write_text(json.dumps(record | {"verdict": said | change}))
        with pytest.raises(AdapterError, match="verdict"):
            read_manifest(tmp_path)
    kept = Manifest.model_validate(record | {"verdict": said}).verdict
    assert kept is not None
    assert kept.model_dump(mode="json") == said
