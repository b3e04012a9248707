"""The Triton kernel of `fast_split`'s updates: one read, one write of all that a step touches.

Limits: contiguous tensors of up to 2^31 elements.
"""

# Triton's language has no Python types: its kernels stay unannotated.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from trainer_tui.engine.optimizer import AdamSettings

BLOCK = 1024


@triton.jit
def _rounded(x, noise):
    bits = x.to(tl.uint32, bitcast=True)
    return ((bits + noise) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


# The parameter's number must not be a compile-time constant; that its size divides by 16 must be
# known, or the loads are not wide.
@triton.jit(do_not_specialize=["number"])
def _step_kernel(
    weight_ptr, low_ptr, gradient_ptr, mean_ptr, square_ptr, scalars_ptr, step_ptr,
    count, number, lr, decay, beta1, beta2, eps,
    SPLIT: tl.constexpr, LOW_MOMENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    found_inf = tl.load(scalars_ptr + 1)
    if found_inf == 0.0:
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        scale = tl.load(scalars_ptr)
        bias1 = tl.load(scalars_ptr + 2)
        bias2 = tl.load(scalars_ptr + 3)
        weight = tl.load(weight_ptr + at, mask=inside)
        if SPLIT:
            low = tl.load(low_ptr + at, mask=inside)
            high = weight.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
            bits = high + low.to(tl.int32).to(tl.uint32, bitcast=True)
            master = bits.to(tl.float32, bitcast=True)
        else:
            master = weight.to(tl.float32)
        g = tl.load(gradient_ptr + at, mask=inside).to(tl.float32) / scale
        m = tl.load(mean_ptr + at, mask=inside).to(tl.float32)
        v = tl.load(square_ptr + at, mask=inside).to(tl.float32)
        m = m + (1.0 - beta1) * (g - m)
        v = beta2 * v + (1.0 - beta2) * g * g
        master = master * (1.0 - lr * decay)
        master = master - lr / bias1 * m / (tl.sqrt(v) / bias2 + eps)
        if SPLIT:
            bits = master.to(tl.uint32, bitcast=True)
            new_high = (bits + 0x8000) >> 16
            new_low = (bits - (new_high << 16)).to(tl.int32, bitcast=True).to(tl.int16)
            new_weight = new_high.to(tl.uint16).to(tl.bfloat16, bitcast=True)
            tl.store(weight_ptr + at, new_weight, mask=inside)
            tl.store(low_ptr + at, new_low, mask=inside)
        else:
            tl.store(weight_ptr + at, master.to(tl.bfloat16), mask=inside)
        if LOW_MOMENTS:
            # The same hash as `fast_split.random_bits`: a resumed run draws the same bits.
            step = tl.load(step_ptr).to(tl.uint32)
            x = at.to(tl.uint32) + number.to(tl.uint32) * 0x9E3779B9 + step * 0x85EBCA6B
            x ^= x >> 16
            x = x * 0x7FEB352D
            x ^= x >> 15
            x = x * 0x846CA68B
            x ^= x >> 16
            noise = x & 0xFFFF
            tl.store(mean_ptr + at, _rounded(m, noise), mask=inside)
            tl.store(square_ptr + at, _rounded(v, noise ^ 0xFFFF), mask=inside)
        else:
            tl.store(mean_ptr + at, m.to(mean_ptr.dtype.element_ty), mask=inside)
            tl.store(square_ptr + at, v.to(square_ptr.dtype.element_ty), mask=inside)


def launch(
    weight: Tensor,
    low: Tensor | None,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    scalars: Tensor,
    step: Tensor,
    number: int,
    lr: float,
    decay: float,
    settings: AdamSettings,
) -> None:
    """Queue one parameter's update; scalars is float32 [4]: scale, found_inf, bias1, bias2.

    Without `low` the weight is all there is, and moments are rounded to nearest.
    """
    count = weight.numel()
    _step_kernel[(triton.cdiv(count, BLOCK),)](
        weight, weight if low is None else low, gradient, mean, square, scalars, step,
        count, number, lr, decay, settings.beta1, settings.beta2, settings.eps,
        SPLIT=low is not None, LOW_MOMENTS=low is not None and mean.element_size() == 2,
        BLOCK=BLOCK,
    )  # fmt: skip
