"""What FSDP, which keeps a part of each weight in each process, needs of us; DDP needs the first.

Owns that a whole look at a batch is one call of the model, and a whole copy of a policy that is in
parts. Refuses how weights are shared out, which is accelerate's, and whether they may be, which is
the config's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from training.logprobs import causal_lm


@contextmanager
def as_forward(model: nn.Module, look: Callable[..., Any]) -> Iterator[None]:
    """Inside, calling `model` calls `look`: so wrappers gather before it and reduce after it."""
    before = model.__dict__.get("forward")
    model.forward = look
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


def in_one_piece(policy: PeftModel, *, here: bool) -> PeftModel:
    """`policy`, or where it is in parts a whole copy on the CPU, which one process can ask alone.

    All processes call this together; the copy is made where `here`, the others get their part.
    """
    if not any(isinstance(weight, DTensor) for weight in policy.parameters()):
        return policy
    weights = {}
    for name, part in policy.state_dict().items():
        whole: Tensor = part.full_tensor() if isinstance(part, DTensor) else part
        if here:
            weights[name] = whole.cpu()
    if not here:
        return policy
    network = causal_lm(policy)
    base = AutoModelForCausalLM.from_config(
        network.config, dtype=network.dtype, attn_implementation="sdpa"
    )
    copy = get_peft_model(base, policy.peft_config["default"])
    copy.load_state_dict(weights)
    return copy
