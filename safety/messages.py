"""What daemon and trainer say to each other over the pipe: tagged structs, msgpack, never pickle.

Nothing here is proof of anything committed: that is read from disk (`safety.manifest`).
"""

from __future__ import annotations

from typing import Any

import msgspec

MAX_FRAME_BYTES = 4 << 20


class _Message(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True):
    pass


# --- the trainer's birth certificate ------------------------------------------------------------


class TrainerSpec(msgspec.Struct, frozen=True):
    """Everything a trainer needs to start. `config` is `Config.model_dump(mode="json")`."""

    run_id: str
    workspace: str
    config: dict[str, Any]
    heartbeat: str


# --- daemon -> trainer --------------------------------------------------------------------------


class Train(_Message, frozen=True, tag="train"):
    """Train this job; its directory is in `processing/`. The trainer finds its own cursor.
    `others`: jobs of the same content that are not done; what they have begun stays theirs."""

    job_id: int
    name: str
    folder: str
    file_sha256: str
    others: tuple[int, ...] = ()


class NothingWaits(_Message, frozen=True, tag="nothing_waits"):
    """The queue is empty: commit what is not committed, stay warm."""


class Pause(_Message, frozen=True, tag="pause"):
    """Finish the step, commit, stay warm; with `release` exit and so free the GPU."""

    release: bool = False


class Resume(_Message, frozen=True, tag="resume"):
    pass


class Stop(_Message, frozen=True, tag="stop"):
    """`after_file`: finish the file first. Otherwise finish the step. Commit, then exit 0."""

    after_file: bool = False


class Skip(_Message, frozen=True, tag="skip"):
    """Set the job aside after this step; what it taught stays."""

    job_id: int


class SaveNow(_Message, frozen=True, tag="save_now"):
    """Commit now. `evaluate_whole`: with the loss of the whole validation set at this step, even
    when every step is committed already."""

    evaluate_whole: bool = False


class LetGo(_Message, frozen=True, tag="let_go"):
    """A version is to be restored: finish the step, commit, let go of the `.writer` lock, and wait.
    Answered by `HasLetGo`; `TakeUp` or `Stop` follows."""


class TakeUp(_Message, frozen=True, tag="take_up"):
    """Take the lock again and go on: from memory, or from the newest checkpoint when that is no
    longer the trainer's own. Answered by `TakenUp`."""


class Reconfigure(_Message, frozen=True, tag="reconfigure"):
    """Live keys only; the rest of the config is frozen for the trainer's life."""

    values: dict[str, Any]


# --- trainer -> daemon --------------------------------------------------------------------------


class Ready(_Message, frozen=True, tag="ready"):
    """Loaded. `checkpoint` names where it resumed from; empty means the base model."""

    global_step: int
    lineage: int
    checkpoint: str
    device: str
    precision: str
    attention: str
    parameters: int
    tokens: int
    config_hash: str
    notes: list[str] = []


class WantJob(_Message, frozen=True, tag="want_job"):
    """No job in hand: answer with Train or NothingWaits."""


class JobStarted(_Message, frozen=True, tag="job_started"):
    """`step_index` > 0 after a resume. `rows` are the ones to be trained."""

    job_id: int
    steps: int
    step_index: int
    rows: int
    tokens: int
    supervised_tokens: int
    notes: list[str] = []


class StepDone(_Message, frozen=True, tag="step"):
    """One optimizer step, sent every `log_steps`. Rates are over the interval since the last."""

    global_step: int
    job_id: int
    epoch: int
    step_index: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    supervised_tokens: int
    tokens_per_s: float
    supervised_tokens_per_s: float
    step_s: float
    skipped: bool = False
    memory_bytes: int = 0
    mfu: float = 0.0
    extra: dict[str, float] = {}


class Evaluated(_Message, frozen=True, tag="evaluated"):
    """`series`: fixed | holdout | probe. `whole` when the whole set was used."""

    global_step: int
    series: str
    set_id: str
    loss: float
    rows: int
    supervised_tokens: int
    seconds: float
    whole: bool = False
    job_id: int = 0


class JobTrained(_Message, frozen=True, tag="job_trained"):
    """Every step done. The job stays in `processing/` until a committed manifest says so."""

    job_id: int
    global_step: int


class JobRefused(_Message, frozen=True, tag="job_refused"):
    """This file cannot be trained (permanent) or was set aside (`error_class` "skipped")."""

    job_id: int
    error_class: str
    message: str
    hint: str = ""
    fraction: float = 0.0


class WantRollback(_Message, frozen=True, tag="want_rollback"):
    """After `JobRefused`: the ladder asks for the version before the current state. The daemon
    does what a person's rollback does. `reason`: the kind of incident."""

    job_id: int
    reason: str
    text: str


class Committed(_Message, frozen=True, tag="committed"):
    """A checkpoint was renamed into place; look at the disk for what it holds."""

    global_step: int
    folder: str
    bytes_written: int
    seconds: float
    reason: str


class Paused(_Message, frozen=True, tag="paused"):
    global_step: int


class Resumed(_Message, frozen=True, tag="resumed"):
    global_step: int


class HasLetGo(_Message, frozen=True, tag="has_let_go"):
    """Everything is committed, and anybody may commit another state."""

    global_step: int


class TakenUp(_Message, frozen=True, tag="taken_up"):
    """With `loads` another state is being loaded: the job in hand is put down, and `Ready` and
    `WantJob` follow as after a start. Otherwise training goes on as it was."""

    global_step: int
    loads: bool = False


class Stopping(_Message, frozen=True, tag="stopping"):
    """The last message: exit 0 follows."""

    global_step: int
    reason: str


class Said(_Message, frozen=True, tag="said"):
    """An event for people. `level`: info | warning | error; `topic`: what it is about."""

    level: str
    topic: str
    text: str
    data: dict[str, Any] = {}


class Failed(_Message, frozen=True, tag="failed"):
    """The trainer cannot go on; exit 1 follows. Also written to `error.json`."""

    error_class: str
    message: str
    hint: str
    phase: str
    global_step: int
    job_id: int = 0
    stack: str = ""


ToTrainer = (
    Train | NothingWaits | Pause | Resume | Stop | Skip | SaveNow | LetGo | TakeUp | Reconfigure
)
FromTrainer = (
    Ready
    | WantJob
    | JobStarted
    | StepDone
    | Evaluated
    | JobTrained
    | JobRefused
    | WantRollback
    | Committed
    | Paused
    | Resumed
    | HasLetGo
    | TakenUp
    | Stopping
    | Said
    | Failed
)

_encoder = msgspec.msgpack.Encoder()
_to_trainer: msgspec.msgpack.Decoder[ToTrainer] = msgspec.msgpack.Decoder(ToTrainer)
_from_trainer: msgspec.msgpack.Decoder[FromTrainer] = msgspec.msgpack.Decoder(FromTrainer)


def encode(message: ToTrainer | FromTrainer) -> bytes:
    return _encoder.encode(message)


def decode_for_trainer(frame: bytes) -> ToTrainer:
    """Raises msgspec.ValidationError."""
    return _to_trainer.decode(frame)


def decode_from_trainer(frame: bytes) -> FromTrainer:
    """Raises msgspec.ValidationError."""
    return _from_trainer.decode(frame)
