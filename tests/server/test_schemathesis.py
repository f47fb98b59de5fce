"""Everything that the OpenAPI document says, and what it does not, asked of the running server.

schemathesis reads the document and makes requests of it, with values that fit and values that do
not, as an administrator and as a user: whatever is asked, no answer is the server's own failure,
and all are as the document says. Its command is run: its plugin does not go with pytest 9.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from served import Served, chat

SHARED = Path(__file__).resolve().parents[1] / "shared"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
)
"""Not the answers' own shapes: those of streams, it takes for something else than OpenAPI does."""


@pytest.mark.parametrize("who", ["admin", "user"])
def test_no_request_is_a_failure_of_the_server(served: Served, tmp_path: Path, who: str) -> None:
    key = served.server.admin_key if who == "admin" else served.keys["pirate"]
    report = tmp_path / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run"),
            f"{served.server.url}/openapi.json",
            *("--header", f"Authorization: Bearer {key}"),
            *("--phases", "fuzzing", "--mode", "all", "--max-examples", "8"),
            *("--generation-deterministic", "--seed", "1", "--no-shrink", "--continue-on-failure"),
            *("--checks", ",".join(CHECKS), "--suppress-health-check", "all", "--warnings", "off"),
            *("--request-timeout", "60", "--report", "json", "--report-json-path", str(report)),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SHARED), "SCHEMATHESIS_HOOKS": "schemathesis_hooks"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    document = served.server.call("GET", "/openapi.json")
    operations = sum(len(found) for found in document["paths"].values())
    told = json.loads(report.read_text())
    assert told["operations"]["tested"] == operations
    assert told["test_cases"]["generated"] >= 6 * operations
    # And it goes on as before.
    assert chat(served, served.keys["pirate"]).headers["X-Adapter-Id"] == "pirate@1"
