"""`python -m trainer_tui.queue.report`: the data report on the command line.

Exit codes: 0 ok or warn, 1 block, 2 usage (no such file, not a file, no such workspace), or the
file takes more memory or CPU time than it may.
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import stat
import sys
from pathlib import Path

import msgspec

from trainer_tui.queue import limits, report, report_context, report_text
from trainer_tui.queue.intake import kind_problem
from trainer_tui.queue.job import RETRY_COMMAND
from trainer_tui.safety import workspace
from trainer_tui.safety.errors import DataProblem, TrainerTuiError, WorkspaceProblem
from trainer_tui.safety.text import file_name_text, printable


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="trainer-tui validate", description="Say what a file would teach, and whether it may."
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--workspace", type=Path, help="whose settings and model to use")
    parser.add_argument("--json", action="store_true", help="the whole report as one JSON document")
    parser.add_argument(
        "--sample", type=_count, metavar="N", help="only N rows, spread evenly over a plain file"
    )
    asked = parser.parse_args(arguments)
    try:
        context = report_context.build(_workspace(asked.workspace))
    except TrainerTuiError as problem:
        print(f"{problem}", file=sys.stderr)
        return 2
    usage = _usage_problem(asked.file)
    name = file_name_text(os.fsencode(asked.file.name))
    if usage:
        print(f"{name} {usage}", file=sys.stderr)
        return 2
    limits.limit_process()
    limits.limit_time(asked.file)
    try:
        found = report.make(asked.file, name, context, sample=asked.sample).report
    except (MemoryError, limits.TimeUp) as problem:
        why = limits.TOO_MUCH_MEMORY if isinstance(problem, MemoryError) else limits.TOO_MUCH_TIME
        print(f"{name}: {why} ({limits.ADVICE})", file=sys.stderr)
        return 2
    except DataProblem as problem:
        found = report.unreadable(name, asked.file.stat().st_size, problem, context)
    except OSError as problem:
        print(f"{name} cannot be read: {problem.strerror}", file=sys.stderr)
        return 2
    _show(_with_commands(found, asked.file), asked.json)
    return 1 if found.verdict == "block" else 0


def _with_commands(found: report.Report, path: Path) -> report.Report:
    """It is no job yet: what would be done about one is done when it is added."""
    add = f"trainer-tui add {shlex.quote(printable(str(path)))}"
    reasons = [
        msgspec.structs.replace(reason, hint=reason.hint.replace(RETRY_COMMAND, add))
        for reason in found.reasons
    ]
    return msgspec.structs.replace(found, reasons=reasons)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _workspace(named: Path | None) -> workspace.Workspace | None:
    """The one named, else the one in use, else none: the report works without."""
    try:
        return workspace.find(named)
    except WorkspaceProblem:
        if named is not None or os.environ.get(workspace.ENVIRONMENT_KEY):
            raise
        return None


def _usage_problem(path: Path) -> str | None:
    """A symbolic link may be validated (nothing is taken or removed), a folder or a pipe not."""
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            return "is a folder; name a file in it"
        return kind_problem(info)
    except OSError as problem:
        return f"cannot be read: {problem.strerror}"


def _show(found: report.Report, as_json: bool) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show every character
    try:
        if as_json:
            print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
            return
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        for line in report_text.lines(found, colour=colour):
            print(line)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
