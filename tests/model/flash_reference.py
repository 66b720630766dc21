"""FlashAttention-2 in plain torch, with the arguments, the conditions and the blind spots of PyTorch's operator."""

import torch
from torch.nn.functional import scaled_dot_product_attention


def reference_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
    seqused_k: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """What `torch.ops.aten._flash_attention_forward` gives; rows of no piece, which are arbitrary there, are NaN."""
    num_seqs = len(cum_seq_q) - 1
    _check(query, key, value)
    assert (dropout_p, is_causal, return_debug_mask) == (0.0, True, False)
    assert len(cum_seq_k) == num_seqs + 1
    assert len(seqused_k) == num_seqs
    for numbers in (cum_seq_q, cum_seq_k, seqused_k):
        assert numbers.dtype is torch.int32
        assert numbers.is_contiguous()
    starts, first_keys, num_keys = cum_seq_q.tolist(), cum_seq_k.tolist(), seqused_k.tolist()
    if max_q == 1:  # the operator takes row i for sequence i then, whatever the starts say
        assert len(query) == num_seqs
        starts = list(range(num_seqs + 1))
    output = torch.full_like(query, torch.nan)
    for number in range(num_seqs):
        rows, first = slice(starts[number], starts[number + 1]), first_keys[number]
        num_new = rows.stop - rows.start
        assert 0 <= num_new <= max_q
        assert num_new <= num_keys[number] <= max_k
        assert first + num_keys[number] <= len(key)
        if num_new:
            keys = slice(first, first + num_keys[number])
            output[rows] = _attend(query[rows], key[keys], value[keys], scale)
    return output, torch.empty(0)


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    for tensor in (query, key, value):
        assert tensor.dim() == 3
        assert tensor.stride(-1) == 1
        assert tensor.dtype is query.dtype
    assert key.shape == value.shape
    assert query.shape[1] % key.shape[1] == 0


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """The queries are the last tokens of the keys."""
    num_new, num_keys = len(query), len(key)
    mask = torch.ones(num_new, num_keys, dtype=torch.bool).tril(num_keys - num_new).to(query.device)
    heads = scaled_dot_product_attention(
        query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), mask, scale=scale, enable_gqa=True
    )
    return heads.transpose(0, 1)
