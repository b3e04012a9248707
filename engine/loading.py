"""From the disk to a model that goes on exactly where the last commit stands.

Invariant: it never starts at step 0 when checkpoints exist, and never goes on with a fresh
optimizer unless the manifest itself says that the checkpoint is weights only (then the warm-up
runs again, and a note says so). A damaged checkpoint is marked and the next older one is used.

Caller must hold the `.writer` lock.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainer_tui.data.template import ChatTemplate
from trainer_tui.engine import rng
from trainer_tui.engine.base_model import carried_files, check_folder, ensure_base_model
from trainer_tui.engine.checkpoint import OPTIMIZER, STATE, WEIGHTS
from trainer_tui.engine.images import weights_once
from trainer_tui.engine.optimizer import AdamSettings, MasterAdamW, Moments, Precision
from trainer_tui.engine.progress import Identity, Progress, from_manifest
from trainer_tui.safety import checkpoints, durable
from trainer_tui.safety.checkpoints import BAD_SUFFIX, Newest
from trainer_tui.safety.config import Config, base_model_folder, config_hash, shaping_settings
from trainer_tui.safety.errors import Corrupt, Refused
from trainer_tui.safety.workspace import Workspace

log = logging.getLogger("trainer.loading")


@dataclass(frozen=True, slots=True)
class PrecisionPlan:
    """What a config's `precision` means on this device.

    `memory_budget`: share of the activations kept (`compile_blocks`). `micro_batch_tokens`: where
    the search for what fits begins.
    """

    name: str
    optimizer: Precision
    weights: torch.dtype
    moments: Moments
    autocast: bool
    note: str = ""
    memory_budget: float = 1.0
    micro_batch_tokens: int = 32_768


class AnotherShape(Exception):
    """The checkpoint holds other tensors than the live ones; nothing was changed."""


@dataclass(slots=True)
class Loaded:
    """A model ready to go on. `weights`: the live ones, by their names in a checkpoint. `state`:
    what `trainer_state.json` held, {} from the base model."""

    model: nn.Module
    weights: dict[str, Tensor]
    optimizer: MasterAdamW
    template: ChatTemplate
    stop_id: int
    precision: PrecisionPlan
    progress: Progress
    identity: Identity
    checkpoint: str
    small_files: dict[str, bytes]
    state: dict[str, Any]
    notes: list[str]


def plan_precision(wanted: str, device: torch.device) -> PrecisionPlan:
    """Resolve `auto` and what a CPU cannot do; a CPU trains float32."""
    if device.type == "cpu":
        note = "" if wanted in ("auto", "fp32", "master") else f"a CPU trains fp32, not {wanted}"
        return PrecisionPlan("fp32", "fp32", torch.float32, "float32", False, note)
    match wanted:
        case "auto" | "master":
            return PrecisionPlan("master", "split", torch.bfloat16, "float32", False)
        case "lean":
            return PrecisionPlan(
                "lean", "split", torch.bfloat16, "bfloat16", False,
                memory_budget=0.9, micro_batch_tokens=8192,
            )  # fmt: skip
        case "pure_bf16":
            note = "pure_bf16 loses small updates: at a rate of 1e-5 about 14 % of weights move"
            return PrecisionPlan("pure_bf16", "pure_bf16", torch.bfloat16, "float32", False, note)
        case _:
            return PrecisionPlan("fp32", "fp32", torch.float32, "float32", True)


def load(
    workspace: Workspace, config: Config, device: torch.device, moved: Callable[[int], None]
) -> Loaded:
    """Load the newest verified checkpoint, or the base model when nothing was ever committed.

    Raises:
        Refused: the base model or the settings do not allow training.
        Corrupt: checkpoints exist and none can be resumed from.
        DataProblem: the tokenizer or the chat template cannot be used.
    """
    durable.sweep_staging(workspace.current_model)
    newest = checkpoints.newest_verified(workspace.current_model, believe_note=True)
    notes = _mark_damaged(workspace.current_model, newest)
    base = base_model_folder(config, workspace.root)
    if newest is None or base.exists():
        base = ensure_base_model(config, workspace.root, moved)
    else:
        base = newest.folder
        notes.append("the base model folder is gone; the checkpoint's own tokenizer is used")
    precision = plan_precision(config.precision, device)
    if precision.note:
        notes.append(precision.note)

    template = ChatTemplate.load(base)
    report = template.check()
    notes += report.notes
    identity = Identity(
        config_hash(config),
        template.template_hash,
        template.tokenizer_hash,
        config.model_name,
        _shown_settings(config),
    )
    rng.seed_all(config.seed)
    model = load_model(newest.folder if newest else base, precision.weights).to(device)
    optimizer = _optimizer(model, config, precision)
    progress, state = Progress(), dict[str, Any]()
    if newest is not None:
        _same_tokenizer(newest, identity)
        progress, state = _resume(newest, optimizer, precision, device, notes, moved)
    return Loaded(
        model=model,
        weights=weights_once(model),
        optimizer=optimizer,
        template=template,
        stop_id=report.stop_id,
        precision=precision,
        progress=progress,
        identity=identity,
        checkpoint=newest.folder.name if newest else "",
        small_files={"config.json": _config_json(model), **carried_files(base)},
        state=state,
        notes=notes,
    )


def load_again(
    workspace: Workspace, loaded: Loaded, config: Config, moved: Callable[[int], None]
) -> Loaded:
    """Load the newest verified checkpoint into a model that is there already: the same tensors
    hold it afterwards, so whatever was built around them stays.

    Raises:
        AnotherShape: only `load` can do it; nothing was changed.
        Refused, Corrupt: as `load`. The live state is of no use then.
    """
    durable.sweep_staging(workspace.current_model)
    newest = checkpoints.newest_verified(workspace.current_model, believe_note=True)
    if newest is None:
        raise AnotherShape("no checkpoint is left")
    notes = _mark_damaged(workspace.current_model, newest)
    _same_tokenizer(newest, loaded.identity)
    copy_in(newest.folder / WEIGHTS, loaded.weights, moved)
    rng.seed_all(config.seed)
    device = next(iter(loaded.weights.values())).device
    if newest.manifest.weights_only:
        loaded.optimizer.forget()
    progress, state = _resume(newest, loaded.optimizer, loaded.precision, device, notes, moved)
    return replace(
        loaded, progress=progress, checkpoint=newest.folder.name, state=state, notes=notes
    )


@torch.no_grad()
def copy_in(path: Path, live: Mapping[str, Tensor], moved: Callable[[int], None]) -> None:
    """Overwrite live weights with those of a file, tensor by tensor, in the live types.

    Args:
        moved: called with the bytes read so far.

    Raises:
        AnotherShape: the names or shapes differ; nothing was changed.
        OSError: the file cannot be read; the live weights are a mixture.
    """
    try:
        saved = load_file(path)  # mapped: read as each tensor is copied
    except SafetensorError as problem:
        raise AnotherShape(f"{path} cannot be loaded: {problem}") from None
    shapes = {name: tensor.shape for name, tensor in saved.items()}
    if shapes != {name: tensor.shape for name, tensor in live.items()}:
        raise AnotherShape(f"{path.parent.name} has other tensors than the model that trains")
    done = 0
    for name, tensor in live.items():
        tensor.copy_(saved[name])
        done += saved[name].nbytes
        moved(done)


def _shown_settings(config: Config) -> dict[str, Any]:
    """For whoever compares versions. Not the second location: a version may be given away."""
    settings = shaping_settings(config)
    settings["versioning"].pop("second_location", None)
    return settings


def load_model(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Any Hugging Face causal language model from safetensors, every weight accounted for.

    Raises:
        Refused: the folder is not safe or complete, or weights do not fit the architecture.
    """
    check_folder(folder)
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (SafetensorError, ValueError, OSError, KeyError) as problem:
        raise Refused(f"{folder} cannot be loaded: {str(problem).splitlines()[0]}") from None
    for kind in ("missing_keys", "mismatched_keys"):
        if report.get(kind):
            names = sorted(map(str, report[kind]))
            raise Refused(
                f"{folder}: {len(names)} {kind.replace('_', ' ')} in the weights, {names[0]} first",
                "the weights do not belong to this config.json",
            )
    model.config.use_cache = False
    model.train()
    trained: nn.Module = model
    return trained


def _optimizer(model: nn.Module, config: Config, precision: PrecisionPlan) -> MasterAdamW:
    settings = AdamSettings(config.beta1, config.beta2, config.adam_epsilon, config.weight_decay)
    return MasterAdamW(model, precision.optimizer, settings, precision.moments)


def _mark_damaged(current_model: Path, newest: Newest | None) -> list[str]:
    """Take checkpoints that do not verify out of sight, so that nobody reads them as newest."""
    if newest is None:
        return []
    notes = [f"passed over: {problem}" for problem in newest.passed_over]
    for folder in checkpoints.list_folders(current_model):
        if folder == newest.folder:
            break
        marked = folder.with_name(folder.name + BAD_SUFFIX)
        number = 1
        while marked.exists():
            number += 1
            marked = folder.with_name(f"{folder.name}{BAD_SUFFIX}{number}")
        durable.rename(folder, marked)
        log.error("%s does not verify and is now %s", folder.name, marked.name)
    return notes


def _same_tokenizer(newest: Newest, identity: Identity) -> None:
    if newest.manifest.tokenizer_hash not in ("", identity.tokenizer_hash):
        raise Refused(
            f"the base model's tokenizer is not the one {newest.folder.name} was trained with",
            "put the old base model back, or start a new workspace for the new one",
        )


def _resume(
    newest: Newest,
    optimizer: MasterAdamW,
    precision: PrecisionPlan,
    device: torch.device,
    notes: list[str],
    moved: Callable[[int], None],
) -> tuple[Progress, dict[str, Any]]:
    folder, sealed = newest.folder, newest.manifest
    progress = from_manifest(sealed, folder.name)
    if sealed.weights_only:
        notes.append(
            f"{folder.name} holds weights only: a fresh optimizer, and the warm-up runs again"
        )
        return replace(progress, warmup_origin=progress.global_step), {}
    roles = {entry.role for entry in sealed.files}
    if not {"optimizer", "state"} <= roles:
        lacking = "optimizer" if "optimizer" not in roles else "random state"
        raise Corrupt(
            f"{folder.name} has no {lacking}, and does not say that it is weights only",
            "restore a version: trainer-tui versions list, then trainer-tui versions restore vNNN",
        )
    state: dict[str, Any] = json.loads((folder / STATE).read_bytes())
    trained = state.get("precision", precision.name)
    if trained != precision.name:
        raise Refused(
            f"{folder.name} was trained with precision {trained}, and {precision.name} would now "
            "be used: its optimizer does not fit",
            f'set precision = "{trained}", or restore a version without its optimizer',
        )
    optimizer.load_state_tensors(load_file(folder / OPTIMIZER), moved)
    notes += rng.restore(state.get("rng", {}), state.get("device", "cpu"), device)
    return progress, state


def _config_json(model: nn.Module) -> bytes:
    config: Any = model.config
    text: str = config.to_json_string(use_diff=False)
    settings = json.loads(text)
    settings["use_cache"] = True  # for whoever generates with the checkpoint
    return json.dumps(settings, indent=2, sort_keys=True).encode()
