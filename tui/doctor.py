"""`trainer-tui doctor`: what works on this machine and what does not, each with what to do.

Every check is a function of the context that returns findings; none changes anything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from trainer_tui.safety import config as config_schema
from trainer_tui.safety import filesystems
from trainer_tui.safety.errors import Refused, TrainerTuiError, Unanswered
from trainer_tui.safety.filesystems import Measure
from trainer_tui.safety.meters import Meters
from trainer_tui.safety.workspace import Workspace
from trainer_tui.tui import columns
from trainer_tui.tui.context import Context

TORCH_TIMEOUT_S = 60
_ASK_TORCH = (
    "import json, torch; cuda = torch.cuda.is_available();"
    "print(json.dumps({'version': torch.__version__, 'cuda': cuda,"
    " 'device': torch.cuda.get_device_name() if cuda else '',"
    " 'bf16': cuda and torch.cuda.is_bf16_supported()}))"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """`level`: ok | note (works, could be better) | fail (does not work)."""

    level: str
    subject: str
    text: str
    hint: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def examine(context: Context) -> list[Finding]:
    """All findings; takes about two seconds, most of it torch's import in a child process."""
    checks: tuple[Callable[[Context], Iterable[Finding]], ...] = (
        _python,
        _torch,
        _gpu,
        _workspace,
        _config_and_model,
        _disk,
        _daemon,
        _terminal,
        _lingering,
    )
    return [finding for check in checks for finding in check(context)]


def describe(findings: list[Finding]) -> str:
    marks = {"ok": "✓", "note": "·", "fail": "✕"}
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.level]} {finding.subject:11} {finding.text}")
        if finding.hint:
            lines.append(f"  {'':11} → {finding.hint}")
    return "\n".join(lines)


def _python(context: Context) -> Iterable[Finding]:
    versions = ".".join(str(part) for part in sys.version_info[:3])
    ours = metadata.version("trainer-tui")
    yield Finding("ok", "python", f"{versions}, trainer-tui {ours}, {sys.executable}")


def _torch(context: Context) -> Iterable[Finding]:
    command = [sys.executable, "-P", "-c", _ASK_TORCH]
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding("fail", "torch", f"its import takes more than {TORCH_TIMEOUT_S} s")
        return
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield Finding("fail", "torch", f"cannot be imported: {last}", "make setup")
        return
    told = json.loads(asked.stdout)
    if told["cuda"]:
        yield Finding("ok", "torch", f"{told['version']} on {told['device']}")
        if not told["bf16"]:
            yield Finding("note", "torch", "this card has no bf16: training runs in fp32")
    else:
        hint = "fine for the demo; a real model wants a CUDA build and a card"
        yield Finding("note", "torch", f"{told['version']}, processor only", hint)


def _gpu(context: Context) -> Iterable[Finding]:
    sample = Meters(Path.cwd()).sample()
    for gpu in sample.gpus:
        memory = f"{columns.size(gpu.memory_used_bytes)} of {columns.size(gpu.memory_total_bytes)}"
        yield Finding("ok", "gpu", f"{gpu.index}: {gpu.name}, {memory} in use")
    if not sample.gpus:
        yield Finding("note", "gpu", f"none to be seen ({sample.gpu_problem or 'no card'})")
    total, used = sample.memory_total_bytes, sample.memory_used_bytes
    yield Finding(
        "ok",
        "memory",
        f"{columns.size(total - used)} of {columns.size(total)} free, {sample.cores} cores",
    )


def _workspace(context: Context) -> Iterable[Finding]:
    try:
        space = context.workspace
    except TrainerTuiError as problem:
        yield Finding("fail", "workspace", problem.message, problem.hint)
        return
    if not os.access(space.root, os.W_OK):
        yield Finding("fail", "workspace", f"{space.root} cannot be written")
        return
    yield Finding("ok", "workspace", str(space.root))
    if space.state.exists() and space.state.stat().st_uid != os.geteuid():
        yield Finding("fail", "workspace", f"{space.state} belongs to somebody else")
    filesystem = _filesystem(space.root)
    if filesystem in ("nfs", "nfs4", "cifs", "fuse.sshfs", "9p"):
        text = f"{filesystem}: locks and renames over a network are not to be trusted"
        yield Finding("note", "workspace", text, "put the workspace on a local disk")


def _filesystem(path: Path) -> str:
    best, kind = "", "?"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split(" ")
        if (str(path) + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def _config_and_model(context: Context) -> Iterable[Finding]:
    try:
        space = context.workspace
        settings = config_schema.load(space.config_file)
    except TrainerTuiError as problem:
        if "config" in problem.message:
            yield Finding("fail", "config", problem.message, problem.hint)
        return
    yield Finding("ok", "config", str(space.config_file))
    model = config_schema.base_model_folder(settings, space.root)
    if not model.is_dir():
        hint = f"it is fetched as {settings.model_name} at the first training, or set base_model"
        yield Finding("note", "model", f"{model} is not there", hint)
        return
    missing = [name for name in ("config.json", "tokenizer.json") if not (model / name).is_file()]
    if not any(model.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        yield Finding("fail", "model", f"{model} lacks {', '.join(missing)}")
    else:
        yield Finding("ok", "model", str(model))


def _disk(context: Context) -> Iterable[Finding]:
    try:
        space = context.workspace
    except TrainerTuiError:
        space = Workspace(Path.cwd())
    try:
        limits = config_schema.load(space.config_file).disk
    except TrainerTuiError:
        limits = config_schema.Disk()  # what is wrong with it is a finding of its own
    yield from disk_findings(space, limits, filesystems.measure)


def disk_findings(
    space: Workspace, limits: config_schema.Disk, measuring: Measure
) -> Iterable[Finding]:
    """One for each filesystem that the workspace lies on."""
    for one in filesystems.survey(space, measuring, filesystems.floor_of(limits), 0, {}):
        room = measuring(one.places[0])
        text = f"{columns.size(room.free_bytes)} of {columns.size(room.total_bytes)} free"
        if one.name:
            text = f"{one.name}: {text}"
        if one.short:
            why = f"less than the {columns.size(one.needed_bytes)} that have to stay free"
            waits = ": training waits" if one.awaited else ""
            yield Finding("fail" if one.awaited else "note", "disk", text, f"{why}{waits}")
        elif room.free_bytes < 0.05 * room.total_bytes:
            yield Finding("note", "disk", text, "under 5 %: training pauses before it fills up")
        else:
            yield Finding("ok", "disk", text)


def _daemon(context: Context) -> Iterable[Finding]:
    try:
        status = context.client.get("/v1/status")
    except Unanswered as problem:
        yield Finding("fail", "daemon", problem.message, problem.hint)
        return
    except Refused as problem:
        text = f"one runs, but refuses to tell its state: {problem.message}"
        yield Finding("fail", "daemon", text, problem.hint or "its log: trainer-tui logs")
        return
    except TrainerTuiError as problem:
        yield Finding("note", "daemon", "none runs here", problem.hint)
        return
    pid, state = status["daemon"]["pid"], status["training"]["state"]
    yield Finding(
        "ok", "daemon", f"pid {pid}, {state}, {columns.duration(status['daemon']['uptime_s'])} up"
    )


def _terminal(context: Context) -> Iterable[Finding]:
    if not sys.stdout.isatty():
        yield Finding("note", "terminal", "none: verbs work, the screen does not")
        return
    size = shutil.get_terminal_size()
    colour = os.environ.get("COLORTERM") or os.environ.get("TERM", "?")
    text = f"{size.columns}x{size.lines}, {colour}, {sys.stdout.encoding}"
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        yield Finding("note", "terminal", text, "without UTF-8 the chart is drawn in ASCII")
    elif size.columns < 80 or size.lines < 20:
        yield Finding("note", "terminal", text, "80x24 shows all panels")
    else:
        yield Finding("ok", "terminal", text)


def _lingering(context: Context) -> Iterable[Finding]:
    if not shutil.which("loginctl") or not Path("/run/systemd/system").is_dir():
        return
    user = os.environ.get("USER") or str(os.geteuid())
    asked = subprocess.run(
        ["loginctl", "show-user", user, "--property=Linger", "--value"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if asked.stdout.strip() == "yes":
        yield Finding("ok", "lingering", "on: the daemon may outlive your logout")
    else:
        text = "off: systemd may end everything of yours at logout"
        yield Finding("note", "lingering", text, f"loginctl enable-linger {user}")
