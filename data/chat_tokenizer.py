"""A Hugging Face model folder's tokenizer and chat template, loaded without torch.

Invariant: equal hashes give equal renderings and equal tokens. What would make a rendering depend
on the day (`strftime_now`) is pinned, so that tokens made again are the same tokens.
Never runs code from the folder: the template is rendered by transformers' sandboxed Jinja.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from trainer_tui.safety.errors import DataProblem

# Shadows the global that tells the day; macros cannot be passed in as arguments.
_PINNED_DAY = (
    "{%- macro strftime_now(format) -%}{{ format"
    "|replace('%Y','2024')|replace('%y','24')|replace('%m','07')|replace('%B','July')"
    "|replace('%b','Jul')|replace('%d','26')|replace('%-d','26')|replace('%A','Friday')"
    "|replace('%a','Fri')|replace('%H','12')|replace('%M','00')|replace('%S','00') }}"
    "{%- endmacro -%}"
)


SHORT_CHARACTERS = 1 << 16  # texts up to this are always tokenised whole
LONG_TOKEN = 12  # characters; few texts have more on average


class TemplateRefused(Exception):
    """The template raised its own exception for this conversation; the text says which."""


class Encoded:
    """The tokens of one text, and where a range of its characters is among them.

    `characters`: how much of the text was tokenised, from its start.
    """

    __slots__ = ("_encoding", "characters", "ids")

    def __init__(self, encoding: Any, characters: int) -> None:
        self._encoding = encoding
        self.ids: Sequence[int] = encoding.ids
        self.characters = characters

    def tokens_of(self, start: int, end: int) -> tuple[int, int]:
        """The tokens that share a character with `text[start:end]`, as a range.

        A token that joins the last character before `start` to the first after it counts: it is
        one that has to be produced. Asking the tokenizer for the two ends is many times quicker
        than fetching the place of every token (of which it makes a tuple each).
        """
        end = min(end, self.characters)
        first = self._first_with(start, end)
        if first is None:
            return 0, 0
        last = self._last_with(end)
        return first, max(first, last + 1)

    def _first_with(self, start: int, end: int) -> int | None:
        for char in range(start, end):
            token = self._encoding.char_to_token(char)
            if token is not None:
                return int(token)
        return None

    def _last_with(self, end: int) -> int:
        """The last token that holds the character before `end`, or one further ahead when that
        one belongs to no token (a trimmed space)."""
        for char in range(end - 1, -1, -1):
            token = self._encoding.char_to_token(char)
            if token is not None:
                return self._last_piece(int(token), char)
        return -1

    def _last_piece(self, token: int, char: int) -> int:
        """A character of several bytes may be spread over several tokens."""
        while token + 1 < len(self.ids):
            place = self._encoding.token_to_chars(token + 1)
            if place is None or not place[0] <= char < place[1]:
                break
            token += 1
        return token


class ChatTokenizer:
    """Text in, tokens out; messages in, text out. Holds no torch."""

    def __init__(self, tokenizer: Any, tokenizer_hash: str, model_stop_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        self.tokenizer_hash = tokenizer_hash
        self.template: str = tokenizer.chat_template
        self.template_hash = hashlib.sha256(self.template.encode()).hexdigest()
        self.tells_the_day = "strftime_now" in self.template
        self._rendered = _PINNED_DAY + self.template if self.tells_the_day else self.template
        added: dict[int, Any] = tokenizer.added_tokens_decoder
        self.added_ids = frozenset(added)
        self.added_texts = {str(token): token_id for token_id, token in added.items()}
        self.pad_id: int | None = tokenizer.pad_token_id
        self.bos_id: int | None = tokenizer.bos_token_id
        eos = tokenizer.eos_token_id
        self.stop_ids = model_stop_ids | (frozenset() if eos is None else frozenset({eos}))
        self.vocabulary = len(tokenizer)

    @classmethod
    def load(cls, folder: Path) -> ChatTokenizer:
        """Read `tokenizer.json`, its config and the chat template of a model folder.

        Raises:
            DataProblem: a part is missing or damaged; the message names it.
        """
        if not folder.is_dir():
            raise DataProblem(
                f"the model folder {folder} is not there",
                "put a Hugging Face model there, or set base_model in config.toml",
            )
        if not (folder / "tokenizer.json").is_file():
            raise DataProblem(
                f"{folder} has no tokenizer.json",
                "save it once with a fast tokenizer: AutoTokenizer.from_pretrained(…)"
                ".save_pretrained(FOLDER)",
            )
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except (ValueError, OSError, KeyError, TypeError) as problem:
            reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            raise DataProblem(f"the tokenizer in {folder} cannot be read: {reason}") from None
        except Exception as problem:  # noqa: BLE001 - the Rust parser raises a bare Exception
            raise DataProblem(f"the tokenizer in {folder} is damaged: {problem}") from None
        if not isinstance(tokenizer.chat_template, str):
            raise DataProblem(
                f"{folder} has no chat template",
                "use the instruct model, or put its chat_template.jinja into the folder",
            )
        return cls(tokenizer, _tokenizer_hash(folder), _model_stop_ids(folder))

    def render(self, messages: list[dict[str, str]], *, prompt: bool = False) -> str:
        """The conversation as text; with `prompt` the answer's header follows.

        Raises:
            TemplateRefused: the template raised.
        """
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages,
                    chat_template=self._rendered,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            )
        except TemplateError as problem:
            raise TemplateRefused(problem.message or type(problem).__name__) from None
        except (TypeError, ValueError, IndexError, KeyError) as problem:
            raise TemplateRefused(f"{type(problem).__name__}: {problem}") from None

    def generation_spans(self, messages: list[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
        """Text and the character ranges inside `{% generation %}`; none without the markers.

        Raises:
            TemplateRefused: the template raised.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        if not self.has_generation_markers:
            return "", []
        try:
            texts, spans = render_jinja_template(
                conversations=[messages],
                chat_template=self._rendered,
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
            )
        except TemplateError as problem:
            raise TemplateRefused(problem.message or type(problem).__name__) from None
        return str(texts[0]), [(int(start), int(end)) for start, end in spans[0]]

    @property
    def has_generation_markers(self) -> bool:
        return "endgeneration" in self.template

    def encode_batch(self, texts: list[str], enough: int | None = None) -> list[Encoded]:
        """Tokens and their places, on all cores. Nothing is added.

        Args:
            enough: of a text that has more tokens than this, only a beginning that shows so needs
                to be tokenised. A token takes about 250 bytes here, so that rows of megabytes
                would take gigabytes.
        """
        limit = None if enough is None else max(SHORT_CHARACTERS, enough * LONG_TOKEN)
        found = self._encode([text[:limit] for text in texts])
        for at, text in enumerate(texts):
            if limit is not None and len(text) > limit and len(found[at].ids) <= (enough or 0):
                found[at] = self._encode([text])[0]  # of unusually long tokens
        return found

    def _encode(self, texts: list[str]) -> list[Encoded]:
        found = self.backend.encode_batch(texts, add_special_tokens=False)
        return [Encoded(one, len(text)) for one, text in zip(found, texts, strict=True)]

    def count_batch(self, texts: list[str]) -> list[int]:
        """Tokens in each text, without offsets (quicker)."""
        found = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [len(encoding.ids) for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        return str(self.backend.decode(list(ids), skip_special_tokens=False))


def _tokenizer_hash(folder: Path) -> str:
    """Over what decides tokens: `tokenizer.json`, and the special tokens a template may use."""
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes())
    settings = _json_of(folder / "tokenizer_config.json")
    settings.pop("chat_template", None)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _model_stop_ids(folder: Path) -> frozenset[int]:
    """`eos_token_id` of the generation config, or of the model's: where generation stops."""
    for name in ("generation_config.json", "config.json"):
        value = _json_of(folder / name).get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        found = frozenset(token_id for token_id in ids if type(token_id) is int)
        if found:
            return found
    return frozenset()


def _json_of(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as problem:
        raise DataProblem(f"{path} is damaged: {problem}") from None
    return value if isinstance(value, dict) else {}
