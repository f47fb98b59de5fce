"""The collector is off while a verb imports, then on again, and is handed all back at exit."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from training.collector import importing, settled
from training.forking import PRELOAD


@pytest.fixture(autouse=True)
def nothing_stays_frozen() -> Iterator[None]:
    yield
    gc.enable()
    gc.unfreeze()


def test_it_is_off_inside_and_passes_over_what_came() -> None:
    gc.unfreeze()
    with importing():
        assert not gc.isenabled()
        kept: list[object] = [[]]
        assert any(one is kept for one in gc.get_objects())
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert not any(one is kept for one in gc.get_objects())


def test_an_import_that_fails_leaves_it_on() -> None:
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


def test_where_it_was_off_it_stays_off() -> None:
    gc.disable()
    with importing():
        pass
    assert not gc.isenabled()


def test_a_settled_base_is_given_back() -> None:
    with settled():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


def test_the_forkserver_gets_a_quiet_collector_and_ends_without_a_word() -> None:
    """A forkserver passes over a module that it cannot import, so it is imported here."""
    code = (
        f"import gc, sys, {', '.join(PRELOAD)}\n"
        "print('training.workers' in sys.modules, gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert told.stdout.split() == ["True", "True", "True"]
    assert told.stderr == ""
