"""Every setting says what it does, and the documentation lists them all."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from adapters.limits import Limits
from server.settings import Settings, load_settings

DOCS = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_every_setting_is_described_and_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        assert field.description
        assert f"| `{name}` | `BAPO_{name.upper()}` | {field.description} |" in text


def test_flags_beat_the_file_and_the_file_beats_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAPO_PORT", "1")
    monkeypatch.setenv("BAPO_HOST", "from-env")
    monkeypatch.setenv("BAPO_MAX_LORAS", "3")
    file = tmp_path / "server.yaml"
    file.write_text("port: 2\nhost: from-file\n")
    settings = load_settings(file, port=3, host=None)
    assert (settings.port, settings.host, settings.max_loras) == (3, "from-file", 3)


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container's file of variables leaves them: no empty admin key, no port of no number."""
    monkeypatch.setenv("BAPO_ADMIN_KEY", "")
    monkeypatch.setenv("BAPO_PORT", "")
    settings = load_settings(None)
    assert (settings.admin_key, settings.port) == (None, 8000)


def test_unknown_names_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("prot: 2\n")
    with pytest.raises(ValidationError, match="prot"):
        load_settings(file)


@pytest.mark.parametrize("name", ["max-loras", "max_cpu_loras", "enable-lora", "model"])
def test_what_is_the_servers_own_is_not_given_behind_its_back(name: str) -> None:
    with pytest.raises(ValidationError, match="the server's own setting"):
        Settings(vllm={name: 4})
    assert Settings(vllm={"gpu-memory-utilization": 0.8}).vllm == {"gpu_memory_utilization": 0.8}


@pytest.mark.parametrize("name", ["api-key", "port", "ssl_keyfile", "middleware"])
def test_options_of_the_web_server_that_does_not_run(name: str) -> None:
    with pytest.raises(ValidationError, match="which is not used"):
        Settings(vllm={name: "x"})


def test_vllm_options_of_flags_join_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("vllm:\n  max-num-seqs: 4\n  seed: 1\n")
    settings = load_settings(file, vllm={"max_num_seqs": "8"})
    assert settings.vllm == {"max_num_seqs": "8", "seed": 1}


def test_what_bounds_an_upload() -> None:
    found = Settings(max_lora_rank=32, max_upload_mebibytes=3, max_adapter_change=0.5).upload_limits
    assert (found.max_rank, found.max_bytes, found.max_delta_ratio) == (32, 3 * 2**20, 0.5)
    assert Settings().upload_limits.max_delta_ratio == Limits().max_delta_ratio
