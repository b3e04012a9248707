"""The one schema of `config.toml`: every key, its type, its default and its meaning.

Invariant: what is not in this schema is refused with the nearest known key; a value of the wrong
type or range is one clear line. The file is only read here; `config_edit` changes it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trainer_tui.safety import quiet_hours
from trainer_tui.safety.errors import ConfigProblem, is_lack

MANY = 10**15  # beyond any count of steps, rows or bytes, and a number everywhere
LONG_S = 1e9  # 31 years: what clocks and timers still take
LONG_DAYS = 36500
LARGEST_WEIGHT = 1e6  # of one part of the loss beside the rest
LARGEST_DECAY = 1e3  # times the learning rate: what a step takes off a weight
NO_CLIPPING = 1e9  # above any gradient's norm that is worth a step
Count = Annotated[int, Field(ge=1, le=MANY)]
Whole = Annotated[int, Field(ge=0, le=MANY)]
Days = Annotated[int, Field(ge=1, le=LONG_DAYS)]
Seconds = Annotated[float, Field(gt=0, le=LONG_S)]
Pause = Annotated[float, Field(ge=0, le=LONG_S)]
Gigabytes = Annotated[float, Field(ge=0, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=False, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_silent_conversion(cls, value: Any, info: ValidationInfo) -> Any:
        """`true` is no number, `"4096"` is no number and `1` is no truth value."""
        kind = cls.model_fields[info.field_name].annotation if info.field_name else None
        if kind in (int, float) and isinstance(value, bool | str):
            raise ValueError("must be a number, without quotes")
        if kind is bool and not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value


class Behaviour(Section):
    """What the loss teaches besides the rows: think tags and what follows a stop sequence."""

    think: Literal["keep", "mask", "forbid"] = "keep"
    think_tags: tuple[str, ...] = ("<think>", "</think>")
    alpha: float = Field(0.05, ge=0, le=LARGEST_WEIGHT)
    tau: float = Field(1e-4, gt=0, lt=1)
    stop_weight: float = Field(1.0, ge=1, le=LARGEST_WEIGHT)
    stop_emojis: tuple[str, ...] = ()
    stop_emojis_omitted: Share = 0.15


class Validation(Section):
    rows: Whole = 1000
    share_of_file: Share = 0.1
    holdout_share: Share = 0.001
    holdout_rows: Whole = 8
    slice_rows: Count = 64
    time_share: Annotated[float, Field(gt=0, le=1)] = 0.05


class Ladder(Section):
    """What is done when training goes wrong; each step is tried in this order."""

    overfitting: tuple[Literal["notify", "halve_lr", "stop_file", "rollback"], ...] = ("notify",)
    forgetting: tuple[Literal["notify", "halve_lr", "stop_file", "rollback"], ...] = ("notify",)
    divergence: tuple[Literal["notify", "halve_lr", "stop_file", "rollback"], ...] = (
        "notify",
        "halve_lr",
    )
    nan_steps_before_stop: Count = 5


class Intake(Section):
    max_line_bytes: Count = 4 * 1024 * 1024
    max_file_bytes: Count = 64 * 1024**3
    max_ratio: Count = 200
    block_over_length_share: Share = 0.05
    block_lost_tokens_share: Share = 0.02
    block_invalid_share: Share = 0.01
    long_rows: Literal["drop", "truncate", "split_turns"] = "drop"
    injected_tokens: Literal["mask", "train"] = "mask"
    rewritten_turns: Literal["per_turn", "refuse"] = "per_turn"
    quiet_hours: str = ""

    @field_validator("quiet_hours")
    @classmethod
    def _is_a_span_of_time(cls, value: str) -> str:
        quiet_hours.parse(value)
        return value


class Retention(Section):
    checkpoints: Count = 5
    versions: Count = 20
    best_versions: Whole = 3
    daily_days: int = Field(14, ge=0, le=LONG_DAYS)
    versions_with_optimizer: Whole = 2
    emergency_backups: Count = 5
    completed_jobs: Count = 500
    completed_days: Days = 30
    completed_gb: float = Field(50.0, gt=0, le=1e9)
    trash_days: Days = 7


class Versioning(Section):
    after_every_file: bool = False
    every_steps: Whole = 0
    on_new_best: bool = True
    second_location: str = ""


class Disk(Section):
    min_free_gb: Gigabytes = 50.0
    min_free_share: Share = 0.05
    cache_gb: Gigabytes = 20.0


class Gpu(Section):
    max_temperature_c: Annotated[int, Field(ge=40, le=110)] = 90
    resume_temperature_c: Annotated[int, Field(ge=30, le=110)] = 80
    foreign_memory_gb: Gigabytes = 0.0


class Supervision(Section):
    attempts: Count = 3
    backoff_s: tuple[Pause, ...] = (1.0, 5.0, 30.0)
    idle_exit_s: Seconds = 900.0
    hang_floor_s: Seconds = 60.0


class Notify(Section):
    command: tuple[str, ...] = ()
    webhook: str = ""
    min_interval_s: Seconds = 60.0


class Api(Section):
    listen: str = ""
    token: str = ""

    @field_validator("listen")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        port = value.rpartition(":")[2]
        if value and not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
            raise ValueError("is no address; write it as 127.0.0.1:8000")
        return value


class Screen(Section):
    theme: str = "trainer"
    read_only: bool = False
    keys: dict[str, str] = Field(default_factory=dict)


class Config(Section):
    """The whole of `config.toml`. Times in seconds, sizes in the unit the name says."""

    model_name: str = "Qwen/Qwen3-0.6B"
    base_model: str = "models/base"
    tokens_per_step: Whole = 32768
    batch_size: Whole = 0
    gradient_accumulation: Count = 1
    pack_tokens: Count = 8192
    micro_batch_tokens: Whole = 0
    max_length: Count = 4096
    epochs: Count = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 17

    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-4
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: Whole = 100
    weight_decay: float = Field(0.01, ge=0, le=LARGEST_DECAY)
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0, le=NO_CLIPPING)] = 1.0
    precision: Literal["auto", "fp32", "master", "pure_bf16", "lean"] = "auto"
    attention: str = "auto"
    deterministic: bool = False

    log_steps: Count = 1
    eval_steps: Count = 50
    save_steps: Count = 1000
    min_save_interval_s: Pause = 300.0
    poll_interval: Seconds = 30.0
    tensorboard: bool = False

    behaviour: Behaviour = Behaviour()
    validation: Validation = Validation()
    ladder: Ladder = Ladder()
    intake: Intake = Intake()
    retention: Retention = Retention()
    versioning: Versioning = Versioning()
    disk: Disk = Disk()
    gpu: Gpu = Gpu()
    supervision: Supervision = Supervision()
    notify: Notify = Notify()
    api: Api = Api()
    screen: Screen = Screen()

    @model_validator(mode="after")
    def _packs_hold_the_longest_row(self) -> Config:
        if self.pack_tokens < self.max_length:
            raise ValueError(
                f"pack_tokens {self.pack_tokens} must be at least max_length {self.max_length}"
            )
        if not self.tokens_per_step and not self.batch_size:
            raise ValueError("one of tokens_per_step and batch_size must be above 0")
        return self


ALIASES = {"model_path": "base_model"}

# When an edit takes effect; keys not named here act on the next file.
LIVE_KEYS = frozenset(
    {"log_steps", "eval_steps", "save_steps", "min_save_interval_s", "poll_interval"}
)
LIVE_SECTIONS = frozenset(
    {"retention", "versioning", "disk", "gpu", "notify", "screen", "supervision", "intake"}
)
APPROVAL_KEYS = frozenset({"max_length", "model_name", "base_model"})
# What the optimizer state of a checkpoint is made for: changes only where none is taken over.
LINEAGE_KEYS = frozenset({"precision"})


def load(path: Path) -> Config:
    """Read and check a config file. A link is refused, here and so for everyone who reads it.

    Raises:
        ConfigProblem: with file, key, value, what is allowed and the nearest known key.
        OSError: this process lacks memory or descriptors.
    """
    try:
        if path.is_symlink():  # what it leads to may change, or be gone, without a trace here
            hint = "put the file itself there"
            raise ConfigProblem(f"{path} is a link; it is not followed", hint)
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigProblem(f"{path} is not there", "make one with: trainer-tui init") from None
    except OSError as problem:
        if is_lack(problem):
            raise
        hint = "it must be a file that the daemon's user may read"
        raise ConfigProblem(f"{path} cannot be read: {problem.strerror}", hint) from problem
    except UnicodeDecodeError as problem:
        raise ConfigProblem(f"{path}: not UTF-8 at byte {problem.start}") from None
    return parse(text, path)


def load_or_last_good(path: Path, last_good: Path) -> tuple[Config, ConfigProblem | None]:
    """The settings that hold: the file's, or those of `last_good` and what is wrong with the file.

    Raises:
        ConfigProblem: what is wrong with the file; there is no good one of before either.
    """
    try:
        return load(path), None
    except ConfigProblem as problem:
        try:
            return load(last_good), problem
        except ConfigProblem:
            raise problem from None


def parse(text: str, path: Path) -> Config:
    """Check the text of a config file; `path` is only for messages. Raises ConfigProblem."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise ConfigProblem(f"{path}: {problem}", "the file is TOML: key = value") from None
    return from_values(values, path)


def from_values(values: dict[str, Any], path: Path) -> Config:
    """Check plain values, as read from TOML or sent by the API. Raises ConfigProblem."""
    renamed = {ALIASES.get(key, key): value for key, value in values.items()}
    try:
        return Config.model_validate(renamed)
    except ValidationError as problem:
        raise ConfigProblem(*_explain(problem, path)) from None


def _explain(problem: ValidationError, path: Path) -> tuple[str, str]:
    first = problem.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    value = first.get("input")
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "see the comments in the default config.toml"
        return f"{path}: unknown key {key}", hint
    reason = first["msg"].removeprefix("Value error, ")
    if not key:
        return f"{path}: {reason}", ""
    more = len(problem.errors()) - 1
    hint = f"{more} more problem(s) after this one" if more else ""
    return f"{path}: {key} = {value!r}: {reason}", hint


def known_keys() -> list[str]:
    """Every key, sections as `section.key`, aliases included."""
    keys = list(ALIASES)
    for name, field in Config.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys += [f"{name}.{inner}" for inner in kind.model_fields]
        else:
            keys.append(name)
    return keys


def shaping_settings(config: Config) -> dict[str, Any]:
    """The settings that shape training, as plain values: nothing secret, nothing of the screen."""
    return config.model_dump(mode="json", exclude={"screen", "api", "notify"})


def config_hash(config: Config) -> str:
    """sha256 over the settings that shape training; the screen's and API's do not count."""
    shaping = shaping_settings(config)
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()


def base_model_folder(config: Config, root: Path) -> Path:
    """The folder of the base model; a relative path counts from the workspace."""
    return (root / Path(config.base_model).expanduser()).absolute()
