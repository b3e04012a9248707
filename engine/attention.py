"""Attention in which packed documents cannot see each other, for any model that asks for its
attention through transformers' `AttentionInterface`.

Invariant: a backend is used only when it isolates documents exactly and can run what the model
asks for (device, precision, sliding window, soft-cap); otherwise `AttentionRefused` is raised,
never a warning. `prove_isolation` shows it on the model at hand.

The backends and the order `auto` tries them in are in `fast_attention.py`; `sdpa_documents`, the
plain one that runs everywhere and is never compiled, is here.

Limits: causal decoders with full or sliding-window layers. Chunked, linear and bidirectional
layers, attention sinks and position biases are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from trainer_tui.engine.batch import MicroBatch, collate
from trainer_tui.engine.last_block import last_feed_forward, narrow_last_block
from trainer_tui.safety.errors import Refused

KNOWN_LAYERS = {"full_attention", "sliding_attention"}


class AttentionRefused(Refused):
    """The attention asked for cannot be had on this model or device."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model asks of its attention."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    group: int  # query heads that share a key/value head
    windows: frozenset[int]  # sliding windows in use, in tokens; empty for full attention
    softcap: float | None
    dropout: float


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to compute packed attention.

    `forward` has transformers' attention signature; `arguments` makes, once per micro-batch, the
    keyword arguments that travel through the model to it; `why_not` names what it lacks for a
    demand, or is None. `compiles`: the function can stand inside `torch.compile`.
    """

    name: str
    forward: Callable[..., tuple[Tensor, None]]
    arguments: Callable[[MicroBatch, Demand], dict[str, Any]]
    why_not: Callable[[Demand], str | None]
    compiles: bool


def interface_name(backend: str) -> str:
    """The backend's name in transformers' registry.

    transformers takes any name with "sdpa" in it for its own and then refuses models whose class
    does not vouch for SDPA (Gemma 2), so ours must not contain it.
    """
    return "trainer_tui_" + backend.replace("sdpa_", "")


def refuse_unknown(given: dict[str, Any]) -> None:
    """Raise for features that would change the result if they were ignored.

    Raises:
        AttentionRefused: attention sinks, a position bias, or a bidirectional layer.
    """
    for feature in ("s_aux", "position_bias"):
        if given.get(feature) is not None:
            raise AttentionRefused(f"Packed attention does not know the model's `{feature}`.")
    if given.get("is_causal") is False:
        raise AttentionRefused("Packed attention is causal, but the model asks for more.")


def in_compute_type(*tensors: Tensor) -> list[Tensor]:
    """The tensors in autocast's type where it is on.

    Autocast leaves float32 what a norm with float32 weights returns, so queries and keys arrive
    in another type than values.
    """
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [t.to(torch.get_autocast_dtype(device)) for t in tensors]


def _one_document(
    query: Tensor,  # [1, heads, length, head_dim]
    key: Tensor,  # [1, kv_heads, length, head_dim]
    value: Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    length = query.shape[2]
    grouped = query.shape[1] != key.shape[1]
    windowed = window is not None and window < length
    if softcap is None and not windowed:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        )
    distance = torch.arange(length, device=query.device)
    distance = distance[:, None] - distance[None, :]  # [length, length], query minus key
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    if softcap is None:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, visible, dropout_p=dropout, scale=scaling, enable_gqa=grouped
        )
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, float("-inf"))
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return nn.functional.dropout(weights, dropout, training=dropout > 0) @ value


def sdpa_documents(
    module: nn.Module,
    query: Tensor,  # [1, heads, tokens, head_dim]
    key: Tensor,  # [1, kv_heads, tokens, head_dim]
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    document_lengths: tuple[int, ...],
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """One call per document: the reference all others are held against. [1, tokens, heads, dim]."""
    refuse_unknown(unused)
    given = in_compute_type(query, key, value)
    parts = (torch.split(t, list(document_lengths), 2) for t in given)
    outputs = [
        _one_document(q, k, v, scaling, dropout, sliding_window, softcap)
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


SDPA_DOCUMENTS = Backend(
    name="sdpa_documents",
    forward=sdpa_documents,
    arguments=lambda batch, demand: {"document_lengths": batch.lengths},
    why_not=lambda demand: None,
    compiles=False,
)


def demand_of(model: nn.Module) -> Demand:
    """What the model's configuration asks of its attention.

    Raises:
        AttentionRefused: a kind of layer that no backend of ours knows.
    """
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    name = type(model).__name__
    if not getattr(model, "_supports_attention_backend", False):
        raise AttentionRefused(
            f"{name} does not compute its attention through transformers' interface.",
            "Use a model whose class supports attention backends (Qwen3, Llama, Gemma, Mistral…).",
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - KNOWN_LAYERS:
        strange = ", ".join(sorted(kinds - KNOWN_LAYERS))
        raise AttentionRefused(f"{name} has layers of a kind we cannot pack: {strange}.")
    if getattr(config, "is_causal", True) is False or getattr(
        config, "use_bidirectional_attention", False
    ):
        raise AttentionRefused(f"{name} is configured as bidirectional, not as a causal decoder.")
    window = getattr(config, "sliding_window", None)
    uses_window = window is not None and (
        "sliding_attention" in kinds or getattr(config, "layer_types", None) is None
    )
    parameter = next(model.parameters())
    heads = config.num_attention_heads
    return Demand(
        device=parameter.device,
        dtype=parameter.dtype,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        group=heads // (getattr(config, "num_key_value_heads", None) or heads),
        windows=frozenset([int(window)]) if uses_window and window is not None else frozenset(),
        softcap=getattr(config, "attn_logit_softcapping", None),
        dropout=float(getattr(config, "attention_dropout", 0.0) or 0.0),
    )


def attach_packed_attention(
    model: nn.Module, backend: str = "auto", compute_dtype: torch.dtype | None = None
) -> str:
    """Make `model` compute packed attention with `backend`; returns the backend's name.

    Args:
        backend: a name of `fast_attention.BACKENDS`, or "auto" for the fastest that can run.
        compute_dtype: the precision attention will run in, when autocast makes it another than
            the parameters'.

    Raises:
        AttentionRefused: the backend is unknown, or cannot run this model on its device.
    """
    from trainer_tui.engine.fast_attention import AUTO_ORDER, BACKENDS  # it builds on this file

    demand = demand_of(model)
    if compute_dtype is not None:
        demand = replace(demand, dtype=compute_dtype)
    if backend == "auto":
        chosen = next(b for n in AUTO_ORDER if (b := BACKENDS[n]).why_not(demand) is None)
    elif backend in BACKENDS:
        chosen = BACKENDS[backend]
        reason = chosen.why_not(demand)
        if reason is not None:
            raise AttentionRefused(
                f"The attention backend `{backend}` cannot run here: {reason}.",
                'Set the backend to "auto".',
            )
    else:
        raise AttentionRefused(
            f"There is no attention backend called `{backend}`.",
            "Known: auto, " + ", ".join(BACKENDS) + ".",
        )
    # Deliberately not registered with AttentionMaskInterface: transformers then builds no mask,
    # where a registered one makes it look for packed sequences, a host sync every forward.
    AttentionInterface.register(interface_name(chosen.name), chosen.forward)
    model.set_attn_implementation(interface_name(chosen.name))  # type: ignore[operator]
    narrow_last_block(model)
    return chosen.name


def attached_backend(model: nn.Module) -> Backend:
    """The backend that `attach_packed_attention` set.

    Raises:
        AttentionRefused: none was attached, so documents would see each other.
    """
    from trainer_tui.engine.fast_attention import BACKENDS

    name = str(getattr(model.config, "_attn_implementation", ""))
    for backend in BACKENDS.values():
        if interface_name(backend.name) == name:
            return backend
    raise AttentionRefused(f"No packed attention is attached to this model (found `{name}`).")


def document_arguments(model: nn.Module, batch: MicroBatch) -> dict[str, Any]:
    """Keyword arguments for `model.model(...)` that tell attention where documents end."""
    return attached_backend(model).arguments(batch, demand_of(model))


def sample_batch(
    model: nn.Module, lengths: tuple[int, ...] = (101, 153, 17), second_shifted_by: int = 0
) -> MicroBatch:
    """Seeded random documents on the model's device, for proofs before the first step."""
    device = next(model.parameters()).device
    generator = np.random.default_rng(0)
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    documents = [generator.integers(0, vocabulary, size=n) for n in lengths]
    documents[1] = (documents[1] + second_shifted_by) % vocabulary
    return collate([(ids, np.ones(len(ids), bool)) for ids in documents], device)


@torch.no_grad()
def prove_isolation(model: nn.Module, tokens: int = 300) -> None:
    """Perturb one document and require every other one's hidden states unchanged to the bit.

    Raises:
        AttentionRefused: some bit moved.
    """
    lengths = (tokens // 3 + 1, tokens // 2 + 3, 17)
    was_training = model.training
    model.eval()
    states = [hidden_states(model, sample_batch(model, lengths, by)) for by in (0, 1)]
    model.train(was_training)
    middle = slice(lengths[0], lengths[0] + lengths[1])
    moved = (states[0] != states[1]).any(-1)
    moved[middle] = False
    # The host waits here, once, before the first step.
    if bool(moved.any()):
        raise AttentionRefused(
            f"The attention backend `{attached_backend(model).name}` lets packed documents "
            "see each other on this machine.",
            'Set the backend to "sdpa_documents" and report this.',
        )


def hidden_states(model: nn.Module, batch: MicroBatch, rows: Tensor | None = None) -> Tensor:
    """The decoder's last hidden states of a packed micro-batch, [tokens, hidden].

    With `rows`, int64 and each at most once, only those, [rows, hidden].
    """
    decoder = model.base_model
    narrow = rows is not None and last_feed_forward(model) is not None
    output = decoder(  # type: ignore[operator]
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        use_cache=False,
        **document_arguments(model, batch),
        **({"wanted_rows": rows} if narrow else {}),
    )
    states: Tensor = output.last_hidden_state[0]
    return states if rows is None or narrow else states.index_select(0, rows)
