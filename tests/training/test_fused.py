"""The written-out gradients are autograd's, and what is not the plain case is left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from training.batching import pack
from training.config import BAPOConfig
from training.fused import _FrozenHead, _Fused, _LowRankLinear, is_frozen_linear, target_logprobs
from training.logprobs import sequence_logprobs, token_logprobs
from training.model import ResidentBase, trainable

ROWS = [((5, 6, 7), [(8, 9, 1), (10, 1)]), ((11, 12), [(13, 1), (14, 15, 16, 1)])]


def test_a_low_rank_layer_has_autograds_gradient() -> None:
    torch.manual_seed(0)
    x, a, b = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, 5), (2, 5), (4, 2))
    )
    weight, bias = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    plain = nn.functional.linear(x, weight, bias) + 1.5 * (x @ a.T) @ b.T
    torch.testing.assert_close(_LowRankLinear.apply(x, weight, bias, a, b, 1.5), plain)
    assert torch.autograd.gradcheck(
        lambda x, a, b: _LowRankLinear.apply(x, weight, bias, a, b, 1.5), (x, a, b)
    )


@pytest.mark.parametrize("tile", [(1, 1), (3, 4), (2, 11), (100, 100)])
def test_a_frozen_head_has_autograds_gradient(tile: tuple[int, int]) -> None:
    torch.manual_seed(0)
    head = nn.Linear(5, 11, dtype=torch.float64).requires_grad_(False)
    head.weight.mul_(20)  # so that a block's largest logit is far from another's
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (7,))
    plain = head(hidden).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(target_logprobs(hidden, targets, head, tile), plain)
    assert torch.autograd.gradcheck(
        lambda h: _FrozenHead.apply(h, targets, head.weight, head.bias, tile), (hidden,)
    )


class Largest(TorchDispatchMode):  # type: ignore[misc]
    """How many elements the largest tensor has that is made inside; for each operator's result."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not op.is_view:
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize(("tokens", "vocabulary"), [(64, 500), (64, 8_000), (900, 8_000)])
def test_nothing_grows_with_tokens_times_vocabulary(tokens: int, vocabulary: int) -> None:
    """The largest tensor of a step is a block of logits, or as large as the hidden states."""
    head = nn.Linear(6, vocabulary, bias=False).requires_grad_(False)
    hidden = torch.randn(tokens, 6, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))
    with Largest() as largest:
        token_logprobs(hidden, targets, head, logits_at_once=10_000).sum().backward()
    assert tokens * 6 <= largest.elements <= 10_000
    whole = head(hidden.detach()).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(token_logprobs(hidden, targets, head, logits_at_once=9_000), whole)


def test_a_head_that_is_trained_is_left_to_autograd() -> None:
    assert not is_frozen_linear(nn.Linear(2, 3))
    assert is_frozen_linear(nn.Linear(2, 3).requires_grad_(False))
    assert not is_frozen_linear(nn.Sequential(nn.Linear(2, 3)).requires_grad_(False))


@pytest.mark.parametrize("bf16", [False, True])
def test_a_fused_model_is_pefts(
    any_base: ResidentBase, quick: Callable[..., BAPOConfig], bf16: bool
) -> None:
    def figures(policy: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
        lora = [p for name, p in policy.named_parameters() if "lora_" in name]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logprobs = sequence_logprobs(policy, pack(ROWS))
        return logprobs, list(torch.autograd.grad(logprobs.sum(), lora))

    with trainable(any_base, quick()) as policy:
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        fused = [m for m in policy.modules() if isinstance(m.__dict__.get("forward"), _Fused)]
        assert len(fused) == 14  # seven products in each of two layers
        ours = figures(policy.train())
        for layer in fused:
            layer.forward = layer.forward.otherwise
        theirs = figures(policy)
    close = {"atol": 0.2, "rtol": 0.1} if bf16 else {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(ours[0], theirs[0], **close)
    for mine, pefts in zip(ours[1], theirs[1], strict=True):
        assert (mine - pefts).norm() <= (0.05 if bf16 else 1e-4) * pefts.norm()


def test_dropout_is_left_to_peft(base: ResidentBase, quick: Callable[..., BAPOConfig]) -> None:
    with trainable(base, quick(lora_dropout=0.5)) as policy:
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
        first, second = (sequence_logprobs(policy.train(), pack(ROWS)) for _ in range(2))
        assert not torch.equal(first, second)
        policy.eval()
        first, second = (sequence_logprobs(policy, pack(ROWS)) for _ in range(2))
        assert torch.equal(first, second)
