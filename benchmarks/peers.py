"""The tools a user could pick instead: TRL's SFTTrainer and transformers' Trainer.

They get the same rows in the same order, the same precision and optimizer, no per-step logging
and no check for NaN losses, which would make them wait for the device.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import models, workload
from benchmarks.measuring import Clock, Measurement, device_name, versions


@dataclass(frozen=True, slots=True)
class Settings:
    """How a peer runs."""

    name: str = "trl"
    kind: str = "trl"  # or stock
    shape: str = "qwen3-0.6b"
    device: str = "cuda"
    attention: str = "flex_attention"
    liger: bool = True
    torch_compile: bool = False
    pad_to: int | None = None  # TRL: round the packed length up to a multiple of this
    padded_rows: int = 0  # stock only: rows in a padded batch
    lr: float = 1e-4
    warm_steps: int = 5
    steps_per_repeat: int = 8


class _Ordered:
    """Mixed into a trainer: rows in the given order, losses kept, the clock told of each step."""

    clock: Clock
    kept: list[Tensor]

    def _get_train_sampler(self, *arguments: Any, **named: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[attr-defined]

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        loss: Tensor = super().training_step(*arguments, **named)  # type: ignore[misc]
        self.kept.append(loss.detach())
        return loss


def _callback(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Timed(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            clock.step_done()

    return Timed()


def _labels(row: workload.Document) -> list[int]:
    ids, mask = row
    return [int(i) if kept else -100 for i, kept in zip(ids, mask, strict=True)]


def _arguments(settings: Settings, steps: int, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": steps,
        "learning_rate": settings.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "logging_steps": 10**9,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "bf16": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": settings.device == "cuda",
        "use_cpu": settings.device == "cpu",
        "torch_compile": settings.torch_compile,
        "seed": models.SEED,
    }


def imports(kind: str) -> None:
    """Load what the peer needs, which takes seconds, before its turn on the device."""
    if kind == "trl":
        import trl

        assert trl.SFTTrainer
    else:
        import transformers

        assert transformers.Trainer


def run(settings: Settings, work: workload.Workload) -> Measurement:
    """Train the peer through the workload and report."""
    return _run_trl(settings, work) if settings.kind == "trl" else _run_stock(settings, work)


def _model(settings: Settings, attention: str) -> Any:
    dtype = torch.bfloat16 if settings.device == "cuda" else torch.float32
    model: Any = models.build(settings.shape, dtype, settings.device)
    model.set_attn_implementation(attention)
    return model


def _run_trl(settings: Settings, work: workload.Workload) -> Measurement:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class Timed(_Ordered, SFTTrainer):  # type: ignore[misc]
        pass

    steps = workload.steps(work)
    data = Dataset.from_dict(
        {
            "input_ids": [[int(i) for ids, _ in step for i in ids] for step in steps],
            "labels": [[label for row in step for label in _labels(row)] for step in steps],
            "seq_lengths": [[len(ids) for ids, _ in step] for step in steps],
        }
    )
    measurement = Measurement(settings.name, device_name())
    measurement.notes = versions("torch", "transformers", "trl", "liger-kernel", "accelerate")
    clock = Clock(
        measurement,
        [workload.tokens_in(step) for step in steps],
        [workload.supervised_in(step) for step in steps],
        settings.warm_steps,
        settings.steps_per_repeat,
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            **_arguments(settings, len(steps), folder),
            packing=True,
            packing_strategy="bfd",
            max_length=work.tokens_per_step,
            per_device_train_batch_size=1,
            gradient_checkpointing=False,
            use_liger_kernel=settings.liger,
            pad_to_multiple_of=settings.pad_to,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = Timed(
            model=_model(settings, settings.attention),
            args=config,
            train_dataset=data,
            processing_class=_toy_tokenizer(),
            callbacks=[_callback(clock)],
        )
        trainer.clock, trainer.kept = clock, []
        trainer.train()
    clock.finish()
    measurement.losses = [float(loss) for loss in trainer.kept]
    return measurement


def _run_stock(settings: Settings, work: workload.Workload) -> Measurement:
    from transformers import Trainer, TrainingArguments

    class Timed(_Ordered, Trainer):  # type: ignore[misc]
        pass

    size = settings.padded_rows
    count = settings.warm_steps + 3 * settings.steps_per_repeat
    flat = [row for step in workload.steps(work) for row in step][: count * size]
    batches = [flat[i : i + size] for i in range(0, len(flat) - size + 1, size)]
    data = [{"input_ids": ids.tolist(), "labels": _labels((ids, m))} for ids, m in flat]
    measurement = Measurement(settings.name, device_name())
    measurement.notes = versions("torch", "transformers", "accelerate")
    clock = Clock(
        measurement,
        [workload.tokens_in(batch) for batch in batches],
        [workload.supervised_in(batch) for batch in batches],
        settings.warm_steps,
        settings.steps_per_repeat,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(
            model=_model(settings, "sdpa"),
            args=TrainingArguments(
                **_arguments(settings, len(batches), folder), per_device_train_batch_size=size
            ),
            train_dataset=data,
            data_collator=_pad,
            callbacks=[_callback(clock)],
        )
        trainer.clock, trainer.kept = clock, []
        trainer.train()
    clock.finish()
    measurement.losses = [float(loss) for loss in trainer.kept]
    return measurement


def _pad(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, filler: int) -> Tensor:
        return torch.tensor([row[key] + [filler] * (longest - len(row[key])) for row in rows])

    ones = [{"mask": [1] * len(row["input_ids"])} for row in rows]
    mask = torch.tensor([o["mask"] + [0] * (longest - len(o["mask"])) for o in ones])
    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", -100),
        "attention_mask": mask,
    }


def _toy_tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
