"""AdamW on bf16 weights whose 16 low bits are kept beside them, so the master weight is exact.

Invariant: `join(weight, low)` is the float32 master, bit for bit; `weight` is that master rounded
to the nearest bf16 (ties away from zero), so forward passes read what autocast would have cast.
Proof: with u the master's 32 bits, high = (u + 0x8000) >> 16 and low = u - (high << 16) lies in
[-32768, 32767], which int16 holds.

Moments kept in bf16 are rounded stochastically. Rounded to nearest they would freeze: the second
moment moves by 0.1 % a step where bf16 resolves 0.4 %. The random bits are a hash of (step,
parameter, element), so a resumed run draws the same.

On CUDA one Triton kernel per parameter (`fast_split_kernel.py`); elsewhere the same arithmetic
in plain torch, which the tests hold the kernel against.

Source of the split: Zamirai et al., Revisiting BFloat16 Training (arXiv 2010.06192).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer_tui.engine.optimizer import STEP, AdamSettings, Moments, is_decayed
from trainer_tui.safety.errors import Refused

GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: spreads parameter numbers over the hash's input


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """float32 master -> (bfloat16 weight, int16 low bits), exactly."""
    bits = master.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    high = ((bits + 0x8000) >> 16) & 0xFFFF
    low = bits - (high << 16)
    low = torch.where(low < -0x8000, low + (1 << 32), low)  # high wrapped past 0xFFFF
    weight = _wrap16(high).view(torch.bfloat16)
    return weight, low.to(torch.int16)


def join(weight: Tensor, low: Tensor) -> Tensor:
    """(bfloat16 weight, int16 low bits) -> float32 master, exactly."""
    high = weight.contiguous().view(torch.int16).to(torch.int32) << 16
    return (high + low.to(torch.int32)).view(torch.float32)


def _wrap16(bits: Tensor) -> Tensor:
    return torch.where(bits >= 0x8000, bits - 0x10000, bits).to(torch.int16)


def random_bits(step: int, parameter: int, count: int) -> Tensor:
    """The 16 random bits of each element, int64 [count]; Wellons' lowbias32 hash."""
    mask = 0xFFFFFFFF
    x = torch.arange(count, dtype=torch.int64) + (parameter * GOLDEN + step * 0x85EBCA6B & mask)
    x &= mask
    x ^= x >> 16
    x = x * 0x7FEB352D & mask
    x ^= x >> 15
    x = x * 0x846CA68B & mask
    x ^= x >> 16
    return x & 0xFFFF


def round_stochastically(values: Tensor, noise: Tensor) -> Tensor:
    """float32 -> bfloat16, up or down with the probability that keeps the mean."""
    bits = values.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    return _wrap16(((bits + noise.view(values.shape)) >> 16) & 0xFFFF).view(torch.bfloat16)


def advance(step: Tensor, grad_scale: Tensor, found_inf: Tensor, settings: AdamSettings) -> Tensor:
    """Count a step unless it is skipped; float32 [4]: scale, found_inf, bias1, sqrt(bias2)."""
    step += 1.0 - found_inf
    exponent = step.double()  # the power of 0.999 needs more than 24 bits
    bias1 = 1.0 - settings.beta1**exponent
    bias2 = torch.sqrt(1.0 - settings.beta2**exponent)
    return torch.stack([grad_scale.double(), found_inf.double(), bias1, bias2]).float()


class SplitUpdate:
    """The `split` precision of `MasterAdamW`."""

    def __init__(
        self, named: dict[str, nn.Parameter], settings: AdamSettings, moments: Moments
    ) -> None:
        types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        if moments not in types:
            raise Refused(f"Moments of type {moments} are not built.", "Use float32 or bfloat16.")
        dtype = types[moments]
        self._settings = settings
        self._named = named
        self._low = {n: torch.zeros_like(p, dtype=torch.int16) for n, p in named.items()}
        self._mean = {n: torch.zeros_like(p, dtype=dtype) for n, p in named.items()}
        self._square = {n: torch.zeros_like(p, dtype=dtype) for n, p in named.items()}
        device = next(iter(named.values())).device
        self._step = torch.zeros((), dtype=torch.float32, device=device)

    def state(self) -> dict[str, Tensor]:
        tensors = {STEP: self._step}
        for name in self._named:
            tensors[f"{name}.low_half"] = self._low[name]
            tensors[f"{name}.exp_avg"] = self._mean[name]
            tensors[f"{name}.exp_avg_sq"] = self._square[name]
        return tensors

    def restored(self) -> None:
        """Nothing is derived from the state."""

    def adopt_master(self, name: str, master: Tensor) -> None:
        """Start from a float32 weight without losing its low bits."""
        weight, low = split(master)
        self._named[name].data.copy_(weight)
        self._low[name].copy_(low)

    def apply(self, lr: float, grad_scale: Tensor, found_inf: Tensor) -> None:
        scalars = advance(self._step, grad_scale, found_inf, self._settings)
        on_cuda = self._step.is_cuda
        for number, (name, parameter) in enumerate(self._named.items()):
            if parameter.grad is None:
                continue
            decay = self._settings.weight_decay if is_decayed(name, parameter) else 0.0
            tensors = (
                parameter.data,
                self._low[name],
                parameter.grad,
                self._mean[name],
                self._square[name],
            )
            if on_cuda:
                from trainer_tui.engine.fast_split_kernel import launch

                launch(*tensors, scalars, self._step, number, lr, decay, self._settings)
            else:
                _plain_step(*tensors, scalars, self._step, number, lr, decay, self._settings)


def _plain_step(
    weight: Tensor,
    low: Tensor,
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
    """The kernel's arithmetic, in its order, on a CPU."""
    scale, found_inf, bias1, bias2 = (float(s) for s in scalars)
    if found_inf:
        return
    master = join(weight, low)
    g = gradient.float() / scale
    m = mean.float() + (1.0 - settings.beta1) * (g - mean.float())
    v = settings.beta2 * square.float() + (1.0 - settings.beta2) * g * g
    master = master * (1.0 - lr * decay)
    master = master - lr / bias1 * m / (torch.sqrt(v) / bias2 + settings.eps)
    new_weight, new_low = split(master)
    weight.copy_(new_weight)
    low.copy_(new_low)
    if mean.dtype == torch.bfloat16:
        noise = random_bits(int(step), number, master.numel())
        m = round_stochastically(m, noise)
        v = round_stochastically(v, noise ^ 0xFFFF)
    mean.copy_(m)
    square.copy_(v)
