"""Puts the parts together: device, model, attention, writer, loop. No decision is made here.

Limits: one device, the first CUDA one, else the CPU.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import torch

from trainer_tui.data.options import TokenOptions
from trainer_tui.data.validation import ValidationSet
from trainer_tui.engine.attention import (
    attach_packed_attention,
    prove_isolation,
)
from trainer_tui.engine.checkpoint import Committer, NotFinite
from trainer_tui.engine.checkpoint_files import Place
from trainer_tui.engine.control import Control
from trainer_tui.engine.evaluate import Budget, Evaluator, Series
from trainer_tui.engine.fast_blocks import compile_where_it_helps
from trainer_tui.engine.feed import Job, Opener, Pinned, rendered
from trainer_tui.engine.head_loss import verify_head
from trainer_tui.engine.incidents import Watch
from trainer_tui.engine.loading import AnotherShape, Loaded, PrecisionPlan, load, load_again
from trainer_tui.engine.loop import Loop
from trainer_tui.engine.measuring import Measuring
from trainer_tui.engine.metrics import Meter, Sink, open_sinks
from trainer_tui.engine.profiles import Profile
from trainer_tui.engine.saver import Saver
from trainer_tui.engine.session import Session
from trainer_tui.engine.step import Stepper
from trainer_tui.engine.work import TooManyNans, Work
from trainer_tui.safety import durable
from trainer_tui.safety.config import Config, config_hash
from trainer_tui.safety.errors import TrainerTuiError
from trainer_tui.safety.heartbeat import HeartbeatWriter, Phase
from trainer_tui.safety.locks import Lock
from trainer_tui.safety.messages import Ready, Stopping
from trainer_tui.safety.workspace import Workspace

log = logging.getLogger("trainer")


class NanStop(Exception):
    """Training was stopped for NaNs; what was good is committed."""

    error_class = "nan"
    hint = "lower learning_rate, or look at the rows of this file"


class Trainer:
    """Loads on construction; `train` runs until it is time to leave."""

    def __init__(
        self,
        workspace: Workspace,
        config: Config,
        control: Control,
        heart: HeartbeatWriter,
        lock: Lock,
    ) -> None:
        self._workspace = workspace
        self._work: Work | None = None
        self._sinks: list[Sink] = []
        _quiet_transformers()
        device = pick_device(config)
        loaded = load(workspace, config, device, lambda moved: heart.beat(bytes_written=moved))
        self._session = session = self._assemble(config, control, heart, lock, device, loaded)
        session.adopt_state(loaded.state)
        attention = self._prepare_model()
        self._sinks, note = open_sinks(config.tensorboard, workspace.logs / "tensorboard")
        loaded.notes += [note] if note else []
        self._budget = Budget(config.validation.time_share)
        self._attention = attention
        self._ready()

    def _assemble(
        self,
        config: Config,
        control: Control,
        heart: HeartbeatWriter,
        lock: Lock,
        device: torch.device,
        loaded: Loaded,
    ) -> Session:
        place = Place(self._workspace.current_model, self._workspace.ledger)
        committer = Committer(
            place, lock.fd, loaded.weights, loaded.optimizer, loaded.small_files, loaded.identity
        )
        stepper = stepper_of(loaded, config, device)
        stepper.between = lambda index: heart.beat(Phase.MICRO_STEP, micro_step=index)
        stepper.before_update = committer.hold_optimizer
        heart.global_step = loaded.progress.global_step
        return Session(
            workspace=self._workspace,
            config=config,
            device=device,
            loaded=loaded,
            control=control,
            heart=heart,
            stepper=stepper,
            committer=committer,
            meter=Meter(loaded.model, device),
            progress=loaded.progress,
            watch=Watch(),
            saved_step=loaded.progress.global_step,
            lock=lock,
        )

    def _prepare_model(self) -> str:
        """Attention, proofs, compilation, and on a GPU a real step at the largest shape."""
        session, loaded, config = self._session, self._session.loaded, self._session.config
        on_gpu = session.device.type == "cuda"
        compute = torch.bfloat16 if loaded.precision.autocast else None
        attention = attach_packed_attention(loaded.model, config.attention, compute)
        with session.stepper.precision():
            prove_isolation(loaded.model)
            verify_head(loaded.model)
        if on_gpu:
            session.heart.beat(Phase.COMPILE)
            budget = loaded.precision.memory_budget
            if slower := compile_where_it_helps(loaded.model, session.device, budget):
                session.tell("warning", "trainer", slower, hint="report this, with the card's name")
            vocabulary = int(loaded.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
            remembered = _Remembered(self._workspace, session)
            session.stepper.micro_batch_tokens = remembered.limit(
                session.stepper.micro_batch_tokens
            )
            between = session.stepper.between
            session.stepper.between = lambda index: session.heart.beat(Phase.COMPILE)
            session.stepper.preflight(vocabulary, config.max_length)
            session.stepper.between = between
            remembered.note()
        return attention

    def _ready(self) -> None:
        session, loaded = self._session, self._session.loaded
        session.heart.beat(Phase.IDLE)
        session.control.say(
            Ready(
                global_step=session.progress.global_step,
                lineage=session.progress.lineage,
                checkpoint=loaded.checkpoint,
                device=session.device.type,
                precision=loaded.precision.name,
                attention=self._attention,
                parameters=sum(p.numel() for p in loaded.model.parameters()),
                tokens=session.progress.tokens,
                config_hash=config_hash(session.config),
                notes=loaded.notes,
            )
        )

    def train(self) -> None:
        """Raises NanStop, SaveFailed, and whatever else ends a trainer."""
        session = self._session
        loaded = session.loaded
        opener = Opener(
            self._workspace, session.config, loaded.template, loaded.stop_id, session.heart.beat
        )
        try:
            make = self._make_work, self._idle_measuring
            elsewhere = Loop(session, opener, *make).run()
            while elsewhere is not None and self._load_again():
                elsewhere = Loop(session, opener, *make, halted=elsewhere.halted).run()
        except TooManyNans:
            # The updates were skipped, so the weights are still those of the last good boundary.
            session.read_late_figures = lambda: None
            Saver(session).now("nan")
            raise NanStop(
                f"{session.watch.nan_steps} updates in a row gave a NaN or an infinity"
            ) from None
        except NotFinite:
            raise NanStop(
                "the weights hold a NaN or an infinity; this state was not committed"
            ) from None

    def _load_again(self) -> bool:
        """Go on from the newest checkpoint, in this process: the model, its proofs and what was
        compiled stay. False when it does not fit, and only a new process can go on from it."""
        session, heart = self._session, self._session.heart
        self._work = None
        heart.beat(Phase.LOAD)
        try:
            loaded = load_again(
                self._workspace,
                session.loaded,
                session.config,
                lambda moved: heart.beat(bytes_written=moved),
            )
        except AnotherShape as problem:
            reason = f"a new process goes on: {problem}"
            session.control.say(Stopping(session.progress.global_step, reason))
            return False
        session.adopt(loaded)
        self._ready()
        return True

    def _make_work(self, job: Job) -> Work:
        session = self._session
        measuring = self._measuring_with(job.profile)
        measuring.job_id = job.train.job_id
        remembered = _Remembered(self._workspace, session)
        self._work = Work(session, job, measuring, self._sinks, remembered.note)
        return self._work

    def _idle_measuring(self, opener: Opener) -> Measuring:
        """Of the state between two files, with the behaviour profile that the settings name."""
        profile, _ = opener.profile(Pinned.from_config(self._session.config))
        self._session.stepper.shape = profile.shape
        return self._measuring_with(profile)

    def _measuring_with(self, profile: Profile) -> Measuring:
        session = self._session
        evaluator = Evaluator(
            stepper=session.stepper,
            budget=self._budget,
            slice_rows=session.config.validation.slice_rows,
            beat=session.heart.beat,
            urgent=lambda: session.control.urgent,
        )
        return Measuring(session, evaluator, self._fixed_series(profile))

    def _fixed_series(self, profile: Profile) -> Series | None:
        """The workspace's validation set as it is now."""
        config, template = self._session.config, self._session.loaded.template
        try:
            current = ValidationSet.current(self._workspace.validation)
            if current is None:
                return None
            options = TokenOptions.from_config(config)
            tokens = current.open_tokens(template, options, self._workspace.cache, config.intake)
        except TrainerTuiError as problem:
            self._session.tell("error", "validation", problem.message, hint=problem.hint)
            return None

        return Series(
            "fixed", current.id, tokens.documents, lambda at: rendered(tokens, profile, at)
        )

    @property
    def global_step(self) -> int:
        return self._session.progress.global_step

    @property
    def job_in_hand(self) -> int:
        return self._work.job.train.job_id if self._work else 0

    @property
    def rows_in_hand(self) -> list[int]:
        """Line numbers of the step that was being run, for an incident's evidence."""
        if self._work is None or self._work.job.finished:
            return []
        return self._work.job.rows_of_step()

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
        self._session.committer.close()


def pick_device(config: Config) -> torch.device:
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = False
        return torch.device("cuda", 0)
    return torch.device("cpu")


def stepper_of(loaded: Loaded, config: Config, device: torch.device) -> Stepper:
    """What runs this model's steps; nothing hears of them yet."""
    return Stepper(
        model=loaded.model,
        optimizer=loaded.optimizer,
        device=device,
        micro_batch_tokens=micro_batch_tokens(config, device, loaded.precision),
        max_grad_norm=config.max_grad_norm,
        autocast=loaded.precision.autocast,
    )


def micro_batch_tokens(config: Config, device: torch.device, plan: PrecisionPlan) -> int:
    """What a micro-batch begins with, before anything is known to fit."""
    if config.micro_batch_tokens:
        return config.micro_batch_tokens
    if device.type == "cpu":
        return config.pack_tokens
    return max(config.pack_tokens, min(plan.micro_batch_tokens, config.tokens_per_step))


class _Remembered:
    """Micro-batch sizes that fitted, by GPU, model size and precision: `cache/micro_batch.json`.

    A hint only: deleting the file costs one search.
    """

    def __init__(self, workspace: Workspace, session: Session) -> None:
        self._path: Path = workspace.cache / "micro_batch.json"
        self._session = session

    def _key(self) -> str:
        session = self._session
        device = session.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        count = sum(p.numel() for p in session.loaded.model.parameters())
        return f"{name}|{count}|{session.loaded.precision.name}"

    def _read(self) -> dict[str, int]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, int])
        except (OSError, msgspec.MsgspecError):
            return {}

    def limit(self, wanted: int) -> int:
        return min(wanted, self._read().get(self._key(), wanted))

    def note(self) -> None:
        sizes = self._read() | {self._key(): self._session.stepper.micro_batch_tokens}
        try:
            durable.replace_view(self._path, msgspec.json.encode(sizes))
        except OSError as problem:  # a full disk is no reason to end training
            log.warning("the micro-batch that fits is not remembered: %s", problem)


def _quiet_transformers() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
