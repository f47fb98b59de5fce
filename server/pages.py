"""Lists in pages: the query parameters, and the body of an answer.

A list is whole without `limit`. With it, one row more than asked for is read, which tells whether
there is another page; the name (or id) of the last row, given as `after`, begins that page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query

After = Annotated[str | None, Query(max_length=128, description="the last name of the page before")]
Limit = Annotated[int | None, Query(ge=1, le=1000, description="without it, everything")]


def plus_one(limit: int | None) -> int | None:
    """How many rows to ask for."""
    return None if limit is None else limit + 1


def page(rows: Sequence[Any], limit: int | None) -> dict[str, Any]:
    """What is answered when `plus_one(limit)` rows were asked for."""
    return {"data": list(rows[:limit]), "has_more": limit is not None and len(rows) > limit}
