"""Compiling a decoder block by block, and recomputing activations where memory is short.

Invariant: results are those of the uncompiled model within rounding; one compilation serves all
blocks and all micro-batch lengths (`dynamic=True`), so nothing is compiled again between steps.

The whole model at once would take five times longer to compile and run no faster: what there is
to fuse lies inside a block, and the output head is computed elsewhere (`head_loss.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
from torch import fx, nn

from trainer_tui.engine.attention import AttentionRefused, attached_backend, prove_isolation
from trainer_tui.engine.fused_proof import prove_fused, unfuse

LINEARS = (nn.functional.linear, torch._C._nn.linear)


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The model's repeated blocks, in order.

    Raises:
        AttentionRefused: the decoder keeps them under a name we do not know.
    """
    decoder = getattr(model, "base_model", model)
    for name in ("layers", "h", "blocks"):
        blocks = getattr(decoder, name, None)
        if isinstance(blocks, nn.ModuleList):
            return blocks
    raise AttentionRefused(f"{type(model).__name__} keeps its blocks under an unknown name.")


def join_linears_of_one_input(graph: fx.Graph) -> int:
    """Turn linear layers that read the same tensor into one product; returns how many were joined.

    Query, key and value are separate modules, so a block runs three narrow matrix products
    forward and six backward where one and two wide ones do. Joining the weights costs a copy of a
    few MB; their gradients come out as slices of one tensor. Layers that are wide already (gate
    and up) are left alone: laying their gradients side by side costs more than it gains.
    """
    by_input: dict[Any, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.target in LINEARS and _is_narrow(node):
            by_input.setdefault(node.args[0], []).append(node)
    joined = 0
    for source, linears in by_input.items():
        if len(linears) < 2:
            continue
        weights: list[Any] = [node.args[1] for node in linears]
        sizes = [int(weight.meta["example_value"].shape[0]) for weight in weights]
        after = _last_defined(graph, [source, *weights])
        with graph.inserting_after(after):
            weight = graph.call_function(torch.cat, (weights, 0))
        with graph.inserting_after(weight):
            product = graph.call_function(nn.functional.linear, (source, weight))
        with graph.inserting_after(product):
            parts = graph.call_function(torch.split, (product, sizes, -1))
        place = parts
        for number, node in enumerate(linears):
            with graph.inserting_after(place):
                place = graph.call_function(_item, (parts, number))
            place.meta.update(node.meta)
            node.replace_all_uses_with(place)
            graph.erase_node(node)
        joined += len(linears)
    return joined


def _is_narrow(node: fx.Node) -> bool:
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    if len(node.args) < 2 or bias is not None:
        return False
    source, weight = node.args[:2]
    if not isinstance(source, fx.Node) or not isinstance(weight, fx.Node):
        return False
    shape = getattr(weight.meta.get("example_value"), "shape", None)
    return shape is not None and len(shape) == 2 and int(shape[0]) <= 2 * int(shape[1])


def _item(parts: tuple[torch.Tensor, ...], number: int) -> torch.Tensor:
    return parts[number]


def _last_defined(graph: fx.Graph, wanted: list[fx.Node]) -> fx.Node:
    last: fx.Node | None = None
    for node in graph.nodes:
        if node in wanted or node.op == "placeholder":
            last = node
    assert last is not None  # a graph without inputs has no linear layers
    return last


def _joining(inner: Callable[..., Any]) -> Callable[..., Any]:
    def backend(module: fx.GraphModule, example_inputs: list[Any]) -> Any:
        if join_linears_of_one_input(module.graph):
            module.recompile()
        return inner(module, example_inputs)

    return backend


def compile_where_it_helps(model: nn.Module, device: torch.device, memory_budget: float) -> str:
    """`compile_blocks` on a GPU, where the attention that was attached can be compiled.

    Returns:
        Why the fused operators are not used, in a sentence; empty when nothing is amiss.
    """
    if device.type != "cuda" or not attached_backend(model).compiles:
        return ""
    try:
        compile_blocks(model, memory_budget=memory_budget)
        return ""
    except AttentionRefused as problem:
        unfuse(model)
        compile_blocks(model, fuse=False, memory_budget=memory_budget)
        return f"slower than it could be: {problem.message} They are left out."


def compile_blocks(
    model: nn.Module,
    backend: str = "inductor",
    join: bool = True,
    fuse: bool = True,
    memory_budget: float = 1.0,
) -> int:
    """Compile every decoder block in place; the first step pays for it.

    Args:
        backend: a name `torch.compile` knows.
        join: run narrow linear layers of one input as one product.
        fuse: use the fused operators where the model allows it (`fast_qkv.py`, `fast_mlp.py`);
            they are proven equal to the model's own forward, and to isolate documents, first.
        memory_budget: share of the activations that may be kept for the backward pass, 0..1.
            At 0.9 cheap pointwise results are computed again instead, about a fifth of the
            memory; below about 0.7 attention is computed twice.

    Returns how many modules got a fused operator.

    Raises:
        AttentionRefused: the attached attention backend cannot be compiled, or a proof failed.
    """
    from trainer_tui.engine.fast_qkv import fuse_attention

    attention = attached_backend(model)
    if not attention.compiles:
        raise AttentionRefused(f"The attention backend `{attention.name}` runs uncompiled only.")
    fused = fuse_attention(model) if fuse else 0
    if fused:
        prove_fused(model)
        prove_isolation(model)
    # A norm's epsilon is a constant; as a "dynamic" float it would become an input of every call.
    torch._dynamo.config.specialize_float = True
    torch._functorch.config.activation_memory_budget = memory_budget
    inner = torch._dynamo.lookup_backend(backend)
    # One object for all blocks: Dynamo keys its code by backend, and shares it between blocks.
    compiler: Any = _joining(inner) if join else inner
    for block in decoder_blocks(model):
        block.compile(dynamic=True, backend=compiler)
    # The norm after the last block, uncompiled, would read and keep several float32 copies.
    last_norm = getattr(getattr(model, "base_model", model), "norm", None)
    if isinstance(last_norm, nn.Module):
        last_norm.compile(dynamic=True, backend=compiler)
    return fused


def recompute_activations(model: nn.Module, every: int = 1) -> None:
    """Keep only the inputs of every `every`-th block and compute it again in the backward pass.

    1 recomputes all blocks (about a third more arithmetic, least memory), 2 every other one, and
    so on; 0 none.
    """
    if every <= 0:
        return
    model.gradient_checkpointing_enable(  # type: ignore[operator]
        gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    for number, block in enumerate(decoder_blocks(model)):
        flagged: Any = block
        flagged.gradient_checkpointing = number % every == 0
