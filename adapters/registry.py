"""The registry: which adapters exist, which version of each is active, and who may use it.

Owns nothing but the whole: one database and one store, and the parts that work on them.

    publishing.py   folder → version            collection.py   bytes nobody names → gone
    pointers.py     activate, rollback, retire  catalogue.py    every question
    access.py       grants, assignments         accounts.py, groups.py, quotas.py, allowances.py
    experiments.py  whose arms decide instead of an assignment
    feedback.py     what users were answered and said of it

A version is immutable and its engine id is never given twice; activating, rolling back and
assigning move pointers. Every change is one transaction, with its line in the audit log.
"""

from pathlib import Path

from sqlalchemy import URL, Engine

from adapters.access import Access
from adapters.accounts import Accounts
from adapters.allowances import Allowances
from adapters.catalogue import Catalogue
from adapters.db import connect
from adapters.experiments import Experiments
from adapters.feedback import Feedback
from adapters.gate import Gate
from adapters.groups import Groups
from adapters.migrate import upgrade
from adapters.pointers import Pointers
from adapters.publishing import Publishing
from adapters.quotas import Quotas
from adapters.store import DEFAULT_CACHE_BYTES, Store, open_store
from adapters.versions import AdapterVersion

__all__ = ["AdapterVersion", "Registry", "open_registry"]

DATABASE_FILE = "registry.sqlite3"


class Registry(Publishing, Pointers, Access, Catalogue):
    """The registry in one database and one store; every method is safe to call from any thread."""

    def __init__(self, engine: Engine, store: Store, gate: Gate | None = None) -> None:
        super().__init__(engine, store, gate)
        self.accounts = Accounts(engine)
        self.groups = Groups(engine)
        self.quotas = Quotas(engine)
        self.allowances = Allowances(engine)
        self.experiments = Experiments(engine, gate)
        self.feedback = Feedback(engine)

    def close(self) -> None:
        self.engine.dispose()


def open_registry(
    data_dir: Path,
    database_url: str | None = None,
    store_url: str | None = None,
    *,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    gate: Gate | None = None,
) -> Registry:
    """The registry in `data_dir`, or in the database and object store of these URLs.

    Its database is brought up to date first. With a `gate`, only what passed may be activated or
    be an experiment's arm.
    Raises StoreError, OSError.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    engine = connect(database_url or URL.create("sqlite", database=str(data_dir / DATABASE_FILE)))
    try:
        upgrade(engine, lock=data_dir / "upgrade.lock")
        return Registry(engine, open_store(data_dir, store_url, cache_bytes=cache_bytes), gate)
    except BaseException:
        engine.dispose()
        raise
