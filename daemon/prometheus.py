"""The status document in Prometheus' text format (exposition format 0.0.4). Pure."""

from __future__ import annotations

from typing import Any

STATES = (
    "starting", "training", "evaluating", "saving", "pausing", "paused", "stopping", "stopped",
    "idle", "waiting", "degraded",
)  # fmt: skip

# name, kind, help, path in the document
_FIGURES = (
    ("global_step", "counter", "Optimizer steps of this model's life", "training.global_step"),
    ("tokens_total", "counter", "Tokens trained on", "training.tokens_seen"),
    ("supervised_tokens_total", "counter", "Tokens the loss counted",
     "training.supervised_tokens_seen"),
    ("trainer_restarts_total", "counter", "Trainers that ended unasked", "training.restarts"),
    ("loss", "gauge", "Training loss of the last step", "training.loss"),
    ("val_loss", "gauge", "Loss on the fixed validation set", "training.val_loss"),
    ("learning_rate", "gauge", "Learning rate of the last step", "training.learning_rate"),
    ("grad_norm", "gauge", "Gradient norm of the last step", "training.grad_norm"),
    ("tokens_per_second", "gauge", "Speed of training", "training.tokens_per_s"),
    ("step_seconds", "gauge", "Time of one optimizer step", "training.step_s"),
    ("unsaved_steps", "gauge", "Steps no checkpoint holds yet", "training.unsaved_steps"),
    ("last_sample_age_seconds", "gauge", "Since the last step", "training.last_sample_age_s"),
    ("uptime_seconds", "gauge", "Since the daemon started", "daemon.uptime_s"),
    ("viewers", "gauge", "Open event streams", "daemon.viewers"),
    ("latest_version", "gauge", "Number of the newest version", "model.latest_version"),
    ("memory_used_bytes", "gauge", "Memory of the machine in use", "machine.memory_used_bytes"),
    ("disk_free_bytes", "gauge", "Free on the tightest of its disks", "machine.disk_free_bytes"),
)  # fmt: skip
_GPU = (
    ("gpu_utilisation_percent", "utilisation_percent"),
    ("gpu_memory_used_bytes", "memory_used_bytes"),
    ("gpu_temperature_celsius", "temperature_c"),
    ("gpu_power_watts", "power_w"),
)


def exposition(document: dict[str, Any]) -> str:
    lines: list[str] = []
    for name, kind, text, path in _FIGURES:
        value = _find(document, path)
        if value is not None:
            _head(lines, name, kind, text)
            lines.append(f"trainer_tui_{name} {value}")
    _head(lines, "state", "gauge", "1 for the state training is in")
    now = document["training"]["state"]
    lines += [f'trainer_tui_state{{state="{state}"}} {int(state == now)}' for state in STATES]
    _head(lines, "jobs", "gauge", "Files in the queue by place")
    for place in ("high", "normal", "low", "processing", "recently_completed", "failed"):
        lines.append(f'trainer_tui_jobs{{place="{place}"}} {document["queue"].get(place, 0)}')
    gpus = (document["machine"] or {}).get("gpus", [])
    for name, key in _GPU:
        values = [(gpu["index"], gpu[key]) for gpu in gpus if gpu[key] is not None]
        if values:
            _head(lines, name, "gauge", name.replace("_", " "))
            lines += [f'trainer_tui_{name}{{gpu="{index}"}} {value}' for index, value in values]
    return "\n".join(lines) + "\n"


def _head(lines: list[str], name: str, kind: str, text: str) -> None:
    lines.append(f"# HELP trainer_tui_{name} {text}")
    lines.append(f"# TYPE trainer_tui_{name} {kind}")


def _find(document: dict[str, Any], path: str) -> Any:
    found: Any = document
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
