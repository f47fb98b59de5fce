"""The loss by hand: every expected number can be checked with a pocket calculator."""

import math

import pytest
import torch
from torch import Tensor

from training.losses import (
    AnchorType,
    PreferenceType,
    anchor_loss,
    bapo_loss,
    preference_loss,
    sft_loss,
    token_kl,
)

ANCHORS: list[AnchorType] = ["hinge", "absolute", "squared", "log_ratio", "kl"]
PREFERENCES: list[PreferenceType] = ["sigmoid", "ipo", "hinge", "dpop", "sft"]


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gained_2_lost_3() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The chosen answer gained 2 nats, the rejected one lost 3: h = 5."""
    return column(-8), column(-13), column(-10), column(-10)


def lost_1_lost_3() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both answers lost, as DPO is known to do: h = 2."""
    return column(-11), column(-13), column(-10), column(-10)


def test_a_policy_equal_to_its_reference_has_loss_log_2() -> None:
    same = column(-3.0, -40.0)
    loss = preference_loss(same, same, same, same, beta=0.1)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)


def test_dpo_by_hand() -> None:
    # βh = 0.5: -log σ(0.5) = log(1 + e^-0.5) = 0.474077
    loss = preference_loss(*gained_2_lost_3(), beta=0.1)
    assert loss.item() == pytest.approx(0.474077, abs=1e-6)


def test_label_smoothing_by_hand() -> None:
    # 0.9 · 0.474077 + 0.1 · log(1 + e^0.5) = 0.9 · 0.474077 + 0.1 · 0.974077 = 0.524077
    loss = preference_loss(*gained_2_lost_3(), beta=0.1, label_smoothing=0.1)
    assert loss.item() == pytest.approx(0.524077, abs=1e-6)


def test_ipo_by_hand() -> None:
    # The target is 1 / 2β = 5, so h = 5 is there and h = 2 is 3 short of it.
    assert preference_loss(*gained_2_lost_3(), beta=0.1, loss_type="ipo").item() == 0
    assert preference_loss(*lost_1_lost_3(), beta=0.1, loss_type="ipo").item() == 9


def test_ipo_per_token_by_hand() -> None:
    # 2 nats over 4 tokens and -3 over 6: h = 0.5 + 0.5 = 1, so (1 - 5)² = 16
    lengths = torch.tensor([[4, 6]])
    loss = preference_loss(*gained_2_lost_3(), beta=0.1, loss_type="ipo", answer_lengths=lengths)
    assert loss.item() == pytest.approx(16)


def test_hinge_by_hand() -> None:
    # 1 - 0.1 · 5 = 0.5; at β = 0.4 the margin is past 1 and nothing is left to pay.
    assert preference_loss(*gained_2_lost_3(), beta=0.1, loss_type="hinge").item() == 0.5
    assert preference_loss(*gained_2_lost_3(), beta=0.4, loss_type="hinge").item() == 0


def test_dpop_is_dpo_while_the_chosen_answer_gains() -> None:
    dpop = preference_loss(*gained_2_lost_3(), beta=0.1, loss_type="dpop", dpop_weight=50)
    assert dpop.item() == preference_loss(*gained_2_lost_3(), beta=0.1).item()


def test_dpop_by_hand() -> None:
    # The chosen answer lost 1: 0.1 · (2 - 5 · 1) = -0.3 inside, log(1 + e^0.3) = 0.854355
    loss = preference_loss(*lost_1_lost_3(), beta=0.1, loss_type="dpop", dpop_weight=5)
    assert loss.item() == pytest.approx(0.854355, abs=1e-6)


def test_sft_by_hand() -> None:
    # The chosen answer's log-probability is -8, over 4 tokens -2 each; nothing else is read.
    chosen, *others = gained_2_lost_3()
    assert sft_loss(chosen).item() == 8
    assert sft_loss(chosen, torch.tensor([4])).item() == 2
    lengths = torch.tensor([[4, 6]])
    alone = preference_loss(
        chosen, *others, beta=0.1, loss_type="sft", dpop_weight=9, answer_lengths=lengths
    )
    assert alone.item() == 2


def test_the_length_of_its_neighbours_does_not_weigh_an_answer_of_sft() -> None:
    # TRL's mean over the tokens of the batch would be (8 + 2) / 6 = 1.67 for both.
    charged = sft_loss(column(-8, -2), torch.tensor([4, 2]))
    assert charged.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("anchor_type", "lost", "gained"),
    [("hinge", 4, 0), ("absolute", 4, 2), ("squared", 16, 4), ("log_ratio", 4, -2), ("kl", 7, 9)],
)
def test_anchors_by_hand(anchor_type: AnchorType, lost: float, gained: float) -> None:
    # The first base answer lost 4 nats against the reference, the second gained 2; kl takes
    # its figures as they are given.
    charged = anchor_loss(
        column(-14, -8), column(-10, -10), anchor_type=anchor_type, base_kl=column(7, 9)
    )
    assert charged.tolist() == [lost, gained]


@pytest.mark.parametrize(("anchor_type", "charged"), [("squared", 0.25), ("kl", 7 / 8)])
def test_an_anchor_can_be_charged_per_token(anchor_type: AnchorType, charged: float) -> None:
    # 4 nats over 8 tokens, squared, and 7 nats of divergence over 8 tokens
    loss = anchor_loss(
        column(-14),
        column(-10),
        anchor_type=anchor_type,
        base_kl=column(7),
        base_lengths=torch.tensor([8]),
    )
    assert loss.item() == pytest.approx(charged)


def test_a_kl_anchor_without_its_divergence_is_refused() -> None:
    with pytest.raises(ValueError, match="needs base_kl"):
        anchor_loss(column(-14), column(-10), anchor_type="kl")


def test_kl_by_hand() -> None:
    # ref (1/2, 1/2), policy (1/4, 3/4): ½ log 2 + ½ log ⅔ = 0.143841. Logits may be shifted.
    policy = column(0.25, 0.75).log()[None] + 3
    reference = column(0.5, 0.5).log()[None] - 8
    assert token_kl(policy, reference).item() == pytest.approx(0.143841, abs=1e-6)
    assert token_kl(reference, reference).item() == pytest.approx(0, abs=1e-12)


def test_the_anchor_stands_outside_the_sigmoid() -> None:
    # 0.474077 from above, plus 0.02 · 4
    preference = preference_loss(*gained_2_lost_3(), beta=0.1)
    loss = bapo_loss(preference, anchor_loss(column(-14), column(-10)), anchor_weight=0.02)
    assert loss.total.item() == pytest.approx(0.474077 + 0.08, abs=1e-6)
    assert loss.anchor.item() == 4


def test_without_weight_bapo_is_its_preference_term() -> None:
    preference, anchor = torch.rand(5), torch.rand(5)
    assert torch.equal(bapo_loss(preference, anchor, anchor_weight=0.0).total, preference)


@pytest.mark.parametrize("anchor_type", ANCHORS)
@pytest.mark.parametrize("loss_type", PREFERENCES)
def test_gradients_are_those_of_finite_differences(
    loss_type: PreferenceType, anchor_type: AnchorType
) -> None:
    generator = torch.Generator().manual_seed(1)
    seven = [
        torch.randn(4, dtype=torch.float64, generator=generator, requires_grad=True)
        for _ in range(7)
    ]

    def total(*terms: Tensor) -> Tensor:
        chosen, rejected, base, *references, kl = terms
        lengths = torch.tensor([[1, 2, 3], [2, 3, 4], [5, 6, 7], [3, 1, 2]])
        preference = preference_loss(
            chosen,
            rejected,
            *references[:2],
            beta=0.3,
            loss_type=loss_type,
            answer_lengths=lengths[:, :2],
        )
        anchor = anchor_loss(
            base,
            references[2],
            anchor_type=anchor_type,
            base_kl=kl,
            base_lengths=lengths[:, 2],
        )
        return bapo_loss(preference, anchor).total

    assert torch.autograd.gradcheck(total, seven)


def test_the_gradient_of_a_divergence_is_that_of_finite_differences() -> None:
    policy, reference = torch.randn(2, 3, 7, dtype=torch.float64).requires_grad_().unbind()
    assert torch.autograd.gradcheck(token_kl, (policy, reference))
