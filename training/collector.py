"""Python's garbage collector around what is imported and loaded once and stays.

Owns when it is off and what it no longer looks at. Refuses to free anything: modules and a base
in memory live as long as their process, so every look through them is for nothing. Imports
nothing large itself; it is there before torch is.
"""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Inside, the collector is off; afterwards it passes over all that is there by then.

    torch, transformers and PEFT make a million objects and drop hardly any: walking through them
    again and again as they grew was measured to be three tenths of their import. At exit it all
    comes back: nanobind's libraries (triton) would complain on stderr of what nobody freed.
    """
    atexit.register(gc.unfreeze)
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


@contextmanager
def settled() -> Iterator[None]:
    """Inside, the collector does not look through what was loaded before, for every user anew."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
