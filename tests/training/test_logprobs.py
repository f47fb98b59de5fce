"""Packed rows against the plain way: one forward pass for each prompt and answer."""

import pytest
import torch
from torch import Tensor

from training.batching import LengthBuckets, pack
from training.config import BAPOConfig
from training.encoding import Tokens
from training.logprobs import (
    sequence_logprobs,
    sequence_logprobs_and_kl,
    token_divergence,
    token_logprobs,
)
from training.model import ResidentBase, trainable

ROWS: list[tuple[Tokens, list[Tokens]]] = [
    ((9, 20, 30), [(40, 41, 42, 43), (50, 1), (60,)]),
    ((9, 21, 31, 32, 33, 34, 35), [(44,), (51, 52, 53, 54, 55, 1), (61, 62)]),
    ((9,), [(45, 46), (56, 57, 1), (63, 64, 65, 66, 67, 68, 1)]),
]


def rowwise(base: ResidentBase, prompt: Tokens, answer: Tokens) -> Tensor:
    ids = torch.tensor([prompt + answer])
    logprobs = base.model(input_ids=ids).logits.log_softmax(-1)[0]
    at = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
    return logprobs[at, torch.tensor(answer)].sum()


def test_packed_equals_rowwise_on_every_architecture(any_base: ResidentBase) -> None:
    with torch.no_grad():
        packed = sequence_logprobs(any_base.model, pack(ROWS))
        expected = torch.tensor([[rowwise(any_base, p, a) for a in answers] for p, answers in ROWS])
    assert packed.shape == (3, 3)
    torch.testing.assert_close(packed, expected, atol=1e-4, rtol=0)


def test_companions_and_their_padding_change_nothing(any_base: ResidentBase) -> None:
    with torch.no_grad():
        together = sequence_logprobs(any_base.model, pack(ROWS))
        alone = torch.cat([sequence_logprobs(any_base.model, pack([row])) for row in ROWS])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_branches_do_not_see_one_another(base: ResidentBase) -> None:
    prompt, (first, second, third) = ROWS[0]
    with torch.no_grad():
        before = sequence_logprobs(base.model, pack([(prompt, [first, second, third])]))
        after = sequence_logprobs(base.model, pack([(prompt, [(99, 98, 97), second, third])]))
    torch.testing.assert_close(before[:, 1:], after[:, 1:], atol=1e-5, rtol=0)


def test_gradients_equal_those_of_the_rowwise_computation(base: ResidentBase) -> None:
    weight = base.model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    (packed,) = torch.autograd.grad(sequence_logprobs(base.model, pack(ROWS)).sum(), weight)
    plain = torch.stack([rowwise(base, p, a) for p, answers in ROWS for a in answers]).sum()
    (expected,) = torch.autograd.grad(plain, weight)
    weight.requires_grad_(False)
    torch.testing.assert_close(packed, expected, atol=1e-3, rtol=1e-3)


def test_a_sliced_head_gives_the_same_values_and_gradients(base: ResidentBase) -> None:
    hidden = torch.randn(11, 32, requires_grad=True)
    targets = torch.arange(11)
    head = base.model.get_output_embeddings()
    whole = token_logprobs(hidden, targets, head)
    (whole_gradient,) = torch.autograd.grad(whole.sum(), hidden)
    sliced = token_logprobs(hidden, targets, head, logits_at_once=3 * 320)
    (sliced_gradient,) = torch.autograd.grad(sliced.sum(), hidden)
    torch.testing.assert_close(sliced, whole)
    torch.testing.assert_close(sliced_gradient, whole_gradient)


def test_a_divergence_equals_the_rowwise_one_and_so_does_its_gradient(
    any_base: ResidentBase,
) -> None:
    prompts = [torch.tensor([prompt + answers[2]]) for prompt, answers in ROWS]
    starts = [len(prompt) - 1 for prompt, _ in ROWS]
    with torch.no_grad():
        before = [any_base.model(input_ids=ids).logits.log_softmax(-1)[0] for ids in prompts]
    torch.manual_seed(5)
    with trainable(any_base, BAPOConfig(use_cpu=True, lora_rank=2)) as policy:
        lora = [p for name, p in policy.named_parameters() if "lora_" in name]
        for parameter in lora:
            torch.nn.init.normal_(parameter, std=0.2)
        logprobs, divergence = sequence_logprobs_and_kl(policy, pack(ROWS), first=2)
        plain = torch.stack(
            [
                (old.exp() * (old - policy(input_ids=ids).logits.log_softmax(-1)[0]))[
                    start:-1
                ].sum()
                for ids, start, old in zip(prompts, starts, before, strict=True)
            ]
        )
        assert (plain > 0.01).all()
        torch.testing.assert_close(divergence[:, 0], plain, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logprobs, sequence_logprobs(policy, pack(ROWS)))
        gradients = torch.autograd.grad(divergence.sum(), lora)
        for got, expected in zip(gradients, torch.autograd.grad(plain.sum(), lora), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_a_sliced_divergence_is_the_same(base: ResidentBase) -> None:
    policy, reference = torch.randn(11, 32, requires_grad=True), torch.randn(11, 32)
    head = base.model.get_output_embeddings()
    whole = token_divergence(policy, reference, head)
    sliced = token_divergence(policy, reference, head, logits_at_once=6 * 320)
    torch.testing.assert_close(sliced, whole)
    (expected,) = torch.autograd.grad(whole.sum(), policy)
    torch.testing.assert_close(torch.autograd.grad(sliced.sum(), policy)[0], expected)


@pytest.mark.parametrize(
    "rows", [[((), [(1,)])], [((9,), [(1,), ()])], [((9,), [(1,)]), ((9,), [])]]
)
def test_what_cannot_be_scored_is_refused(rows: list[tuple[Tokens, list[Tokens]]]) -> None:
    with pytest.raises(ValueError, match="non-empty"):
        pack(rows)


def test_an_epoch_sees_every_pair_once_in_an_order_of_its_own() -> None:
    lengths = [7 * i % 50 for i in range(53)]
    buckets = LengthBuckets(lengths, 8, seed=3)
    first, again = list(buckets), list(buckets)
    buckets.set_epoch(1)
    second = list(buckets)
    assert sorted(first) == sorted(second) == list(range(53))
    assert first == again != second


def test_batches_are_of_like_length() -> None:
    lengths = [7 * i % 101 for i in range(101)]
    order = list(LengthBuckets(lengths, 10, seed=3, spread=100))
    batches = [[lengths[i] for i in order[at : at + 10]] for at in range(0, 101, 10)]
    assert max(max(batch) - min(batch) for batch in batches) <= 10
