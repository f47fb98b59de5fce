"""What validation is told, and what it tells.

Owns the bounds on an upload with the argument for each default, and the report on an acceptable
adapter. Refuses to check anything: `validation.py` does.
"""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


class Limits(BaseModel):
    """What an upload may be at most."""

    model_config = ConfigDict(frozen=True)

    max_rank: int = 64
    max_bytes: int = 512 * 2**20
    max_delta_ratio: float = 10.0
    """Largest ‖ΔW‖_F / ‖W‖_F of a layer.

    Measured on the pocket model (`bapo train … --out DIR`, `validate(DIR, …).change`), all layers
    adapted, alpha twice the rank, 2 to 6 epochs: twelve adapters of BAPO and DPO with ranks 4 to 64
    and learning rates 2e-4 to 3e-3 had 0.005 to 0.72, growing with both; the one of 0.72 (BAPO)
    still had 89 % of the facts right (`bapo eval`). DPO at rank 64 and 1e-2 had 6.9 and no fact
    right. So nothing useful is near ten times the weights, and 1e30 and the like are far above. It
    protects others, and does not tell good from bad: DPO at rank 8 and 3e-3 had forgotten all facts
    with 0.53."""
    max_delta: float = 1000.0
    """The same bound as a plain number, for layers of a base whose weights are of a type without
    a known norm (quantised ones). An 8B model's largest layers have a norm of about 100."""
    max_factor: float = 1000.0
    """Largest ‖A‖_F, and ‖B‖_F·scale. A product of ordinary size can hide a factor that overflows
    fp16 on the way; PEFT's own initialisations stay below √in_features, 170 for the widest."""


@dataclass(frozen=True)
class ValidationReport:
    """What was found in an acceptable adapter."""

    rank: int
    scale: float
    modules: tuple[str, ...]
    parameters: int
    bytes: int
    warnings: tuple[str, ...] = ()
    change: float | None = None
    """The largest ‖ΔW‖ / ‖W‖ of its layers; None where no norm of the base is known."""
