"""`bapo serve` refuses what it can before the engine starts: one sentence, exit 1."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def serve(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bapo", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
        env={**os.environ, "BAPO_DATA_DIR": str(cwd / "data"), **environment},
    )


def assert_one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


def test_a_missing_model_folder(tmp_path: Path) -> None:
    assert_one_sentence(serve("./no-such-model", "--port", "0", cwd=tmp_path), "no-such-model")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_one_sentence(serve("./empty", "--port", "0", cwd=tmp_path), "config.json")


def test_a_hub_name_that_cannot_be_had(tmp_path: Path) -> None:
    done = serve("nobody/nothing", "--port", "0", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert_one_sentence(done, "nobody/nothing", "Hub")


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_one_sentence(serve("--port", str(port), cwd=tmp_path), str(port), "--port")


def test_a_data_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    assert_one_sentence(serve("--port", "0", cwd=tmp_path), "data")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("BAPO_PORT", "eighty", "port"),
        ("BAPO_MAX_LORA_RANK", "7", "rank"),
        ("BAPO_DTYPE", "int8", "dtype"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, name: str, value: str, says: str) -> None:
    assert_one_sentence(serve(cwd=tmp_path, **{name: value}), says)


def test_a_config_file_is_stronger_than_the_environment(tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text("model: ./from-the-file\n")
    done = serve("--config", "server.yaml", "--port", "0", cwd=tmp_path, BAPO_MODEL="./from-env")
    assert_one_sentence(done, "from-the-file")


def test_an_unknown_setting_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text("modle: x\n")
    assert_one_sentence(serve("--config", "server.yaml", cwd=tmp_path), "modle")


def test_without_keys_only_on_loopback(tmp_path: Path) -> None:
    done = serve("--insecure-no-auth", "--host", "0.0.0.0", "--port", "0", cwd=tmp_path)
    assert_one_sentence(done, "--insecure-no-auth", "127.0.0.1")


def test_an_option_that_vllm_does_not_have(tmp_path: Path) -> None:
    done = serve("--port", "0", "--vllm.tensor-paralel-size", "2", cwd=tmp_path)
    assert done.returncode == 1
    assert "did you mean tensor-parallel-size?" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def first_lines(cwd: Path, count: int) -> list[str]:
    """The first lines that a starting server prints; it is stopped then."""
    environment = {**os.environ, "BAPO_DATA_DIR": str(cwd / "data")}
    environment.pop("BAPO_ADMIN_KEY", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "bapo", "serve", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=cwd,
    )
    with process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(count)]
        process.kill()
    return lines


def test_the_first_start_shows_an_admin_key_and_later_ones_do_not(tmp_path: Path) -> None:
    shown, starting = first_lines(tmp_path, 2)
    key = shown.rpartition(" ")[2].strip()
    assert key.startswith("bapo_")
    assert "starting pocket on http://127.0.0.1:" in starting
    assert "starting pocket" in first_lines(tmp_path, 1)[0]

    from adapters.accounts import Role
    from adapters.registry import open_registry

    registry = open_registry(tmp_path / "data")
    caller = registry.accounts.verify_key(key)
    registry.close()
    assert caller is not None
    assert caller.role is Role.ADMIN


def test_help_teaches_and_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['bapo', '--help']\n"
        "import bapo\n"
        "try: bapo.main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'vllm' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for verb in ("serve", "train", "eval", "adapters", "users", "keys"):
        assert verb in done.stdout
