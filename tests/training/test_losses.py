"""The loss by hand: every expected number can be checked with a pocket calculator."""

import math

import pytest
import torch
from torch import Tensor

from training.losses import AnchorType, anchor_loss, bapo_loss, dpo_loss


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_policy_equal_to_its_reference_has_loss_log_2() -> None:
    same = column(-3.0, -40.0)
    assert dpo_loss(same, same, same, same, beta=0.1).tolist() == pytest.approx([math.log(2)] * 2)


def test_dpo_by_hand() -> None:
    # log-ratios +2 and -3, so h = 5 and βh = 0.5: -log σ(0.5) = log(1 + e^-0.5) = 0.474077
    loss = dpo_loss(column(-8), column(-13), column(-10), column(-10), beta=0.1)
    assert loss.item() == pytest.approx(0.474077, abs=1e-6)


def test_label_smoothing_by_hand() -> None:
    # 0.9 · 0.474077 + 0.1 · log(1 + e^0.5) = 0.9 · 0.474077 + 0.1 · 0.974077 = 0.524077
    loss = dpo_loss(
        column(-8), column(-13), column(-10), column(-10), beta=0.1, label_smoothing=0.1
    )
    assert loss.item() == pytest.approx(0.524077, abs=1e-6)


@pytest.mark.parametrize(
    ("anchor_type", "lost", "gained"),
    [("hinge", 4, 0), ("absolute", 4, 2), ("squared", 16, 4), ("log_ratio", 4, -2)],
)
def test_anchors_by_hand(anchor_type: AnchorType, lost: float, gained: float) -> None:
    # The first base answer lost 4 nats against the reference, the second gained 2.
    charged = anchor_loss(column(-14, -8), column(-10, -10), anchor_type=anchor_type)
    assert charged.tolist() == [lost, gained]


def test_an_anchor_can_be_charged_per_token() -> None:
    charged = anchor_loss(
        column(-14), column(-10), anchor_type="squared", base_lengths=torch.tensor([8])
    )
    assert charged.item() == pytest.approx((4 / 8) ** 2)


def test_the_anchor_stands_outside_the_sigmoid() -> None:
    # 0.474077 from above, plus 0.02 · 4
    loss = bapo_loss(
        column(-8), column(-13), column(-14), column(-10), column(-10), column(-10), beta=0.1
    )
    assert loss.total.item() == pytest.approx(0.474077 + 0.08, abs=1e-6)
    assert loss.anchor.item() == 4


def test_without_weight_bapo_is_dpo() -> None:
    six = [torch.randn(5, dtype=torch.float64) for _ in range(6)]
    loss = bapo_loss(*six, anchor_weight=0.0)
    chosen, rejected, _, reference_chosen, reference_rejected, _ = six
    expected = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=0.1)
    assert torch.equal(loss.total, expected)


@pytest.mark.parametrize("anchor_type", ["hinge", "absolute", "squared", "log_ratio"])
def test_gradients_are_those_of_finite_differences(anchor_type: AnchorType) -> None:
    generator = torch.Generator().manual_seed(1)
    six = [
        torch.randn(4, dtype=torch.float64, generator=generator, requires_grad=True)
        for _ in range(6)
    ]

    def total(*terms: Tensor) -> Tensor:
        lengths = torch.tensor([1, 2, 3, 4])
        return bapo_loss(*terms, anchor_type=anchor_type, base_lengths=lengths).total

    assert torch.autograd.gradcheck(total, six)
