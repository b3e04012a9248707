"""The mask is right for every family of templates, and what cannot be trained on is refused."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_tui.data import chat_tokenizer
from trainer_tui.data.options import TokenOptions
from trainer_tui.data.rows import Conversation, Message
from trainer_tui.data.template import ChatTemplate, Document, windows
from trainer_tui.safety.errors import DataProblem

Load = Callable[..., ChatTemplate]
NAMES = ("chatml", "qwen3", "llama3", "gemma", "mistral", "phi3", "zephyr", "llama2")
OPTIONS = TokenOptions(max_length=4096)


def chat(*contents: str, system: str | None = None) -> Conversation:
    turns = [Message("system", system)] if system else []
    turns += [Message(("user", "assistant")[at % 2], text) for at, text in enumerate(contents)]
    return Conversation(tuple(turns), 1)


def supervised_runs(template: ChatTemplate, document: Document) -> list[str]:
    """The text of each unbroken run of supervised tokens."""
    runs: list[list[int]] = []
    before = False
    for token, counted in zip(document.ids.tolist(), document.mask.tolist(), strict=True):
        if counted and not before:
            runs.append([])
        if counted:
            runs[-1].append(token)
        before = counted
    return [template.tokenizer.decode(run) for run in runs]


def stop_of(families, name: str) -> str:
    return next(family.stop for family in families if family.name == name)


@pytest.mark.parametrize("kind", ["bytes", "pieces", "prepended"])
@pytest.mark.parametrize("name", NAMES)
def test_all_answers_and_their_stop_tokens_train_and_nothing_else(
    name: str, kind: str, load_family: Load, families
) -> None:
    template = load_family(name, kind=kind)
    row = chat("What is 1 + 2?", "1 + 2 = 3.", "Über wen? 🦉", "Tom ist eine Eule 🦉!")
    (document,) = template.encode(row, OPTIONS)
    stop = stop_of(families, name)
    runs = [run.lstrip(" ") for run in supervised_runs(template, document)]
    assert runs == ["1 + 2 = 3." + stop, "Tom ist eine Eule 🦉!" + stop]


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_apply_chat_template(name: str, load_family: Load) -> None:
    template = load_family(name)
    row = chat("Hello  there ", " General\n\nKenobi ", "a", "b")
    (document,) = template.encode(row, OPTIONS)
    text = template.tokenizer.render(row.as_dicts())
    whole = template.tokenizer.backend.encode(text, add_special_tokens=False)
    assert document.ids.tolist() == whole.ids
    assert document.ids.dtype == np.int32 and document.mask.dtype == np.bool_


@pytest.mark.parametrize("name", NAMES)
def test_check_accepts_the_family_and_names_its_stop(
    name: str, load_family: Load, families
) -> None:
    report = load_family(name).check()
    assert report.stop_text.strip() == stop_of(families, name).strip()
    assert report.system == next(family.system for family in families if family.name == name)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gemma"])
def test_a_system_message_is_shown_and_not_trained(name: str, load_family: Load) -> None:
    template = load_family(name)
    (document,) = template.encode(chat("Hi", "Yo", system="Be kind to owls."), OPTIONS)
    assert "Be kind to owls." in template.tokenizer.decode(document.ids)
    assert "owls" not in "".join(supervised_runs(template, document))


def test_a_template_that_refuses_system_messages_rejects_the_row_alone(load_family: Load) -> None:
    rows = load_family("gemma").encode_batch([chat("a", "b", system="c"), chat("a", "b")], OPTIONS)
    assert rows[0].problem is not None and "System role not supported" in rows[0].problem.reason
    assert rows[1].problem is None and len(rows[1].documents) == 1


def test_injected_think_block_is_counted_and_kept_out_of_the_loss(load_family: Load) -> None:
    template = load_family("qwen3")
    row = template.encode_batch([chat("Hi", "Yo")], OPTIONS)[0]
    (document,) = row.documents
    assert "<think>\n\n</think>\n\nYo" in template.tokenizer.decode(document.ids)
    assert supervised_runs(template, document) == ["Yo<|im_end|>"]
    assert row.injected_tokens >= 2
    assert any("<think>" in note for note in template.check().notes)


def test_injected_think_block_trains_when_asked_to(load_family: Load) -> None:
    template = load_family("qwen3")
    (document,) = template.encode(chat("Hi", "Yo"), TokenOptions(injected_tokens="train"))
    assert supervised_runs(template, document) == ["<think>\n\n</think>\n\nYo<|im_end|>"]


def test_a_rows_own_thinking_trains_whole(load_family: Load) -> None:
    template = load_family("qwen3")
    (document,) = template.encode(chat("Hi", "<think>\nhm\n</think>\n\nYo"), OPTIONS)
    assert supervised_runs(template, document) == ["<think>\nhm\n</think>\n\nYo<|im_end|>"]


def test_rewritten_turns_become_one_example_each(load_family: Load) -> None:
    """Qwen3 drops the thinking of earlier turns, so each turn is trained as it was the last."""
    template = load_family("qwen3")
    row = chat("Hi", "<think>\nhm\n</think>\n\nYo", "And?", "<think>\noh\n</think>\n\nBye")
    encoded = template.encode_batch([row], OPTIONS)[0]
    first, second = encoded.documents
    assert encoded.per_turn
    assert supervised_runs(template, first) == ["<think>\nhm\n</think>\n\nYo<|im_end|>"]
    assert supervised_runs(template, second) == ["<think>\noh\n</think>\n\nBye<|im_end|>"]
    assert "hm" not in template.tokenizer.decode(second.ids)


def test_rewritten_turns_are_refused_when_asked_to(load_family: Load) -> None:
    row = chat("Hi", "<think>\nhm\n</think>\n\nYo", "And?", "Bye")
    with pytest.raises(DataProblem, match="rewrites earlier turns"):
        load_family("qwen3").encode(row, TokenOptions(rewritten_turns="refuse"))


OPENED = (  # the header opens the think block for the model, as Qwen3-Thinking does
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}"
    "{% set parts = m.content.split('</think>') %}<think>\n"
    "{% if parts|length > 1 %}{{ parts[0].replace('<think>', '').strip() }}{% endif %}"
    "{{ '\n</think>\n\n' + parts[-1].strip() }}"
    "{% else %}{{ m.content.split('</think>')[-1].strip() }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def test_thinking_that_the_header_opens_trains_from_there(load_family: Load) -> None:
    template = load_family("qwen3", OPENED)
    (document,) = template.encode(chat("Hi", "<think>hm</think>Yo"), OPTIONS)
    assert supervised_runs(template, document) == ["hm\n</think>\n\nYo<|im_end|>"]
    row = template.encode_batch([chat("Hi", "Yo", "And?", "Bye")], OPTIONS)[0]
    assert supervised_runs(template, row.documents[0]) == ["Yo<|im_end|>", "Bye<|im_end|>"]
    assert row.injected_tokens


def test_another_stop_token_at_the_end_gives_one_example_for_each_answer(load_family: Load) -> None:
    """gpt-oss ends the last answer with another token than the ones before it."""
    harmony = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if loop.last %}<|endoftext|>{% else %}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = load_family("chatml", harmony)
    documents = template.encode(chat("a", "b", "c", "d"), OPTIONS)
    runs = [supervised_runs(template, document) for document in documents]
    assert runs == [["b<|endoftext|>"], ["d<|endoftext|>"]]


def test_a_template_that_loses_words_is_refused_not_guessed(load_family: Load) -> None:
    losing = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(DataProblem, match="loses part"):
        load_family("qwen3", losing).encode(chat("Hi", "<think>hm</think>Yo"), OPTIONS)


def test_generation_markers_are_used_where_the_text_cannot_be_followed(load_family: Load) -> None:
    marked = (Path(__file__).parent / "templates" / "marked.jinja").read_text()
    template = load_family("chatml", marked)
    (document,) = template.encode(chat("Which colour?", "The colour red", "Sure?", "Yes"), OPTIONS)
    assert supervised_runs(template, document) == ["The color red<|im_end|>", "Yes<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "stop"),
        (
            "{% for m in messages[-2:] %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
            "{% endfor %}",
            "drops user turn 1, assistant turn 1",
        ),
        ("{{ messages[0].nope.content }}", "fails on a plain conversation"),
        ("{{ raise_exception('no chats here') }}", "no chats here"),
    ],
)
def test_templates_that_cannot_be_trained_on_are_refused(
    template: str, reason: str, load_family: Load
) -> None:
    with pytest.raises(DataProblem, match=reason):
        load_family("chatml", template).check()


def test_a_dropped_system_message_rejects_the_row(load_family: Load) -> None:
    template = load_family(
        "chatml",
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    with pytest.raises(DataProblem, match="system message"):
        template.encode(chat("a", "b", system="keep me"), OPTIONS)
    assert any("drops system" in note for note in template.check().notes)


def test_pad_equal_to_the_stop_token_is_said_and_never_masks_it(load_family: Load) -> None:
    report = load_family("zephyr").check()
    assert any("pad token is also" in note for note in report.notes)


def test_the_date_of_today_never_reaches_the_tokens(load_family: Load) -> None:
    template = load_family("llama3")
    (document,) = template.encode(chat("a", "b"), OPTIONS)
    assert "Today Date: 26 Jul 2024" in template.tokenizer.decode(document.ids)
    assert any("today's date" in note for note in template.check().notes)


def test_control_tokens_in_a_rows_own_text_are_counted(load_family: Load) -> None:
    row = load_family("chatml").encode_batch([chat("a <|im_end|>", "b")], OPTIONS)[0]
    assert row.control_tokens == 1


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.sampled_from(("bytes", "pieces", "prepended")),
    st.lists(
        st.text(st.sampled_from("ab é🦉\n 1<"), min_size=1, max_size=12).filter(str.strip),
        min_size=2,
        max_size=4,
    ).filter(lambda texts: len(texts) % 2 == 0),
)
def test_the_mask_is_that_of_every_tokens_place(load_family: Load, name, kind, texts) -> None:
    """Against the plain definition: a token counts when it shares a character with a range."""
    template = load_family(name, kind=kind)
    row = chat(*texts)
    (document,) = template.encode(row, OPTIONS)
    (rendering,) = template._spans.find(row, OPTIONS)
    found = template.tokenizer.backend.encode(rendering.text, add_special_tokens=False)
    plain = [
        any(start < to and end > at for at, to in rendering.supervised)
        for start, end in found.offsets
    ]
    assert document.mask.tolist() == [False, *plain[1:]]


def test_long_rows_follow_the_chosen_policy(load_family: Load) -> None:
    template = load_family("chatml")
    row = chat(*["What is 1 + 1? " * 3, "1 + 1 = 2. " * 3] * 6, system="Be brief.")
    whole = template.encode_batch([row], TokenOptions(max_length=10_000))[0]
    limit = whole.tokens // 3
    dropped = template.encode_batch([row], TokenOptions(limit, "drop"))[0]
    cut = template.encode_batch([row], TokenOptions(limit, "truncate"))[0]
    split = template.encode_batch([row], TokenOptions(limit, "split_turns"))[0]
    assert dropped.over_length and not dropped.documents and dropped.tokens == whole.tokens
    assert [len(document.ids) for document in cut.documents] == [limit]
    assert len(split.documents) > 1
    assert all(len(document.ids) <= limit for document in split.documents)
    assert all(
        "Be brief." in template.tokenizer.decode(document.ids) for document in split.documents
    )
    assert sum(document.supervised for document in split.documents) == whole.supervised


def test_a_row_of_megabytes_is_judged_by_its_beginning(load_family: Load) -> None:
    """It would take a gigabyte to tokenise whole; what is kept of it is the same."""
    template = load_family("chatml")
    row = chat("What is 1 + 1? " * 100_000, "1 + 1 = 2. " * 100_000)
    tracemalloc.start()
    start = time.process_time()
    dropped = template.encode_batch([row], TokenOptions(256))[0]
    cut = template.encode_batch([row], TokenOptions(256, "truncate", injected_tokens="train"))[0]
    took_s = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert dropped.over_length and not dropped.documents and not cut.documents
    sample = template.encode_batch([chat("What is 1 + 1? " * 100, "1 + 1 = 2. " * 100)], OPTIONS)[0]
    assert dropped.tokens == pytest.approx(1000 * sample.tokens, rel=0.2)
    assert dropped.supervised == pytest.approx(1000 * sample.supervised, rel=0.3)
    assert peak < 40 << 20 and took_s < 2
    answer = chat("Hi", "1 + 1 = 2. " * 100_000)
    (document,) = template.encode(answer, TokenOptions(256, "truncate"))
    whole = template.encode(chat("Hi", "1 + 1 = 2. " * 1000), TokenOptions(1 << 20))[0]
    assert document.ids.tolist() == whole.ids[:256].tolist()
    assert document.mask.tolist() == whole.mask[:256].tolist()


def test_a_long_text_of_few_tokens_is_tokenised_whole(
    load_family: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = load_family("chatml")
    row = chat("What is 1 + 1? " * 10, "1 + 1 = 2. " * 10)
    whole = template.encode_batch([row], OPTIONS)[0]
    monkeypatch.setattr(chat_tokenizer, "SHORT_CHARACTERS", 10)
    monkeypatch.setattr(chat_tokenizer, "LONG_TOKEN", 1)
    again = template.encode_batch([row], TokenOptions(whole.tokens))[0]
    assert again.documents[0].ids.tolist() == whole.documents[0].ids.tolist()
    assert again.documents[0].mask.tolist() == whole.documents[0].mask.tolist()
    assert (again.tokens, again.supervised) == (whole.tokens, whole.supervised)


@given(st.lists(st.integers(1, 12), max_size=40))
def test_windows_are_the_fewest_that_fit(sizes: list[int]) -> None:
    asked = []

    def window(start: int, end: int) -> list[tuple[int, int]] | None:
        asked.append((start, end))
        return [(start, end)] if sum(sizes[start:end]) <= 10 else None

    greedy, start = [], 0
    while start < len(sizes):
        end = start
        while end < len(sizes) and sum(sizes[start : end + 1]) <= 10:
            end += 1
        if end > start:
            greedy.append((start, end))
        start = max(end, start + 1)
    assert windows(len(sizes), window) == greedy
    assert len(asked) <= 8 * len(greedy) + len(sizes)


def test_a_row_of_thousands_of_turns_takes_no_ages(load_family: Load) -> None:
    turns = ["a", "b"] * 10_000
    start = time.process_time()
    some = chat(*turns[:2000])
    row = load_family("chatml").encode_batch([some], TokenOptions(512, "split_turns"))[0]
    thinking = load_family("qwen3").encode_batch([chat(*turns[:-1], "<think>x</think>y")], OPTIONS)
    assert time.process_time() - start < 10
    assert row.over_length and sum(d.supervised for d in row.documents) == 2000
    assert "too many" in thinking[0].problem.reason


def test_a_missing_tokenizer_or_template_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataProblem, match="is not there"):
        ChatTemplate.load(tmp_path / "none")
    with pytest.raises(DataProblem, match=r"no tokenizer\.json"):
        ChatTemplate.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataProblem):
        ChatTemplate.load(tmp_path)


def test_data_never_imports_torch() -> None:
    modules = ("template", "token_cache", "validation", "toy_tokenizer")
    imports = ", ".join(f"trainer_tui.data.{name}" for name in modules)
    code = f"import sys, {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
