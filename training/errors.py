"""What can go wrong in training, in words for the person who started it.

    TrainingError
    ├── ConfigError      a setting is unknown or out of range
    ├── DataError        a preference or question file is not usable; names file and line
    ├── ModelError       the base model cannot be loaded or cannot be trained this way
    ├── DivergedError    the loss is no longer a number
    ├── DriftedError     the adapter has gone further from the base than it may
    ├── CheckpointError  a checkpoint could not be written, for want of space mostly
    ├── OutOfMemory      the machine's memory is too small for these settings
    └── Stopped          the run was asked to stop; it left a checkpoint

Owns no behaviour and no HTTP. `str(error)` is always one sentence that says what to do.
"""


class TrainingError(Exception):
    """Anything in this room that the caller can mend."""


class ConfigError(TrainingError):
    """A setting is unknown or out of range."""


class DataError(TrainingError):
    """A data file is not usable."""


class ModelError(TrainingError):
    """A base model cannot be loaded, or cannot be trained this way."""


class DivergedError(TrainingError):
    """The loss is no longer a finite number."""


class DriftedError(TrainingError):
    """The adapter has gone further from the base than `drift_limit` allows."""


class CheckpointError(TrainingError):
    """A checkpoint could not be written; the ones before it are whole."""


class OutOfMemory(TrainingError):
    """The machine's memory is too small for these settings."""


class Stopped(TrainingError):
    """The run was asked to stop, and did after its running step, with a checkpoint."""
