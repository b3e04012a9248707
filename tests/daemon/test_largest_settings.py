"""The largest values that the schema takes are values that every part can work with."""

from __future__ import annotations

import json

from daemon_harness import plant

from trainer_tui.safety import config, config_edit
from trainer_tui.safety.config import Config

NOT_THESE = {"max_length", "seed"}  # the base model decides one; the other has its own type


def largest() -> dict[str, float]:
    """The upper bound of every key that has one and is no share."""
    found = {}
    schema = Config.model_json_schema()
    for key in config.known_keys():
        section, _, name = key.rpartition(".")
        kind = schema
        if section:
            kind = schema["$defs"][Config.model_fields[section].annotation.__name__]
        bound = kind["properties"].get(name, {}).get("maximum", 0)
        if bound >= config.LONG_DAYS and key not in NOT_THESE:
            found[key] = bound
    return found


def test_the_largest_values_train_and_weigh_old_jobs(serve) -> None:
    values = largest()
    assert {"save_steps", "poll_interval", "retention.trash_days", "disk.cache_gb"} <= set(values)
    del values["disk.min_free_gb"]  # no disk is so large: training would wait for room
    daemon = serve()
    file = daemon.workspace.config_file
    file.write_text(config_edit.edited("", values, file))
    plant(daemon.workspace, "a.jsonl")
    plant(daemon.workspace, "b.jsonl")
    failed = next(daemon.workspace.queue.glob("normal/*-b.jsonl"))
    meta = json.loads((failed / "meta.json").read_text()) | {"finished_at": "2026-01-01T10:00:00Z"}
    (failed / "meta.json").write_text(json.dumps(meta))
    failed.rename(daemon.workspace.queue / "failed" / failed.name)
    daemon.start().until_job("a.jsonl", "completed")
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.output()
