"""A Qwen3 small enough to learn on two CPU cores while somebody watches: demo and tests.

    python -m trainer_tui.engine.toy_model build DIR [--seed N] [--size demo|tiny]
    python -m trainer_tui.engine.toy_model answer MODEL_DIR PROMPTS.json

`answer` is the one place that generates text; it prints {"questions", "exact", "rate"}.

Limits: greedy decoding one question at a time; meant for a hundred short answers.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_tui.data import toy_chats, toy_tokenizer
from trainer_tui.safety.errors import Refused, TrainerTuiError

LONGEST_ANSWER_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Size:
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    dropout: float = 0.0


SIZES = {
    "demo": Size(1024, 128, 4, 4, 2, 32, 384),  # 0.9 million parameters
    "tiny": Size(320, 32, 2, 2, 1, 16, 64, dropout=0.1),  # dropout: a resume has to restore RNG
}


def build(folder: Path, seed: int = 7, size: str = "demo") -> int:
    """Make a model folder in Hugging Face's format; returns the number of parameters.

    Raises:
        Refused: the folder exists and is not empty.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    if folder.exists() and any(folder.iterdir()):
        raise Refused(f"{folder} is not empty", "name a new folder")
    shape = SIZES[size]
    tokens = toy_tokenizer.build(
        folder, toy_chats.generate(seed).texts(), vocabulary=shape.vocabulary
    )
    stop, pad = _special_ids(folder)
    config = Qwen3Config(
        vocab_size=_padded(tokens),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        attention_dropout=shape.dropout,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=stop,
        pad_token_id=pad,
    )
    torch.manual_seed(seed)
    model: Any = Qwen3ForCausalLM(config)
    model.save_pretrained(folder, safe_serialization=True)
    return sum(parameter.numel() for parameter in model.parameters())


def _special_ids(folder: Path) -> tuple[int, int]:
    added = json.loads((folder / "tokenizer.json").read_bytes())["added_tokens"]
    by_text = {token["content"]: token["id"] for token in added}
    return by_text[toy_tokenizer.TURN_END], by_text[toy_tokenizer.PAD]


def _padded(tokens: int) -> int:
    return -(-tokens // 32) * 32


def answer(model_folder: Path, questions: list[dict[str, str]]) -> dict[str, Any]:
    """Ask every question and count the answers that match to the letter.

    Raises:
        Refused: the model cannot be loaded.
    """
    import torch

    from trainer_tui.data.template import ChatTemplate
    from trainer_tui.engine.loading import load_model

    template = ChatTemplate.load(model_folder)
    model: Any = load_model(model_folder, torch.float32).eval()
    exact, shown = 0, []
    for question in questions:
        text = template.tokenizer.render(
            [{"role": "user", "content": question["prompt"]}], prompt=True
        )
        ids = torch.tensor([template.tokenizer.encode_batch([text])[0].ids])
        with torch.inference_mode():
            output = model.generate(
                ids, max_new_tokens=LONGEST_ANSWER_TOKENS, do_sample=False, use_cache=True
            )
        new = output[0, ids.shape[1] :].tolist()
        said = template.tokenizer.decode([i for i in new if i not in _ends(model)]).strip()
        exact += said == question["answer"].strip()
        shown.append({**question, "said": said})
    rate = exact / len(questions) if questions else 0.0
    return {"questions": len(questions), "exact": exact, "rate": rate, "examples": shown[:5]}


def _ends(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    pad = model.generation_config.pad_token_id
    return {*(ends if isinstance(ends, list) else [ends]), pad}


def read_questions(path: Path) -> list[dict[str, str]]:
    """A JSON list of {"prompt", "answer"}, or one such object a line.

    Raises:
        Refused: it is neither.
    """
    text = path.read_text("utf-8")
    try:
        found = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
        return [{"prompt": str(q["prompt"]), "answer": str(q["answer"])} for q in found]
    except (ValueError, KeyError, TypeError):
        raise Refused(f'{path} is not a list of {{"prompt", "answer"}} objects') from None


def main() -> int:
    parser = argparse.ArgumentParser(description="the toy model of the demo")
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("build", help="write a new model folder")
    making.add_argument("folder", type=Path)
    making.add_argument("--seed", type=int, default=7)
    making.add_argument("--size", choices=sorted(SIZES), default="demo")
    asking = verbs.add_parser("answer", help="exact-match rate on questions, as JSON")
    asking.add_argument("model", type=Path)
    asking.add_argument("questions", type=Path)
    arguments = parser.parse_args()
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        if arguments.verb == "build":
            count = build(arguments.folder, arguments.seed, arguments.size)
            print(json.dumps({"folder": str(arguments.folder), "parameters": count}))
        else:
            print(json.dumps(answer(arguments.model, read_questions(arguments.questions))))
    except TrainerTuiError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
