"""What the forkserver imports for the workers, once, with the collector off.

Owns nothing but that. Frozen before they are forked, the imported objects stay shared between the
workers, and none of them looks through these again.
"""

from training.collector import importing

with importing():
    import training.workers  # noqa: F401
