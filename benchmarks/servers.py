"""The two servers that benchmarks compare, this one and vLLM's own, with the same engine settings.

Owns starting and stopping them, how each is given an adapter, and what their processes use.
vLLM's own is the strongest stock way: adapters can be loaded while it runs, a folder of them is
looked through by its filesystem resolver, and its worker lives in the engine's process as ours
does. Both listen on loopback.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from server.engine.environment import CORRECTION

KEY = "a-benchmark"
ADMIN = {"Authorization": f"Bearer {KEY}"}
OURS, VLLMS = "ours", "vLLM's"
LIMIT_SECONDS = 240


@dataclass(frozen=True)
class Engine:
    """Engine settings that both sides have."""

    base: Path
    slots: int = 8
    rank: int = 16
    kv_mebibytes: int = 256
    host_adapters: int = 64
    """What vLLM's keeps in host memory; ours counts bytes."""
    our_kernels: bool = False
    """Whether vLLM's own server, on a CPU, has our LoRA products, too."""
    device: str = "cpu"


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    url: str
    pid: int
    folder: Path
    """Where it keeps adapters, or looks for them."""

    def publish(self, adapter: str, files: Path) -> None:
        """From an adapter's files to its first request: what a user of either server has to do."""
        self.put(adapter, files)
        self.load(adapter)

    def put(self, adapter: str, files: Path) -> None:
        """Have the server keep an adapter, or put it where the server looks; nothing is loaded."""
        if self.name != OURS:
            self.place(adapter, files)
            return
        config, weights = files / "adapter_config.json", files / "adapter_model.safetensors"
        with config.open("rb") as one, weights.open("rb") as other:
            self.call(
                "POST",
                f"/admin/adapters/{adapter}/versions",
                files={"adapter_config": one, "adapter_model": other},
                data={"activate": "true"},
            )

    def load(self, adapter: str) -> None:
        """What has to be said before the first request; ours loads at that request."""
        if self.name != OURS:
            told = {"lora_name": adapter, "lora_path": str(self.folder / adapter)}
            self.call("POST", "/v1/load_lora_adapter", json=told)

    def place(self, adapter: str, files: Path) -> None:
        """Put files where vLLM's server looks for them."""
        shutil.copytree(files, self.folder / adapter)

    def user_headers(self, user: str, adapter: str) -> dict[str, str]:
        """Headers with which this user asks for this adapter; vLLM's server has no users."""
        if self.name != OURS:
            return {}
        self.call("POST", "/admin/users", json={"id": user})
        self.call("PUT", f"/admin/users/{user}/assignment", json={"adapter": adapter})
        key = self.call("POST", f"/admin/users/{user}/keys", json={}).json()["key"]
        return {"Authorization": f"Bearer {key}"}

    def call(self, method: str, path: str, **sent: Any) -> httpx.Response:
        answer = httpx.request(method, self.url + path, headers=ADMIN, timeout=120, **sent)
        if answer.status_code >= 300:
            raise SystemExit(f"{path} answered {answer.status_code}: {answer.text[:500]}")
        return answer

    def memory_bytes(self) -> int:
        """Of its processes together, what none of them shares with another (USS)."""
        return sum(map(private_bytes, [self.pid, *descendants(self.pid)]))

    def front_end_seconds(self) -> float:
        """Processor time of its first process, the front end; the engine's is another."""
        return processor_seconds(self.pid)

    def all_seconds(self) -> float:
        """Processor time of all its processes."""
        return sum(map(processor_seconds, [self.pid, *descendants(self.pid)]))


def processor_seconds(pid: int) -> float:
    """Linux' clock of another process, all its threads (clock_getcpuclockid(3)), to the ns."""
    return time.clock_gettime((~pid << 3) | 2)


def private_bytes(pid: int) -> int:
    """What this process shares with no other (USS); 0 where it is gone."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return 0


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def _ours(engine: Engine, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    command = [
        *(sys.executable, "-m", "bapo", "serve", str(engine.base), "--port", str(port)),
        *("--max-loras", str(engine.slots), "--max-lora-rank", str(engine.rank)),
    ]
    return command, {
        "BAPO_ADMIN_KEY": KEY,
        "BAPO_DATA_DIR": str(folder),
        "BAPO_KV_CACHE_MEBIBYTES": str(engine.kv_mebibytes),
    }


def _vllms(engine: Engine, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"),
        *("--model", str(engine.base), "--served-model-name", engine.base.name),
        *("--host", "127.0.0.1", "--port", str(port), "--enable-lora"),
        *("--max-loras", str(engine.slots), "--max-lora-rank", str(engine.rank)),
        *("--max-cpu-loras", str(engine.host_adapters)),
    ]
    if engine.device == "cpu":
        command += ["--distributed-executor-backend", "uni"]
        command += ["--kv-cache-memory-bytes", str(engine.kv_mebibytes * 2**20)]
    plugins = ["lora_filesystem_resolver", *([CORRECTION] if engine.our_kernels else [])]
    return command, {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_LORA_RESOLVER_CACHE_DIR": str(folder),
        "VLLM_PLUGINS": ",".join(plugins),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }


SIDES = {OURS: _ours, VLLMS: _vllms}


@contextlib.contextmanager
def running(
    name: str, engine: Engine, port: int, scratch: Path, more: Mapping[str, str] = {}
) -> Iterator[Server]:
    """The server called `name`, once it answers; `more` is added to its environment."""
    folder = scratch / ("ours" if name == OURS else "vllms")
    folder.mkdir(exist_ok=True)
    command, environment = SIDES[name](engine, port, folder)
    log = scratch / f"{folder.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **environment, **more},
            start_new_session=True,
        )
    try:
        server = Server(name, f"http://127.0.0.1:{port}", process.pid, folder)
        began = time.monotonic()
        while not _answers(server, engine.base.name):
            if process.poll() is not None or time.monotonic() - began > LIMIT_SECONDS:
                raise SystemExit(f"{name} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield server
    except Exception:
        print(f"{name} said:\n{log.read_text()[-2000:]}", file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def both(
    engine: Engine, scratch: Path, ours: Mapping[str, str] = {}, port: int = 8921
) -> Iterator[dict[str, Server]]:
    """Ours, with `ours` in its environment, and vLLM's own, side by side."""
    with contextlib.ExitStack() as started:
        yield {
            side: started.enter_context(
                running(side, engine, port + number, scratch, ours if side == OURS else {})
            )
            for number, side in enumerate(SIDES)
        }


def _answers(server: Server, model: str) -> bool:
    body = {"model": model, "prompt": "Good morning", "max_tokens": 1}
    with contextlib.suppress(httpx.TransportError):
        answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=ADMIN, timeout=60)
        return answer.status_code == httpx.codes.OK
    return False


def interleaved(number: int, servers: Mapping[str, Server]) -> list[Server]:
    """Both servers; who is first changes from round to round."""
    order = list(servers.values())
    return order if number % 2 == 0 else order[::-1]
