"""A whole registry moves: from one kind of database to the other, numbers, keys and bytes."""

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from adapters.accounts import Role
from adapters.allowances import Allowance
from adapters.arms import Arm
from adapters.base import BaseModelInfo
from adapters.db import Base, now, reading
from adapters.errors import AdapterError, Conflict, StoreError, StoreFull
from adapters.feedback import Answer, AnswerRef
from adapters.registry import Registry, open_registry
from adapters.tables import LONGEST_ROW
from adapters.transfer import export_registry, import_registry
from adapters.view import RegistryView

Craft = Callable[..., Path]


def kept_answer() -> Answer:
    asked = [{"role": "user", "content": "Norway?"}]
    until = now() + timedelta(days=1)
    return Answer("ann", "c-1", 0, "concise", 1, "tone", "plain", asked, "Bergen", now(), until)


@pytest.fixture
def filled(registry: Registry, craft: Craft, base: BaseModelInfo) -> tuple[Registry, str]:
    """Something in every table, and a user's key."""
    accounts = registry.accounts
    for user in ("ann", "ben"):
        accounts.create_user(user)
    registry.groups.create("staff")
    registry.groups.add("staff", ["ben"])
    registry.quotas.set("*", max_versions=9)
    for seed in (1, 2, 3):
        registry.publish(
            "concise",
            craft(seed=seed),
            base=base,
            owner="ann",
            activate=True,
            idempotency_key=f"{seed}",
        )
    registry.rollback("concise")
    registry.publish("gone", craft(seed=4, fingerprint=base.fingerprint), base=base)
    registry.retire("gone")
    registry.set_grants("concise", everyone=False, users=["ben"], groups=["staff"])
    registry.assign("ben", "concise")
    registry.allowances.set("ben", Allowance(streams=3))
    registry.experiments.create("tone", [Arm.of("plain", "base"), Arm.of("short", "concise")])
    registry.experiments.enrol("tone", users=["ben"])
    registry.experiments.start("tone")
    registry.feedback.set_consent("ann", True)
    registry.feedback.keep([kept_answer()])
    registry.feedback.rate("ann", AnswerRef("c-1"), False, "Oslo.")
    registry.feedback.prefer_text("ann", "Norway?", "Oslo", "Bergen")
    return registry, accounts.create_key(Role.USER, "ann")[1]


@pytest.fixture
def empty(
    tmp_path: Path, database_url: str | None, request: pytest.FixtureRequest
) -> Iterator[Registry]:
    """An empty registry on the other kind of database."""
    other = request.getfixturevalue("postgres_url") if database_url is None else None
    opened = open_registry(tmp_path / "other", other)
    yield opened
    opened.close()


def rows(registry: Registry) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    with reading(registry.engine) as session:
        for table in Base.metadata.sorted_tables:
            all_rows = session.execute(select(table)).all()
            found[table.name] = sorted(map(str, all_rows))
    return found


def test_everything_arrives(
    filled: tuple[Registry, str],
    empty: Registry,
    craft: Craft,
    base: BaseModelInfo,
    tmp_path: Path,
) -> None:
    registry, key = filled
    told = export_registry(registry, tmp_path / "moved")
    counted = {"token_usage"}  # which a server fills
    assert all(rows for table, rows in told.rows.items() if table not in counted), told.rows
    assert (told.rows["versions"], told.blobs) == (4, 3)  # nobody can ask for what is retired
    assert import_registry(empty, tmp_path / "moved", actor="ann") == told
    line = empty.audit()[0]
    assert (line.actor, line.action, line.details) == ("ann", "registry.import", told.rows)
    arrived = rows(empty)
    assert arrived["answers"] == []  # which have their time, of which a copy knows nothing
    arrived["answers"] = rows(registry)["answers"]
    arrived["audit"] = [row for row in arrived["audit"] if "registry.import" not in row]
    assert arrived == rows(registry)
    caller = empty.accounts.verify_key(key)
    assert caller is not None
    assert caller.user_id == "ann"
    assert empty.resolve("concise", user_id="ben").version == 2
    for digest in empty.digests():
        empty.store.verify(digest)
    # The numbers go on where they were.
    assert empty.rollback("concise").version == 1
    made = empty.publish("concise", craft(seed=9), base=base, owner="ann")
    assert (made.version, made.engine_id) == (4, 5)
    assert empty.publish("concise", craft(seed=3), base=base, idempotency_key="3").version == 3


def test_nothing_is_merged_or_replaced(
    filled: tuple[Registry, str], empty: Registry, tmp_path: Path
) -> None:
    registry, _ = filled
    export_registry(registry, tmp_path / "moved")
    with pytest.raises(Conflict, match="exists"):
        export_registry(registry, tmp_path / "moved")
    empty.accounts.create_user("eve")
    before = rows(empty)
    with pytest.raises(Conflict, match="not empty"):
        import_registry(empty, tmp_path / "moved")
    assert rows(empty) == before


def test_the_admin_key_of_a_first_start_stays(
    filled: tuple[Registry, str], empty: Registry, tmp_path: Path
) -> None:
    registry, _ = filled
    _, mine = empty.accounts.create_key(Role.ADMIN)
    view = RegistryView(empty)
    export_registry(registry, tmp_path / "moved")
    import_registry(empty, tmp_path / "moved")
    assert len(rows(empty)["audit"]) == len(rows(registry)["audit"]) + 2
    view.refresh()
    assert view.verify_key(mine) is not None
    assert view.resolve("concise", user_id="ben").version == 2
    with pytest.raises(Conflict, match="not empty"):
        import_registry(empty, tmp_path / "moved")


def cut_the_head(folder: Path) -> None:
    (folder / "export.json").unlink()


def lose_a_line(folder: Path) -> None:
    table = folder / "tables" / "versions.jsonl"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))


def spoil_a_line(folder: Path) -> None:
    (folder / "tables" / "users.jsonl").write_text('{"id": "ann"\n')


def line_of(folder: Path, table: str, **other: Any) -> None:
    """Change a table's first row, as no registry could have written it."""
    file = folder / "tables" / f"{table}.jsonl"
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps({**json.loads(first), **other}), *rest, ""]))


def name_an_adapter_badly(folder: Path) -> None:
    line_of(folder, "adapters", id="../up")


def make_up_a_role(folder: Path) -> None:
    line_of(folder, "api_keys", role="emperor")


def swap_a_type(folder: Path) -> None:
    line_of(folder, "versions", rank="4")


def overflow_a_number(folder: Path) -> None:
    line_of(folder, "versions", engine_id=2**40)


def leave_out_a_zone(folder: Path) -> None:
    line_of(folder, "users", created="2026-01-01T00:00:00")


def leave_out_what_must_be(folder: Path) -> None:
    line_of(folder, "users", created=None)


def lose_a_blob(folder: Path) -> None:
    shutil.rmtree(next((folder / "blobs").iterdir()))


def lose_half_a_blob(folder: Path) -> None:
    next((folder / "blobs").rglob("adapter_config.json")).unlink()


def write_a_line_without_end(folder: Path) -> None:
    table = folder / "tables" / "users.jsonl"
    table.write_bytes(b'{"id": "' + b"a" * (LONGEST_ROW + 10))


def break_a_rule(folder: Path) -> None:
    table = folder / "tables" / "group_members.jsonl"
    table.write_text(json.dumps({"group_id": "staff", "user_id": "nobody"}) + "\n")


def flip_a_bit(folder: Path) -> None:
    weights = next((folder / "blobs").rglob("adapter_model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def come_from_another_time(folder: Path) -> None:
    head = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**head, "schema": "0001"}))


@pytest.mark.parametrize(
    "spoil",
    [
        cut_the_head,
        lose_a_line,
        spoil_a_line,
        break_a_rule,
        flip_a_bit,
        come_from_another_time,
        name_an_adapter_badly,
        make_up_a_role,
        swap_a_type,
        overflow_a_number,
        leave_out_a_zone,
        leave_out_what_must_be,
        lose_a_blob,
        lose_half_a_blob,
        write_a_line_without_end,
    ],
)
def test_what_is_not_whole_is_refused_and_leaves_no_row(
    filled: tuple[Registry, str],
    empty: Registry,
    tmp_path: Path,
    spoil: Callable[[Path], None],
) -> None:
    export_registry(filled[0], tmp_path / "moved")
    spoil(tmp_path / "moved")
    with pytest.raises(StoreError, match=r"^[^\n]*\.$"):
        import_registry(empty, tmp_path / "moved")
    assert not any(rows(empty).values())


def test_a_full_disk_leaves_no_export(
    filled: tuple[Registry, str], tmp_path: Path, file_limit: Callable[[int], Any]
) -> None:
    with file_limit(200), pytest.raises(StoreFull):
        export_registry(filled[0], tmp_path / "moved")
    assert not [path for path in tmp_path.iterdir() if "moved" in path.name]


def test_a_damaged_blob_is_not_exported_in_silence(
    filled: tuple[Registry, str], tmp_path: Path
) -> None:
    registry, _ = filled
    weights = next((tmp_path / "data" / "store").rglob("adapter_model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="upload it again"):
        export_registry(registry, tmp_path / "moved")
    assert not (tmp_path / "moved").exists()
