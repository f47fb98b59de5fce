"""A disk of a size that a test chooses, really full when it is full.

A tmpfs, mounted in a user and mount namespace of the process that uses it: no privileges are
needed, nobody else sees it, and it goes with the process. Its pages are of 4 KiB.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = 4096
_MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'
_UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh")


@cache
def why_not(folder: Path) -> str:
    """Why this machine lets nobody mount one at `folder`, empty where it does."""
    if shutil.which("unshare") is None:
        return "there is no `unshare`"
    tried = subprocess.run(
        [*_UNSHARE, str(PAGE), str(folder), "true"], capture_output=True, text=True, check=False
    )
    return tried.stderr.strip()


def run_on_small_disk(script: str, disk: Path, size: int, *arguments: str) -> str:
    """What the Python `script` prints, run with a disk of `size` bytes mounted at `disk`."""
    done = subprocess.run(
        [*_UNSHARE, str(size), str(disk), sys.executable, "-c", script, str(disk), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'shared'}", "PATH": "/usr/bin:/bin"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
