"""What of vLLM's LoRA is replaced on a CPU, so that it computes with `cpu_lora.py`.

Owns the replacement of some of vLLM's names, and nothing of the arithmetic. Its punica wrapper is
what every LoRA layer calls; here it makes the plan of a step when vLLM tells it the step's rows,
and refuses the layers that this server serves no adapters for. Embeddings and the output head are
not wrapped at all: uploads with such weights are refused, and vLLM would multiply the whole
vocabulary with nothing at every step. Everybody waits while an adapter is written into its slot, so
no more is written than must be.
Written against vLLM 0.32; re-read it at every upgrade.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from vllm.lora import model_manager
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.column_parallel_linear import MergedColumnParallelLinearWithLoRA
from vllm.lora.punica_wrapper import punica_cpu

from server.engine.cpu_lora import Batch, Stacks, add_lora

VllmWrapper: Any = punica_cpu.PunicaWrapperCPU
vllm_supported_modules: Any = model_manager.get_supported_lora_modules

WITH_STACKS: tuple[Any, ...] = (BaseLinearLayerWithLoRA, MergedColumnParallelLinearWithLoRA)
"""The layers that make their stacks by themselves; all other linear ones inherit from them."""


Weights: TypeAlias = torch.Tensor | list[torch.Tensor | None]
"""Of a layer, or of each of its parts."""


class Parts(tuple[torch.Tensor, ...]):
    """The weights of a layer's parts as vLLM keeps them, and the stacks that they are views of."""

    stacks: Stacks


class Wrapper(VllmWrapper):  # type: ignore[misc]  # vLLM's is Any here
    """vLLM's punica wrapper for CPUs, with the products of `cpu_lora`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batch: Batch | None = None

    def update_metadata(self, mapping: Any, *args: Any, **kwargs: Any) -> None:
        """vLLM calls this whenever the rows of a step, or their slots, are others than before."""
        self._update_base_metadata(mapping, *args, **kwargs)
        self._batch = Batch.of(self.token_lora_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Parts,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Add to `y` (N, out) in place. vLLM's scale is always 1: it is folded into B."""
        if self._batch is not None:
            add_lora(y, x, lora_a_stacked.stacks, self._batch)

    def _not_served(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("on a CPU adapters are served for whole linear layers only")

    add_shrink = add_expand = _not_served
    add_lora_embedding = add_lora_logits = apply_lora_full_linear = _not_served


def _with_stacks(create: Any) -> Any:
    """`create_lora_weights`, and then our stacks in place of the ones that it made."""

    def create_lora_weights(layer: Any, slots: int, *args: Any, **kwargs: Any) -> None:
        create(layer, slots, *args, **kwargs)
        if isinstance(layer.lora_a_stacked, Parts):
            return  # a class above has done it
        _, _, rank, width = layer.lora_a_stacked[0].shape
        sizes = [part.shape[2] for part in layer.lora_b_stacked]
        stacks = Stacks(slots, rank, width, sizes, layer.lora_a_stacked[0].dtype)
        layer.lora_a_stacked, layer.lora_b_stacked = Parts(stacks.parts_a), stacks.parts_b
        layer.lora_a_stacked.stacks = stacks
        layer.reset_lora, layer.set_lora = stacks.clear, _writing(layer, stacks)

    return create_lora_weights


def _writing(layer: Any, stacks: Stacks) -> Any:
    """`set_lora` of a layer: by `Stacks.write`, and by vLLM's own for what is not whole."""
    vllms = layer.set_lora

    def set_lora(slot: int, lora_a: Weights, lora_b: Weights) -> None:
        a = [lora_a] if isinstance(lora_a, torch.Tensor) else lora_a
        b = [lora_b] if isinstance(lora_b, torch.Tensor) else lora_b
        if layer.tp_size == 1 and stacks.fits(a, b):
            stacks.write(slot, a, b)
        else:
            try:
                vllms(slot, lora_a, lora_b)
            finally:
                stacks.was_written(slot)

    return set_lora


def linear_modules(model: torch.nn.Module) -> list[str]:
    """Names of the modules that vLLM wraps for LoRA: without embeddings and the output head."""
    names = set(vllm_supported_modules(model))
    for module in model.modules():
        names -= set(getattr(module, "embedding_modules", None) or ())
    return sorted(names)


def install() -> None:
    """Replace vLLM's names by ours; again is fine."""
    if punica_cpu.PunicaWrapperCPU is Wrapper:
        return
    punica_cpu.PunicaWrapperCPU = Wrapper
    model_manager.get_supported_lora_modules = linear_modules
    for layer in WITH_STACKS:
        layer.create_lora_weights = _with_stacks(layer.create_lora_weights)
