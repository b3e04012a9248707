"""The bare matrix products of a step, and nothing else: a speed no training step can pass.

Forward, gradient of the input and gradient of the weight of every linear layer on a step's
tokens, and of the head on its supervised rows in the chunks the loss uses. No attention, no
norms, no optimizer, on random data (zeros would run faster than real numbers).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import models
from benchmarks.measuring import Clock, Measurement, device_name, versions


@dataclass(frozen=True, slots=True)
class Settings:
    """Which products."""

    name: str = "bare matrix products"
    shape: str = "qwen3-0.6b"
    device: str = "cuda"
    tokens: int = 32_512
    supervised: int = 19_500
    chunk_rows: int = 4096
    warm_steps: int = 5
    steps_per_repeat: int = 6  # as long as the contenders' repeats: a hot card runs slower
    repeats: int = 3


def _layer_sizes(shape: str) -> list[tuple[int, int]]:
    """(inputs, outputs) of one block's linear layers."""
    s = models.SHAPES[shape]
    width, inner = s["hidden_size"], s["intermediate_size"]
    queries = s["num_attention_heads"] * s["head_dim"]
    keys = s["num_key_value_heads"] * s["head_dim"]
    attention = [(width, queries), (width, keys), (width, keys), (queries, width)]
    return [*attention, (width, inner), (width, inner), (inner, width)]


def _three_products(x: Tensor, weight: Tensor) -> None:
    y = x @ weight.t()
    torch.mm(y, weight)
    torch.mm(y.t(), x)


def run(settings: Settings) -> Measurement:
    """Time the products of several steps, as the contenders time theirs."""
    dtype = torch.bfloat16 if settings.device == "cuda" else torch.float32
    shape = models.SHAPES[settings.shape]
    torch.manual_seed(models.SEED)
    make = {"device": settings.device, "dtype": dtype}
    sizes = _layer_sizes(settings.shape)
    weights = [torch.randn(o, i, **make) * i**-0.5 for i, o in sizes]  # type: ignore[arg-type]
    inputs = {i: torch.randn(settings.tokens, i, **make) for i, _ in sizes}  # type: ignore[arg-type]
    head = torch.randn(shape["vocab_size"], shape["hidden_size"], **make)  # type: ignore[arg-type]
    head *= shape["hidden_size"] ** -0.5
    rows = torch.randn(settings.supervised, shape["hidden_size"], **make)  # type: ignore[arg-type]
    measurement = Measurement(settings.name, device_name())
    measurement.notes = versions("torch")

    def step() -> None:
        for _ in range(shape["num_hidden_layers"]):
            for weight in weights:
                _three_products(inputs[weight.shape[1]], weight)
        for chunk in rows.split(settings.chunk_rows):
            _three_products(chunk, head)

    steps = settings.warm_steps + settings.repeats * settings.steps_per_repeat
    clock = Clock(
        measurement,
        [settings.tokens] * steps,
        [settings.supervised] * steps,
        settings.warm_steps,
        settings.steps_per_repeat,
    )
    for _ in range(steps):
        step()
        clock.step_done()
    return measurement
