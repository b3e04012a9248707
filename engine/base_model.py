"""Where a model's files come from: a local folder, or the hub when there is none yet.

Invariant: only safetensors, JSON and tokenizer files are ever read or fetched; a model that needs
code of its own or pickled weights is refused. A download becomes visible whole, by one rename.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer_tui.safety import durable
from trainer_tui.safety.config import Config, base_model_folder
from trainer_tui.safety.errors import Refused

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model"]
UNWANTED = ["original/*", "onnx/*", "openvino/*", "*.onnx*", "training_args.json"]

# Copied as they are into every checkpoint, where the base model has them.
CARRIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


class ModelRefused(Refused):
    """The model folder cannot be trained from."""


def ensure_base_model(config: Config, root: Path, moved: Callable[[int], None]) -> Path:
    """The folder of the base model, checked; fetched from the hub when it is not there.

    Args:
        moved: called with the bytes fetched so far whenever they have grown.

    Raises:
        ModelRefused: missing and not to be had, or not a folder that we can train from.
    """
    folder = base_model_folder(config, root)
    if not folder.exists():
        if not _HUB_ID.fullmatch(config.model_name):
            raise ModelRefused(
                f"the base model folder {folder} is not there",
                "put a Hugging Face model into it, or set model_name to a hub id (owner/name)",
            )
        _download(config.model_name, folder, moved)
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`, once the folder is seen to be safe and complete.

    Raises:
        ModelRefused: with what is missing or not allowed.
    """
    if not folder.is_dir():
        raise ModelRefused(f"{folder} is not a folder")
    try:
        settings: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        raise ModelRefused(
            f"{folder} has no config.json, so it is no Hugging Face model folder"
        ) from None
    except ValueError as problem:
        raise ModelRefused(f"{folder / 'config.json'} is not JSON: {problem}") from None
    if not any(folder.glob("*.safetensors")):
        pickled = [
            path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)
        ]
        hint = "convert it with: model.save_pretrained(DIR, safe_serialization=True)"
        if pickled:
            raise ModelRefused(f"{folder} has only pickled weights ({pickled[0]})", hint)
        raise ModelRefused(f"{folder} has no *.safetensors weights", hint if pickled else "")
    if not (folder / "tokenizer.json").is_file():
        raise ModelRefused(
            f"{folder} has no tokenizer.json",
            "save it with a fast tokenizer: tokenizer.save_pretrained(DIR)",
        )
    _refuse_own_code(folder, settings)
    return settings


def _refuse_own_code(folder: Path, settings: dict[str, Any]) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = settings.get("model_type")
    if kind in CONFIG_MAPPING:
        return
    needs = " and wants to run code of its own" if "auto_map" in settings else ""
    raise ModelRefused(
        f"{folder}: transformers does not know the model type {kind!r}{needs}",
        "only architectures that transformers itself ships are trained here",
    )


def _download(name: str, folder: Path, moved: Callable[[int], None]) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    durable.make_directory(folder.parent)
    staging = durable.staging_name(folder)
    try:
        with _Watched(staging, moved):
            snapshot_download(
                name, local_dir=staging, allow_patterns=WANTED, ignore_patterns=UNWANTED
            )
        shutil.rmtree(staging / ".cache", ignore_errors=True)
        durable.rename(staging, folder)
    except HfHubHTTPError as problem:
        raise ModelRefused(
            f"the hub refused {name}: {_first_line(problem)}",
            "check model_name; a gated model needs: hf auth login",
        ) from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, OSError) as problem:
        raise ModelRefused(
            f"the base model folder {folder} is not there and {name} cannot be fetched: "
            f"{_first_line(problem)}",
            f"copy the model's folder to {folder}, or go online and try again",
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class _Watched:
    """Reports the growth of a folder while something else fills it."""

    def __init__(self, folder: Path, moved: Callable[[int], None]) -> None:
        self._folder = folder
        self._moved = moved
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="download-watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *problem: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        seen = -1
        while not self._over.wait(1.0):
            size = sum(p.lstat().st_size for p in self._folder.rglob("*") if p.is_file())
            if size != seen:
                seen = size
                self._moved(size)


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def carried_files(folder: Path) -> dict[str, bytes]:
    """Tokenizer and generation files of a model folder, as bytes."""
    return {name: (folder / name).read_bytes() for name in CARRIED if (folder / name).is_file()}
