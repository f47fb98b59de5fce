"""A correction to vLLM's LoRA products on the CPU, installed through `vllm.general_plugins`.

Owns the six products that `vllm.lora.punica_wrapper.punica_cpu` imports by name. vLLM 0.32 marks a
token of the base model with adapter index -1; the CPU products index the stacked weights with it,
so that a base token is given the adapter in the *last* slot: another user's. Here such tokens get
nothing. CUDA's kernels skip them already and are left alone.
Invariant: after shrink and expand, a row whose index is negative is bit for bit as it was.

One batched product over all rows: the index is clamped to a valid slot and the rows that have no
adapter are masked out of the result, rather than a Python loop over the segments of a batch.
"""

from __future__ import annotations

import torch


def _rows_times_adapters(
    rows: torch.Tensor, stacked: torch.Tensor, indices: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Each row times its own adapter's matrix; zeros where it has none.

    rows: (N, in); stacked: (slots, out, in) or (slots, 1, out, in); indices: (N,), negative for
    none. Returns (N, out) in `dtype`.
    """
    chosen = stacked[indices.clamp_min(0)].to(dtype)
    if chosen.dim() == 4:
        chosen = chosen.squeeze(1)
    product = torch.einsum("ni,noi->no", rows.to(dtype), chosen)
    # `where` and not a product with 0: a NaN in a slot must not reach rows that do not use it.
    return torch.where((indices >= 0).unsqueeze(1), product, 0.0)


def bgmv_shrink(
    inputs: torch.Tensor,
    lora_a_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    """output[:, :r] = scaling · A[index] inputs. Shapes: (N, in), (slots, r, in), (N, ≥r), (N,)."""
    shrunk = _rows_times_adapters(inputs, lora_a_weights, lora_indices_tensor, output_tensor.dtype)
    output_tensor[:, : shrunk.shape[1]] = scaling * shrunk


def bgmv_expand_slice(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """output[:, offset : offset + size] (+)= B[index] inputs.

    Shapes: (N, r), (slots, size, r), (N, out), (N,). Without `add_inputs` rows that have an
    adapter are overwritten, the others still untouched.
    """
    target = output_tensor[:, slice_offset : slice_offset + slice_size]
    expanded = _rows_times_adapters(
        inputs, lora_b_weights, lora_indices_tensor, output_tensor.dtype
    )
    # The adapter and the model may pad the output differently.
    width = min(expanded.shape[1], target.shape[1])
    used = (lora_indices_tensor >= 0).unsqueeze(1)
    before = target[:, :width]
    after = before + expanded[:, :width] if add_inputs else expanded[:, :width]
    target[:, :width] = torch.where(used, after, before)


def bgmv_expand(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    """output (+)= B[index] inputs: `bgmv_expand_slice` over the whole width."""
    bgmv_expand_slice(
        inputs,
        lora_b_weights,
        output_tensor,
        lora_indices_tensor,
        0,
        output_tensor.shape[1],
        add_inputs,
    )


# The `sgmv` forms name runs of rows (prompts) instead of rows; vLLM passes both kinds by position.


def sgmv_shrink(
    inputs: torch.Tensor,
    lora_a_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    b_seq_start_loc: torch.Tensor,
    seq_len_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    scaling: float,
) -> None:
    """`bgmv_shrink` for runs: run i has seq_len[i] rows and adapter index[i]."""
    rows = torch.repeat_interleave(lora_indices_tensor, seq_len_tensor)
    bgmv_shrink(inputs, lora_a_weights, output_tensor, rows, scaling)


def sgmv_expand(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    b_seq_start_loc: torch.Tensor,
    seq_len_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    add_inputs: bool = False,
) -> None:
    """`bgmv_expand` for runs."""
    rows = torch.repeat_interleave(lora_indices_tensor, seq_len_tensor)
    bgmv_expand(inputs, lora_b_weights, output_tensor, rows, add_inputs)


def sgmv_expand_slice(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    b_seq_start_loc: torch.Tensor,
    seq_len_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = False,
) -> None:
    """`bgmv_expand_slice` for runs."""
    rows = torch.repeat_interleave(lora_indices_tensor, seq_len_tensor)
    bgmv_expand_slice(
        inputs, lora_b_weights, output_tensor, rows, slice_offset, slice_size, add_inputs
    )


REPLACED = (
    bgmv_expand,
    bgmv_expand_slice,
    bgmv_shrink,
    sgmv_expand,
    sgmv_expand_slice,
    sgmv_shrink,
)


def install() -> None:
    """Put the products above in place of vLLM's on CPU platforms (the plugin's entry point).

    Safe to call more than once, as vLLM asks of a general plugin. Raises AttributeError when vLLM
    no longer has one of the names: better no start than wrong answers.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.punica_wrapper import punica_cpu

    for product in REPLACED:
        name = product.__name__
        if not hasattr(punica_cpu, name):
            raise AttributeError(f"vLLM's punica_cpu has no {name} to correct: check its version")
        setattr(punica_cpu, name, product)
