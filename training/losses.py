"""The BAPO loss as pure functions: tensors in, tensors out.

Owns the arithmetic only; there is no model, no configuration and no I/O here. Every
function works elementwise over pairs, so padding and batching cannot change a value.

    L = L_preference + λ · L_anchor,   the anchor outside the sigmoid

    symbol            variable              shape   meaning
    π_θ(y_w | x)      policy_chosen         (B,)    log-probability of the chosen answer
    π_θ(y_l | x)      policy_rejected       (B,)    ... of the rejected answer
    π_θ(y_b | x)      policy_base           (B,)    ... of the base model's own answer
    π_ref(y | x)      reference_*           (B,)    the same under the base model
    β                 beta                  float   strength of the preference's KL leash
    λ                 anchor_weight         float   weight of the anchor
    ε                 label_smoothing       float   probability that a label is flipped
    λ_P               dpop_weight           float   weight of DPOP's hinge
    α                 sft_weight            float   weight of an SFT term beside the preference
    |y_w|, |y_l|      answer_lengths        (B, 2)  tokens in the chosen, the rejected answer
    |y_b|             base_lengths          (B,)    tokens in the base answer
    Σ_t KL_t          base_kl               (B,)    token_kl summed along the base answer

All log-probabilities are sums over the tokens of an answer, in nats. That the anchor is a
term of its own, outside the sigmoid, on the base model's own answer is what the sources
agree on; its exact form is not public, so `AnchorType` is our reading (docs/bapo.md).
"""

from typing import Literal, NamedTuple, assert_never

import torch.nn.functional as F
from torch import Tensor

PreferenceType = Literal["sigmoid", "ipo", "hinge", "dpop", "sft"]
AnchorType = Literal["hinge", "absolute", "squared", "log_ratio", "kl"]


class BapoLoss(NamedTuple):
    """The terms of the loss for each pair, every one of shape (B,)."""

    total: Tensor
    preference: Tensor
    anchor: Tensor


def bapo_loss(
    preference: Tensor,  # (B,)
    anchor: Tensor,  # (B,)
    *,
    anchor_weight: float = 0.02,
) -> BapoLoss:
    """L = L_preference + λ · L_anchor, for each pair.

    The preference term's gradient on a log-ratio is at most β, so an `anchor_weight` far
    above β lets nothing be learned; of the order of β or below is where to look.
    """
    return BapoLoss(preference + anchor_weight * anchor, preference, anchor)


def preference_loss(
    policy_chosen: Tensor,  # (B,)
    policy_rejected: Tensor,  # (B,)
    reference_chosen: Tensor,  # (B,)
    reference_rejected: Tensor,  # (B,)
    *,
    beta: float,
    loss_type: PreferenceType = "sigmoid",
    label_smoothing: float = 0.0,
    dpop_weight: float = 5.0,
    answer_lengths: Tensor | None = None,  # (B, 2)
) -> Tensor:
    """What it costs that the chosen answer gained too little on the rejected one; (B,).

    With w and l the log-ratios log π_θ(y) - log π_ref(y) of the two and h = w - l:

        sigmoid  -(1-ε) log σ(βh) - ε log σ(-βh)       DPO, 2305.18290 eq. 7; ε is cDPO's
        ipo      (h - 1/2β)²                           2310.12036 eq. 17
        hinge    max(0, 1 - βh)                        SLiC, 2305.10425
        dpop     -log σ(β(h - λ_P max(0, -w)))         Smaug, 2402.13228
        sft      `sft_loss`                            the rejected answer counts for nothing

    Given `answer_lengths`, ipo takes w and l per token, as its authors and TRL do, and sft
    the chosen answer. Only sigmoid knows `label_smoothing`.
    """
    chosen = policy_chosen - reference_chosen
    rejected = policy_rejected - reference_rejected
    match loss_type:
        case "sigmoid":
            return _sigmoid(beta * (chosen - rejected), label_smoothing)
        case "ipo":
            if answer_lengths is not None:
                chosen, rejected = chosen / answer_lengths[:, 0], rejected / answer_lengths[:, 1]
            return (chosen - rejected - 1 / (2 * beta)).square()
        case "hinge":
            return F.relu(1 - beta * (chosen - rejected))
        case "dpop":
            return _sigmoid(beta * (chosen - rejected - dpop_weight * F.relu(-chosen)))
        case "sft":
            return sft_loss(policy_chosen, None if answer_lengths is None else answer_lengths[:, 0])
        case _:
            assert_never(loss_type)


def sft_loss(
    policy_chosen: Tensor,  # (B,)
    chosen_lengths: Tensor | None = None,  # (B,)
) -> Tensor:
    """-log π_θ(y_w), supervised fine-tuning on the chosen answer; (B,).

    Given `chosen_lengths`, it is the mean over the answer's tokens: then it neither grows with
    the length of an answer nor drowns a preference term, whose gradient on the sum is at most β.
    Beside DPO's term that is 2404.19733 eq. 1, and TRL's `["sigmoid", "sft"]` up to this: TRL
    takes the mean over the tokens of a batch, so an answer's weight depends on its neighbours.
    """
    return -policy_chosen if chosen_lengths is None else -policy_chosen / chosen_lengths


def anchor_loss(
    policy_base: Tensor,  # (B,)
    reference_base: Tensor,  # (B,)
    *,
    anchor_type: AnchorType = "hinge",
    base_kl: Tensor | None = None,  # (B,)
    base_lengths: Tensor | None = None,  # (B,)
) -> Tensor:
    """What it costs that the base answer is less likely than it was; (B,).

    With d = log π_ref(y_b) - log π_θ(y_b), which for a sampled y_b estimates
    KL(π_ref ‖ π_θ) without bias:

        hinge      max(0, d)    only a loss of likelihood is charged
        absolute   |d|          a gain is charged too
        squared    d²
        log_ratio  d            the KL estimate itself; a gain is rewarded
        kl         base_kl      KL(π_ref ‖ π_θ) of every next token along y_b, summed

    Given `base_lengths`, d and base_kl are per token. Raises ValueError for kl without
    `base_kl`.
    """
    drop = reference_base - policy_base
    if anchor_type == "kl":
        if base_kl is None:
            raise ValueError("anchor_type 'kl' needs base_kl")
        drop = base_kl
    if base_lengths is not None:
        drop = drop / base_lengths
    match anchor_type:
        case "hinge":
            return F.relu(drop)
        case "absolute":
            return drop.abs()
        case "squared":
            return drop.square()
        case "log_ratio" | "kl":
            return drop
        case _:
            assert_never(anchor_type)


def token_kl(policy_logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(π_ref ‖ π_θ) over the vocabulary, (N,) in nats, from two logits of shape (N, V)."""
    policy = policy_logits.log_softmax(-1)
    reference = reference_logits.log_softmax(-1)
    return (reference.exp() * (reference - policy)).sum(-1)


def _sigmoid(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    agree, disagree = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    return (1 - label_smoothing) * agree + label_smoothing * disagree
