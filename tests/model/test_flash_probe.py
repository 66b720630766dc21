"""The probe lets the reference pass and nothing that differs from it where it matters."""

from collections.abc import Callable
from typing import Any, NoReturn, cast

import pytest
import torch

from guardwire_server.model.cuda_forward import FlashAttention, flash_attention
from guardwire_server.model.flash_probe import find_fault
from tests.model.flash_reference import reference_flash

NAMES = ("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal")


def fault(attention: FlashAttention, dtype: torch.dtype = torch.bfloat16) -> str | None:
    return find_fault(attention, torch.device("cpu"), dtype, num_heads=4, num_kv_heads=2, head_dim=32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_reference_passes(dtype: torch.dtype) -> None:
    assert fault(reference_flash, dtype) is None


def changed(name: str, change: Callable[[dict[str, Any]], object]) -> FlashAttention:
    """The reference, over an arena without NaN, called with another value of one argument."""

    def attention(*arguments: object, **options: object) -> tuple[torch.Tensor, ...]:
        given: dict[str, Any] = dict(zip((*NAMES, "return_debug_mask"), arguments, strict=True)) | options
        given |= {tensor: given[tensor].nan_to_num(0.5) for tensor in ("key", "value")}
        return reference_flash(**(given | {name: change(given)}))

    return cast(FlashAttention, attention)


@pytest.mark.parametrize(
    "attention",
    [
        changed("cum_seq_k", lambda given: torch.zeros_like(given["cum_seq_k"])),
        changed("seqused_k", lambda given: (given["seqused_k"] - 1).clamp(min=given["cum_seq_q"].diff())),
        changed("seqused_k", lambda given: given["seqused_k"] + (given["seqused_k"] > 1).int()),
        changed("scale", lambda given: 2 * given["scale"]),
        changed("key", lambda given: given["key"].flip(1)),
        changed("query", lambda given: given["query"].roll(1, 0)),
    ],
    ids=["starts", "a key less", "a key more", "scale", "heads", "rows"],
)
def test_a_difference_is_found(attention: FlashAttention) -> None:
    assert "not what is needed" in str(fault(attention))


def test_a_slot_that_is_read_though_it_does_not_count_is_found() -> None:
    """Its score is masked, but its value is multiplied by 0, which leaves NaN what it is."""

    def attention(*arguments: object, **options: object) -> tuple[torch.Tensor, ...]:
        given: dict[str, Any] = dict(zip((*NAMES, "return_debug_mask"), arguments, strict=True)) | options
        output, *others = reference_flash(**given)
        return output + 0 * given["key"].sum(), *others

    assert "nan" in str(fault(cast(FlashAttention, attention)))


def test_an_operator_that_refuses_is_not_used() -> None:
    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    assert "only supports Ampere" in str(fault(cast(FlashAttention, refuse)))


def test_pytorchs_own_is_not_for_a_cpu() -> None:
    assert "cannot be used" in str(fault(flash_attention()))
