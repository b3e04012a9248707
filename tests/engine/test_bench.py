"""`trainer-tui bench`: takes what it is given and reports figures that fit together."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
from engine_driver import make_workspace

from trainer_tui.engine import bench


def test_bench_takes_a_workspace_and_reports(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    workspace = make_workspace(tmp_path / "ws", tiny_model)
    line = ["bench", "--workspace", str(workspace.root), "--model", str(tiny_model), "--json"]
    monkeypatch.setattr(sys, "argv", [*line, "--tokens", "300", "--steps", "2"])
    assert bench.main() == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == str(tiny_model)
    assert report["tokens_per_s"] == pytest.approx(report["tokens_per_step"] / report["step_s"])
    assert report["checkpoint_bytes"] > 4 * report["parameters"]
    assert report["largest_micro_batch_tokens"] == report["micro_batch_tokens"] == 300


def test_what_the_command_line_leaves_open_comes_from_the_settings(
    tmp_path: Path, tiny_model: Path
) -> None:
    workspace = make_workspace(tmp_path / "ws", tiny_model)
    workspace.config_file.write_text(
        'base_model = "models/base"\nprecision = "lean"\ntokens_per_step = 9000\n'
    )
    arguments = argparse.Namespace(
        workspace=workspace.root, model=None, shape="", precision="", attention="flex",
        tokens=0, micro_batch=0,
    )  # fmt: skip
    bench._from_workspace(arguments)
    assert arguments.model == workspace.models / "base"
    assert (arguments.precision, arguments.attention) == ("lean", "flex")
    assert (arguments.tokens, arguments.micro_batch) == (9000, 0)
