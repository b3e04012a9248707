"""Template families as they are published, each with a small tokenizer that has its tokens."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trainer_tui.data import toy_chats
from trainer_tui.data.template import ChatTemplate

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Family:
    """`stop` ends a turn; `system` is whether the template takes a system message."""

    name: str
    special: tuple[str, ...]
    stop: str
    eos: str
    pad: str
    bos: str | None = None
    system: bool = True


IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
L3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
FAMILIES = (
    Family("chatml", IM, "<|im_end|>", "<|im_end|>", "<|endoftext|>"),
    Family("qwen3", (*IM, "<think>", "</think>"), "<|im_end|>", "<|im_end|>", "<|endoftext|>"),
    Family("llama3", (*L3, "<|eot_id|>"), "<|eot_id|>", "<|eot_id|>", "<|end_of_text|>", L3[0]),
    Family(
        "gemma",
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        "<eos>",
        "<pad>",
        "<bos>",
        system=False,
    ),
    Family("mistral", ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "</s>", "</s>", "<s>"),
    Family(
        "phi3",
        ("<|endoftext|>", "<|assistant|>", "<|user|>", "<|system|>", "<|end|>"),
        "<|end|>",
        "<|endoftext|>",
        "<|endoftext|>",
    ),
    Family("zephyr", ("<s>", "</s>"), "</s>", "</s>", "</s>", "<s>"),
    Family("llama2", ("<s>", "</s>"), " </s>", "</s>", "</s>", "<s>"),
)


@functools.cache
def _trained(special: tuple[str, ...]) -> str:
    texts = toy_chats.generate(rows_per_file=60).texts()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


@functools.cache
def _trained_on_pieces(special: tuple[str, ...], prepended: bool) -> str:
    """As Llama 2, Mistral and Gemma have it: spaces as ▁, bytes for what is not in the vocabulary.

    With `prepended` a normaliser puts one ▁ before the text, so places shift against characters.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    steps = [normalizers.Prepend("▁"), replace] if prepended else [replace]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    pieces = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", *special, *pieces], show_progress=False
    )
    tokenizer.train_from_iterator(toy_chats.generate(rows_per_file=60).texts(), trainer)
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = [one for one in saved["added_tokens"] if one["content"] not in pieces]
    return json.dumps(saved)


def write_model_folder(
    folder: Path, family: Family, template: str | None = None, kind: str = "bytes"
) -> Path:
    if kind == "bytes":
        text = _trained(family.special)
    else:
        text = _trained_on_pieces(family.special, kind == "prepended")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text),
        eos_token=family.eos,
        pad_token=family.pad,
        bos_token=family.bos,
    )
    wrapped.chat_template = template or (TEMPLATES / f"{family.name}.jinja").read_text()
    wrapped.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def families() -> tuple[Family, ...]:
    return FAMILIES


@pytest.fixture(scope="session")
def load_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ChatTemplate]:
    """`load_family("qwen3")`, or with a template text of one's own on a family's tokens; `kind` of
    tokenizer is bytes, pieces or prepended."""
    made: dict[tuple[str, str | None, str], ChatTemplate] = {}

    def load(name: str, template: str | None = None, kind: str = "bytes") -> ChatTemplate:
        key = (name, template, kind)
        if key not in made:
            family = next(one for one in FAMILIES if one.name == name)
            folder = tmp_path_factory.mktemp(name)
            made[key] = ChatTemplate.load(write_model_folder(folder, family, template, kind))
        return made[key]

    return load
