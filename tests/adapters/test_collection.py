"""What nobody names is removed, and nothing that anybody names, whatever happens at once."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from adapters.base import BaseModelInfo
from adapters.collection import collect
from adapters.errors import CorruptArtifact, StoreError
from adapters.registry import AdapterVersion, Registry, open_registry
from adapters.store import StoredBlob

Child = Callable[..., subprocess.Popen[str]]
Publish = Callable[..., AdapterVersion]
ANY_AGE = timedelta(0)


def test_what_only_retired_adapters_name_is_removed(registry: Registry, publish: Publish) -> None:
    gone, shared, kept = publish("old", seed=1), publish("old", seed=2), publish("new", seed=3)
    publish("new", seed=2)
    registry.retire("old")
    would = collect(registry, older_than=ANY_AGE, dry_run=True)
    assert [blob.digest for blob in would.removed] == [gone.digest]
    assert registry.store.holds(gone.digest)
    assert registry.audit(gone.digest) == []
    done = collect(registry, older_than=ANY_AGE, actor="root")
    assert done == would
    assert [(e.actor, e.action) for e in registry.audit(gone.digest)] == [("root", "store.remove")]
    assert done.as_json() == {"removed": 1, "bytes": gone.bytes, "in_use": 0}
    assert {blob.digest for blob in registry.store.stored()} == {shared.digest, kept.digest}
    assert set(registry.digests()) == {shared.digest, kept.digest}
    with pytest.raises(CorruptArtifact):
        registry.store.verify(gone.digest)
    assert collect(registry, older_than=ANY_AGE).removed == ()


def test_the_young_are_spared(registry: Registry, publish: Publish) -> None:
    publish("old")
    registry.retire("old")
    assert collect(registry, older_than=timedelta(hours=1)).removed == ()
    assert len(collect(registry, older_than=ANY_AGE).removed) == 1


def test_what_a_refused_publish_left_is_removed(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database fails after the bytes were kept: they wait for the collection."""
    with monkeypatch.context() as patch:
        patch.setattr(registry.store, "holds", failing)
        with pytest.raises(StoreError, match="away"):
            publish()
    assert registry.list_adapters() == []
    assert len(collect(registry, older_than=ANY_AGE).removed) == 1


def failing(digest: str) -> bool:
    raise StoreError("The store is away: try again.")


def test_what_is_leased_stays(registry: Registry, publish: Publish) -> None:
    made = publish("old")
    registry.retire("old")
    with registry.store.lease(made.digest) as folder:
        done = collect(registry, older_than=ANY_AGE)
        assert ([b.digest for b in done.in_use], done.removed) == ([made.digest], ())
        assert (folder / "adapter_model.safetensors").is_file()
    assert len(collect(registry, older_than=ANY_AGE).removed) == 1


def test_bytes_taken_in_between_are_put_again(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection between a publish's put and its transaction finds content that nobody names."""
    put = registry.store.put
    taken: list[StoredBlob] = []

    def put_and_collect(folder: Path) -> str:
        digest = put(folder)
        if not taken:
            taken.extend(collect(registry, older_than=ANY_AGE).removed)
        return digest

    monkeypatch.setattr(registry.store, "put", put_and_collect)
    made = publish()
    assert [blob.digest for blob in taken] == [made.digest]
    registry.store.verify(made.digest)


def test_published_again_in_between_is_kept(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection has listed what nobody names, and somebody names it before it is removed."""
    publish("old", seed=1)
    registry.retire("old")
    stored = registry.store.stored

    def stored_and_published() -> Iterator[StoredBlob]:
        yield from stored()
        publish("new", seed=1)

    monkeypatch.setattr(registry.store, "stored", stored_and_published)
    assert collect(registry, older_than=ANY_AGE).removed == ()
    registry.store.verify(registry.resolve("new", 1, is_admin=True).digest)


# Each does its part until it is told to end by a closed stdin, and says how often it did.
ACTOR = """
import itertools, random, select, sys
from datetime import timedelta
from pathlib import Path
from adapters.base import BaseModelInfo
from adapters.collection import collect
from adapters.errors import AdapterNotFound, CorruptArtifact
from adapters.registry import open_registry

data, url, base, part, name, *folders = sys.argv[1:]
base = BaseModelInfo.model_validate_json(base)
registry = open_registry(Path(data), url or None)
draw = random.Random(name)
done, numbers = 0, itertools.count()

def publish():
    made = registry.publish(f"{name}-{next(numbers)}", Path(draw.choice(folders)), base=base)
    try:
        registry.store.verify(made.digest)
    except CorruptArtifact:
        registry.resolve(made.adapter_id, 1, is_admin=True)  # fine, if it is retired by now
        raise
    return 1

def retire():
    there = [adapter["adapter"] for adapter in registry.list_adapters()]
    if len(there) < 3:
        return 0
    registry.retire(draw.choice(there))
    return 1

def remove():
    return len(collect(registry, older_than=timedelta(0)).removed)

print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        done += {"publish": publish, "retire": retire, "collect": remove}[part]()
    except AdapterNotFound:  # somebody else has retired it
        pass
registry.close()
print(done, flush=True)
"""

SECONDS = 3


def test_publishers_retirers_and_collectors_at_once(
    craft: Callable[..., Path],
    base: BaseModelInfo,
    tmp_path: Path,
    database_url: str | None,
    child: Child,
) -> None:
    """Two of each, over contents so few that the same is published, retired and removed in turn."""
    data = tmp_path / "data"
    open_registry(data, database_url).close()
    folders = [str(craft(seed=seed)) for seed in range(4)]
    parts = ["publish", "publish", "retire", "retire", "collect", "collect"]
    place = (str(data), database_url or "", base.model_dump_json())
    actors = [
        child(ACTOR, *place, part, f"{part}-{number}", *folders)
        for number, part in enumerate(parts)
    ]
    for actor in actors:
        assert actor.stdout is not None
        assert actor.stdout.readline() == "ready\n"
    time.sleep(SECONDS)
    counts = [json.loads(actor.communicate(timeout=60)[0]) for actor in actors]
    assert [actor.returncode for actor in actors] == [0] * 6
    done = {part: counts[2 * i] + counts[2 * i + 1] for i, part in enumerate(parts[::2])}
    assert min(done.values()) > 0, done

    registry = open_registry(data, database_url)
    living = set(registry.digests())
    assert living
    for digest in living:
        registry.store.verify(digest)
    collect(registry, older_than=ANY_AGE)
    assert {blob.digest for blob in registry.store.stored()} == living
    registry.close()
