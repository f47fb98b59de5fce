"""The BAPO loss as pure functions: tensors in, tensors out.

Owns the arithmetic only; there is no model, no configuration and no I/O here. Every
function works elementwise over pairs, so padding and batching cannot change a value.

    L = L_DPO + λ · L_anchor,   the anchor outside the sigmoid

    symbol            variable              shape   meaning
    π_θ(y_w | x)      policy_chosen         (B,)    log-probability of the chosen answer
    π_θ(y_l | x)      policy_rejected       (B,)    ... of the rejected answer
    π_θ(y_b | x)      policy_base           (B,)    ... of the base model's own answer
    π_ref(y | x)      reference_*           (B,)    the same under the base model
    β                 beta                  float   strength of the preference's KL leash
    λ                 anchor_weight         float   weight of the anchor
    ε                 label_smoothing       float   probability that a label is flipped
    |y_b|             base_lengths          (B,)    tokens in the base answer

All log-probabilities are sums over the tokens of an answer, in nats. The preference term
is that of Rafailov et al. (2305.18290, eq. 7), smoothed as in Mitchell's cDPO note. That
the anchor is a term of its own, outside the sigmoid, on the base model's own answer is
what the sources agree on; its exact form is not public, so `AnchorType` is our reading.
"""

from typing import Literal, NamedTuple, assert_never

import torch.nn.functional as F
from torch import Tensor

AnchorType = Literal["hinge", "absolute", "squared", "log_ratio"]


class BapoLoss(NamedTuple):
    """The terms of the loss for each pair, every one of shape (B,)."""

    total: Tensor
    preference: Tensor
    anchor: Tensor


def dpo_loss(
    policy_chosen: Tensor,  # (B,)
    policy_rejected: Tensor,  # (B,)
    reference_chosen: Tensor,  # (B,)
    reference_rejected: Tensor,  # (B,)
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-(1-ε) log σ(βh) - ε log σ(-βh), h the log-ratio of chosen over rejected; (B,)."""
    log_ratio = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    agree = -F.logsigmoid(beta * log_ratio)
    disagree = -F.logsigmoid(-beta * log_ratio)
    return (1 - label_smoothing) * agree + label_smoothing * disagree


def anchor_loss(
    policy_base: Tensor,  # (B,)
    reference_base: Tensor,  # (B,)
    *,
    anchor_type: AnchorType = "hinge",
    base_lengths: Tensor | None = None,  # (B,)
) -> Tensor:
    """What it costs that the base answer is less likely than it was; (B,).

    With d = log π_ref(y_b) - log π_θ(y_b), which for a sampled y_b estimates
    KL(π_ref ‖ π_θ) without bias:

        hinge      max(0, d)    only a loss of likelihood is charged
        absolute   |d|          a gain is charged too
        squared    d²
        log_ratio  d            the KL estimate itself; a gain is rewarded

    Given `base_lengths`, d is per token.
    """
    drop = reference_base - policy_base
    if base_lengths is not None:
        drop = drop / base_lengths
    match anchor_type:
        case "hinge":
            return F.relu(drop)
        case "absolute":
            return drop.abs()
        case "squared":
            return drop.square()
        case "log_ratio":
            return drop
        case _:
            assert_never(anchor_type)


def bapo_loss(
    policy_chosen: Tensor,  # (B,)
    policy_rejected: Tensor,  # (B,)
    policy_base: Tensor,  # (B,)
    reference_chosen: Tensor,  # (B,)
    reference_rejected: Tensor,  # (B,)
    reference_base: Tensor,  # (B,)
    *,
    beta: float = 0.1,
    anchor_weight: float = 0.02,
    anchor_type: AnchorType = "hinge",
    label_smoothing: float = 0.0,
    base_lengths: Tensor | None = None,  # (B,)
) -> BapoLoss:
    """Preference term plus `anchor_weight` times the anchor, for each pair.

    The preference term's gradient on a log-ratio is at most β, so an `anchor_weight` far
    above β lets nothing be learned; of the order of β or below is where to look.
    """
    preference = dpo_loss(
        policy_chosen,
        policy_rejected,
        reference_chosen,
        reference_rejected,
        beta=beta,
        label_smoothing=label_smoothing,
    )
    anchor = anchor_loss(
        policy_base, reference_base, anchor_type=anchor_type, base_lengths=base_lengths
    )
    return BapoLoss(preference + anchor_weight * anchor, preference, anchor)
