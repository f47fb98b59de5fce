"""The variables under which vLLM runs: the operator's stay, except where answers would be wrong."""

from __future__ import annotations

import os

import pytest

from server.engine import warm
from server.engine.environment import CORRECTION, prepare


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", CORRECTION),
        ("lora_filesystem_resolver", f"lora_filesystem_resolver,{CORRECTION}"),
        (CORRECTION, CORRECTION),
    ],
)
def test_a_plugin_filter_cannot_leave_the_correction_out(
    monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", before)
    prepare()
    assert os.environ["VLLM_PLUGINS"] == after


def test_runtime_updating_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    prepare()
    assert os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "0"
    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert "VLLM_PLUGINS" not in os.environ


def test_a_missing_system_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert warm.missing_library() is None
    monkeypatch.setattr(warm, "NUMA", "libnuma-that-is-not-there.so.1")
    assert warm.missing_library() == "libnuma-that-is-not-there.so.1"
