"""The numeric core on tiny Qwen3 and Llama models: packing, loss, accumulation, the NaN guard."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trainer_tui.engine.attention import (
    AttentionRefused,
    attach_packed_attention,
    hidden_states,
    prove_isolation,
)
from trainer_tui.engine.batch import MicroBatch, collate
from trainer_tui.engine.fast_blocks import decoder_blocks
from trainer_tui.engine.head_loss import forward_loss_sum, verify_head
from trainer_tui.engine.optimizer import AdamSettings, MasterAdamW

VOCABULARY = 101
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def qwen3() -> nn.Module:
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True))


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def mistral_with_window() -> nn.Module:
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=7))


def gemma2_with_caps() -> nn.Module:
    return Gemma2ForCausalLM(Gemma2Config(**SHAPE, sliding_window=7, query_pre_attn_scalar=8))


ALL_MODELS = [qwen3, llama, mistral_with_window, gemma2_with_caps]


def build(make: object, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = make()  # type: ignore[operator]
    attach_packed_attention(model, "sdpa_documents")
    return model


def documents(seed: int, lengths: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [(generator.integers(1, VOCABULARY, size=n), generator.random(n) < 0.6) for n in lengths]


def logits(model: nn.Module, batch: MicroBatch) -> Tensor:
    head: Tensor = model.get_output_embeddings().weight  # type: ignore[operator, union-attr]
    return hidden_states(model, batch) @ head.t()


@pytest.mark.parametrize("make", ALL_MODELS)
def test_packed_documents_do_not_see_each_other(make: object) -> None:
    model = build(make).eval()
    first, second = documents(1, (23, 31))
    changed = ((first[0] + 1) % VOCABULARY, first[1])
    with torch.no_grad():
        before = logits(model, collate([first, second], "cpu"))[23:]
        after = logits(model, collate([changed, second], "cpu"))[23:]
    assert torch.equal(before, after)
    prove_isolation(model)


def test_a_leak_between_documents_is_noticed() -> None:
    torch.manual_seed(0)
    model = qwen3()
    attach_packed_attention(model, "sdpa_documents")
    from trainer_tui.engine import attention

    def leaking(*args: object, document_lengths: tuple[int, ...], **kwargs: object) -> object:
        return attention.sdpa_documents(
            *args,
            document_lengths=(sum(document_lengths),),
            **kwargs,  # type: ignore[arg-type]
        )

    attention.AttentionInterface.register("trainer_tui_documents", leaking)
    try:
        with pytest.raises(AttentionRefused, match="see each other"):
            prove_isolation(model)
    finally:
        attach_packed_attention(model, "sdpa_documents")


@pytest.mark.parametrize("make", ALL_MODELS)
def test_the_last_feed_forward_sees_the_supervised_rows_alone_and_nothing_else_changes(
    make: object,
) -> None:
    narrowed, plain = build(make), build(make)
    block = decoder_blocks(plain)[-1]
    takes_rows = make is not gemma2_with_caps  # which has norms behind its layers
    assert ("forward" in vars(block)) == takes_rows
    vars(block).pop("forward", None)
    batch = collate(documents(4, (23, 31, 7)), "cpu")
    rows_fed: list[int] = []
    decoder_blocks(narrowed)[-1].mlp.register_forward_hook(  # type: ignore[union-attr, operator]
        lambda module, given, output: rows_fed.append(given[0].shape[1])
    )
    losses = [forward_loss_sum(model, batch) for model in (narrowed, plain)]
    assert torch.allclose(*losses, rtol=1e-6)
    for loss in losses:
        loss.backward()
    for mine, theirs in zip(narrowed.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert rows_fed == [len(batch.predict_from) if takes_rows else batch.tokens]


@pytest.mark.parametrize("make", ALL_MODELS)
def test_packed_loss_is_the_unpacked_loss_of_the_models_own_forward(make: object) -> None:
    model = build(make).eval()
    rows = documents(2, (5, 40, 17, 1, 29))
    packed = forward_loss_sum(model, collate(rows, "cpu"), chunk_rows=16)
    plain = build(make).eval()
    plain.set_attn_implementation("eager")  # type: ignore[operator]
    expected = torch.zeros(())
    for ids, mask in rows:
        labels = torch.where(torch.from_numpy(mask), torch.from_numpy(ids), -100)[None]
        if (labels[:, 1:] == -100).all():
            continue
        out = plain(input_ids=torch.from_numpy(ids)[None]).logits[0, :-1]
        expected = expected + nn.functional.cross_entropy(out, labels[0, 1:], reduction="sum")
    torch.testing.assert_close(packed, expected, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("make", ALL_MODELS)
def test_the_head_computes_the_models_own_logits(make: object) -> None:
    verify_head(build(make))


def test_the_first_token_of_a_document_is_never_a_target() -> None:
    everything = [(ids, np.ones(len(ids), bool)) for ids, _ in documents(3, (4, 1, 6))]
    batch = collate(everything, "cpu")
    assert batch.predict_from.tolist() == [0, 1, 2, 5, 6, 7, 8, 9]
    assert batch.labels.tolist() == batch.input_ids[0][batch.predict_from + 1].tolist()
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5]]
    assert batch.document_starts.tolist() == [0, 4, 5, 11]
    assert batch.document_starts.dtype == torch.int32
    assert batch.longest == 6


@pytest.mark.parametrize("make", [qwen3, llama])
def test_accumulation_of_1_2_and_8_is_the_same_update(make: object) -> None:
    rows = documents(4, (12, 30, 9, 22, 17, 28, 5, 40))
    results = []
    for parts in (1, 2, 8):
        model = build(make).train()
        optimizer = MasterAdamW(model, settings=AdamSettings(weight_decay=0.1))
        for _ in range(3):
            optimizer.zero_grad()
            size = len(rows) // parts
            batches = [collate(rows[i * size : (i + 1) * size], "cpu") for i in range(parts)]
            for batch in batches:
                forward_loss_sum(model, batch).backward()
            optimizer.clip_and_step(1e-3, float(sum(b.supervised for b in batches)), 1.0)
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(results[2], results[0], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("precision", ["fp32", "split", "pure_bf16"])
def test_a_nan_step_changes_nothing_and_is_counted(precision: str) -> None:
    model = build(qwen3)
    if precision != "fp32":
        model = model.to(torch.bfloat16)
    optimizer = MasterAdamW(model, precision)  # type: ignore[arg-type]
    batch = collate(documents(5, (20, 30)), "cpu")
    forward_loss_sum(model, batch).backward()
    stats = optimizer.clip_and_step(1e-3, float(batch.supervised), 1.0)
    assert stats.skipped.item() == 0.0
    before = {
        n: t.clone() for n, t in [*model.state_dict().items(), *optimizer.state_tensors().items()]
    }
    optimizer.zero_grad()
    forward_loss_sum(model, batch).backward()
    next(iter(optimizer.parameters)).grad.view(-1)[3] = float("nan")  # type: ignore[union-attr]
    stats = optimizer.clip_and_step(1e-3, float(batch.supervised), 1.0)
    assert stats.skipped.item() == 1.0
    after = {**model.state_dict(), **optimizer.state_tensors()}
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_an_unknown_backend_and_a_missing_one_are_errors() -> None:
    torch.manual_seed(0)
    model = qwen3()
    with pytest.raises(AttentionRefused, match="no attention backend"):
        attach_packed_attention(model, "padded")
    with pytest.raises(AttentionRefused, match="No packed attention"):
        forward_loss_sum(model, collate(documents(6, (8,)), "cpu"))


@pytest.mark.parametrize("backend", ["varlen", "flex", "triton"])
def test_a_backend_that_cannot_run_here_is_an_error_and_not_a_warning(backend: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(AttentionRefused, match="cannot run here"):
        attach_packed_attention(qwen3(), backend)


def test_float32_weights_under_autocast_attend_in_one_type() -> None:
    model = build(qwen3).train()
    batch = collate(documents(7, (20, 30)), "cpu")
    exact = forward_loss_sum(model, batch).detach()
    with torch.autocast("cpu", torch.bfloat16):
        loss = forward_loss_sum(model, batch)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(g.dtype == torch.float32 for g in gradients)
    torch.testing.assert_close(loss.detach(), exact, rtol=1e-2, atol=0.0)
