"""kill -9 at every step: what was acknowledged is there, and nothing half-done is visible."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from adapters.base import BaseModelInfo

ROOT = Path(__file__).resolve().parents[2]

# Publishes and activates one adapter after another, each killed one step later than the last. A
# version that was acknowledged is noted in a file, which is what a caller would know.
PUBLISHER = """
import json, sys
from pathlib import Path
from adapters.base import BaseModelInfo
from adapters.errors import AdapterNotFound
from adapters.registry import open_registry
from killing import at_every_step

data, url, base, *folders = sys.argv[1:]
data, base = Path(data), BaseModelInfo.model_validate_json(base)
known, last = data / "known", [0]
data.mkdir()

def publish(step):
    registry = open_registry(data, url or None)
    folder = Path(folders[step % len(folders)])
    made = registry.publish(
        "shared", folder, base=base, activate=True, idempotency_key=str(step)
    )
    with known.open("a") as file:
        file.write(json.dumps([made.version, made.engine_id, made.digest]) + "\\n")
    registry.close()

def check(step):
    registry = open_registry(data, url or None)
    try:
        described = registry.describe("shared")
    except AdapterNotFound:
        described = {"versions": [], "active_version": None}
    there = {row["version"]: row["digest"] for row in described["versions"]}
    assert sorted(there) == list(range(1, len(there) + 1)), there
    assert described["active_version"] == (max(there) if there else None)
    for digest in set(there.values()):
        registry.store.verify(digest)
    lines = known.read_text().splitlines() if known.exists() else []
    acknowledged = [json.loads(line) for line in lines]
    for version, _, digest in acknowledged:
        assert there[version] == digest
    assert len({engine_id for _, engine_id, _ in acknowledged}) == len(acknowledged)
    # The caller who heard nothing asks again with the same key, and it is done once.
    folder = Path(folders[step % len(folders)])
    again = registry.publish("shared", folder, base=base, activate=True, idempotency_key=str(step))
    assert again.version - last[0] == 1, (again.version, last)
    last[0] = again.version
    registry.close()

# What the store does by itself is killed in test_blobs.py and test_store_faults.py.
files = {"publishing.py", "store.py", "pointers.py", "blobs.py"}
print(at_every_step(publish, check, files))
"""


def test_a_publish_killed_at_every_step(
    craft: Callable[..., Path],
    base: BaseModelInfo,
    tmp_path: Path,
    database_url: str | None,
) -> None:
    folders = [str(craft(seed=seed)) for seed in range(7)]
    arguments = [str(tmp_path / "data"), database_url or "", base.model_dump_json()]
    done = subprocess.run(
        [sys.executable, "-c", PUBLISHER, *arguments, *folders],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'shared'}", "PATH": "/usr/bin:/bin"},
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) > 60  # steps
