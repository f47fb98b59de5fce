"""A base in 4 bits (QLoRA, arXiv 2305.14314), by bitsandbytes.

Owns what a model is told to be loaded so, and that its gradients are right on a CPU. Refuses to
load; `model.py` does. What is trained on such a base is served on the whole one.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from training.errors import ModelError


def in_four_bits(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` needs to quantise while loading. Raises ModelError."""
    if find_spec("bitsandbytes") is None:
        raise ModelError("load_in_4bit needs bitsandbytes: pip install bitsandbytes.")
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": quantisation, "device_map": {"": device}}


def keep_gradients(network: nn.Module) -> None:
    """Have 4-bit layers on a CPU stay in the layout that has a gradient.

    With AVX-512's bf16, bitsandbytes 0.50 repacks a layer at its first pass without a gradient, as
    references are made in, for a product that has none: what is trained afterwards is wrong.
    """
    for layer in network.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
