"""What schemathesis's command has to be told before it reads our document (SCHEMATHESIS_HOOKS)."""

from __future__ import annotations

import schemathesis
from hypothesis import strategies

# No archive comes of this; what a hostile one does is `tests/adapters/test_carriage.py`'s.
schemathesis.openapi.media_type("application/x-tar", strategies.binary(max_size=2048))
