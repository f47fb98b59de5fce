"""kill -9 in a withdrawal of consent: it is done, with every text gone, or it is not begun."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

WITHDRAWAL = """
import sys
from datetime import timedelta
from pathlib import Path

from sqlalchemy import select
from adapters.db import AnswerRow, PreferenceRow, RatingRow, UserRow, now, reading
from adapters.feedback import Answer, AnswerRef
from adapters.registry import open_registry
from killing import at_every_step

data, url = Path(sys.argv[1]), sys.argv[2] or None
asked, until = [{"role": "user", "content": "Norway?"}], now() + timedelta(days=1)

def say():
    registry = open_registry(data, url)
    if registry.accounts.list_users():
        registry.accounts.delete_user("ann")
    registry.accounts.create_user("ann")
    registry.feedback.set_consent("ann", True)
    registry.feedback.keep(
        [
            Answer("ann", name, 0, "base", None, arm and "tone", arm, asked, "Oslo", now(), until)
            for name, arm in (("a", None), ("b", "warm"))
        ]
    )
    for name in ("a", "b"):
        registry.feedback.rate("ann", AnswerRef(name), False, "It is Oslo")
    registry.feedback.prefer_text("ann", "Norway?", "Oslo", "Bergen")
    registry.close()

def withdraw(step):
    registry = open_registry(data, url)
    registry.feedback.set_consent("ann", False)
    registry.close()

def check(step):
    registry = open_registry(data, url)
    with reading(registry.engine) as session:
        agreed = session.get_one(UserRow, "ann").feedback
        tables = (AnswerRow, RatingRow, PreferenceRow)
        rows = [row for table in tables for row in session.scalars(select(table))]
        texts = [getattr(row, "text", None) or getattr(row, "chosen", None) for row in rows]
    assert texts.count("Oslo") == (5 if agreed else 0), (agreed, texts)
    assert len(rows) == (5 if agreed else 2), rows
    registry.close()
    say()

say()
print(at_every_step(withdraw, check, {"feedback.py"}))
"""


def test_a_withdrawal_killed_at_every_step(tmp_path: Path, database_url: str | None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHDRAWAL, str(tmp_path / "data"), database_url or ""],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'shared'}", "PATH": "/usr/bin:/bin"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) > 10  # steps
