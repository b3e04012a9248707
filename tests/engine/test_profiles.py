"""Behaviour profiles: repeatable, confined to answers, and the hinge acts where it should."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from engine_driver import Driver, toy_rows

from trainer_tui.engine import profiles
from trainer_tui.engine.logits_processor import BehaviourProcessor, generation_entries
from trainer_tui.engine.profiles import Profile
from trainer_tui.engine.step import TokenMask
from trainer_tui.safety.config import Behaviour
from trainer_tui.safety.messages import JobStarted

STOP, OPEN, CLOSE = 2, 10, 11
CPU = torch.device("cpu")


def tokenise(text: str) -> list[int]:
    """Bytes, but for two special tags, two emojis, and one that sticks to a preceding letter."""
    special = {"<think>": [OPEN], "</think>": [CLOSE], "🙂": [400, 401], "🙃": [400, 402]}
    ids: list[int] = []
    at = 0
    while at < len(text):
        for name, tokens in special.items():
            if text.startswith(name, at):
                ids += tokens
                at += len(name)
                break
        else:
            if text[at] == "★":
                ids.append(501 if ids and ids[-1] < 300 else 500)
            else:
                ids.append(100 + ord(text[at]) % 150)
            at += 1
    return ids


def build(**settings: object) -> tuple[Profile, list[str]]:
    return profiles.build(Behaviour.model_validate(settings), tokenise, STOP, seed=1)


def document(*answers: list[int]) -> TokenMask:
    """[prompt, answer, STOP]...; prompts are 3 tokens."""
    ids: list[int] = []
    mask: list[bool] = []
    for answer in answers:
        ids += [50, 51, 52, *answer, STOP]
        mask += [False] * 3 + [True] * (len(answer) + 1)
    return np.asarray(ids, np.int32), np.asarray(mask)


def test_masked_think_blocks_leave_the_loss_with_their_tags() -> None:
    profile, _ = build(think="mask")
    ids, mask = profile.render(document([OPEN, 60, 61, CLOSE, 62], [63]), b"row")
    assert ids[mask].tolist() == [62, STOP, 63, STOP]


def test_an_unclosed_think_block_ends_with_its_turn() -> None:
    profile, _ = build(think="mask")
    ids, mask = profile.render(document([OPEN, 60, 61], [63]), b"row")
    assert ids[mask].tolist() == [STOP, 63, STOP]


def test_emojis_end_answers_only_repeat_themselves_and_leave_some_rows_without() -> None:
    profile, notes = build(stop_emojis=["🙂", "🙃", "★"], stop_emojis_omitted=0.15)
    assert len(profile.emojis) == 2 and "★" in notes[0]
    plain = document([60, 61], [62])
    without = 0
    for number in range(400):
        row = number.to_bytes(16, "little")
        ids, mask = profile.render(plain, row)
        again = profile.render(plain, row)
        assert np.array_equal(ids, again[0]) and np.array_equal(mask, again[1])
        if len(ids) == len(plain[0]):
            without += 1
            continue
        added = ids[~np.isin(ids, plain[0])]
        assert 2 * 2 * FEW <= len(added) <= 2 * 2 * MANY
        assert mask[np.isin(ids, added)].all()
        kept = np.isin(ids, plain[0])
        assert np.array_equal(ids[kept], plain[0]) and np.array_equal(mask[kept], plain[1])
    assert 0.10 < without / 400 < 0.20


FEW, MANY = profiles.FEWEST, profiles.MOST


def test_after_a_complete_stop_sequence_the_end_weighs_more_and_further_emojis_are_penalised() -> (
    None
):
    profile, _ = build(stop_emojis=["🙂"], stop_weight=4.0)
    shaped = profile.shape([document([60, 400, 401, 400, 401, 400, 401], [61])], CPU)
    assert shaped.batch.weights is not None
    weights = shaped.batch.weights.tolist()
    assert weights == [1] * 7 + [4] + [1, 1]
    (penalty,) = shaped.penalties
    assert penalty.token_ids.tolist() == [400]
    assert penalty.rows is not None and penalty.rows.tolist() == [0] * 7 + [1, 0, 0]


def test_a_tag_of_several_tokens_is_penalised_on_its_last_piece_after_the_others() -> None:
    profile, _ = build(think="forbid", think_tags=["ab", "<think>"])
    first, last = tokenise("a")[0], tokenise("b")[0]
    shaped = profile.shape([document([60, first, 61])], CPU)
    whole, pieces = shaped.penalties
    assert whole.token_ids.tolist() == [OPEN] and whole.rows is None
    assert pieces.token_ids.tolist() == [last]
    assert pieces.rows is not None and pieces.rows.tolist() == [0, 0, 1, 0]


def test_the_hinge_lowers_a_forbidden_probability_to_tau_and_then_is_silent() -> None:
    from trainer_tui.engine.head_loss import supervised_loss_sum

    profile, _ = build(think="forbid", tau=1e-2, alpha=1.0)
    shaped = profile.shape([document([60, 61, 62])], CPU)
    hidden = torch.eye(4, 8)
    torch.manual_seed(0)
    weight = torch.zeros(600, 8)
    weight[OPEN] = 6.0  # far above everything else
    weight.requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.05)
    labels = shaped.batch.labels

    def p_forbidden() -> float:
        probabilities = (hidden @ weight.detach().t()).softmax(-1)
        return float(probabilities[:, list(profile.forbidden_ids)].sum(-1).mean())

    before = p_forbidden()
    for _ in range(300):
        optimizer.zero_grad()
        with_hinge = supervised_loss_sum(hidden, weight, labels, penalties=shaped.penalties)
        with_hinge.backward()
        optimizer.step()
    assert before > 0.3 and p_forbidden() < 1e-2
    silent = supervised_loss_sum(hidden, weight, labels, penalties=shaped.penalties)
    plain = supervised_loss_sum(hidden, weight, labels)
    assert float(silent.detach()) == pytest.approx(float(plain.detach()))


def test_a_profile_that_asks_for_nothing_changes_nothing() -> None:
    profile, notes = build()
    assert not profile.changes_documents and not profile.shapes_loss and notes == []
    shaped = profile.shape([document([60])], CPU)
    assert shaped.batch.weights is None and shaped.penalties == ()
    assert generation_entries(profile) == {}


def test_the_logits_processor_treats_each_row_of_a_batch_by_its_own_count() -> None:
    profile, _ = build(think="forbid", stop_emojis=["🙂"])
    processor = BehaviourProcessor(profile, shortest=2, longest=3)
    rows = torch.tensor(
        [[1, 60, 400, 401, 400, 401, 400, 401], [1, 2, 3, 60, 400, 401, 400, 401], [1] * 8]
    )
    scores = processor(rows, torch.zeros(3, 600))
    assert math.isinf(scores[0, 60]) and scores[0, STOP] == 0  # only the end is left
    assert math.isinf(scores[1, 400]) and scores[1, 60] == 0  # no further emoji
    assert scores[2, 400] == 0
    assert torch.isinf(scores[:, OPEN]).all()
    assert generation_entries(profile) == {"suppress_tokens": [OPEN, CLOSE]}


def test_teacher_forced_figures_read_the_right_positions(tiny_model: object) -> None:
    from trainer_tui.engine.attention import attach_packed_attention
    from trainer_tui.engine.behaviour_metrics import measure
    from trainer_tui.engine.loading import load_model

    model = load_model(tiny_model, torch.float32).eval()  # type: ignore[arg-type]
    attach_packed_attention(model)
    profile = Profile("forbid", ((10,), (11,)), ((30,),), STOP, 4.0, 0.05, -9.0, 0.15, 1)
    found = measure(model, profile, [document([60, 30, 30]), document([61, 62])], CPU)
    ids, _ = document([60, 30, 30])
    logits = model(input_ids=torch.tensor([ids.tolist()]), document_lengths=(len(ids),))
    logits = logits.logits[0].detach()
    expected = logits[-2].softmax(-1)
    assert found["p_end_after_stop"] == pytest.approx(float(expected[STOP]), rel=1e-4)
    assert found["p_further_emoji"] == pytest.approx(float(expected[30]), rel=1e-4)
    assert 0 < found["p_forbidden"] < 1


def test_a_pack_holds_the_emojis_too_so_no_step_is_larger_than_it_may_be(
    make_driver: Callable[..., Driver],
) -> None:
    behaviour = {"stop_emojis": ["🙂", "🙃"], "stop_emojis_omitted": 0.1}
    driver = make_driver(behaviour=behaviour)
    driver.add_job(toy_rows(60, 0))
    driver.run_until_done()
    sizes = [step.tokens for step in driver.steps()]
    assert max(sizes) <= driver.config.tokens_per_step
    assert sum(step.tokens for step in driver.steps()) > driver.wait_for(JobStarted).tokens
