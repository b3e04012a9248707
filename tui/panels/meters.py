"""The second row: how hard the machine works, and how full it is."""

from __future__ import annotations

from trainer_tui.tui import figures
from trainer_tui.tui.canvas import Canvas
from trainer_tui.tui.glyphs import Glyphs, bar
from trainer_tui.tui.ink import Line, Row
from trainer_tui.tui.view import Gpu, Machine, View

HOT_C = 85
FULL = 0.9
FAR_S = 60 * 86_400


def rows(view: View, width: int, glyphs: Glyphs) -> list[Row]:
    machine = view.status.machine if view.status else None
    if machine is None:
        return [Line().add(" no figures of the machine yet", "dim").row(width)]
    parts = [_load(machine, max(6, min(24, width - 68)), glyphs)]
    if machine.gpus:
        parts += _gpus(machine.gpus)
    parts.append(_share("RAM", machine.memory_used_bytes, machine.memory_total_bytes))
    parts += [_disk(machine), _free(machine, view.disk_left_s)]
    if not machine.gpus:
        parts.append(Line().add("no GPU", "dim"))
    line = Line().add(" ")
    for index, part in enumerate(part for part in parts if part.width):
        gap = "  " if index else ""
        if line.width + part.width + len(gap) > width:
            continue
        line.add(gap)
        line.spans += part.spans
        line.width += part.width
    return [line.row(width)]


def _load(machine: Machine, cells: int, glyphs: Glyphs) -> Line:
    loads = [g.utilisation_percent for g in machine.gpus if g.utilisation_percent is not None]
    if machine.gpus:
        many = f"×{len(machine.gpus)}" if len(machine.gpus) > 1 else ""
        name, load = f"GPU{many}", sum(loads) / len(loads) if loads else None
    else:
        name, load = "CPU", machine.load_percent
    filled, rest = bar((load or 0) / 100, cells, glyphs)
    line = Line().add(f"{name} ", "dim").add(glyphs.meter_left, "faint").add(filled, "bar")
    line.add(rest if not glyphs.braille else " " * len(rest), "off").add(
        glyphs.meter_right, "faint"
    )
    return line.add(f"{figures.percent(load):>4}")


def _gpus(gpus: list[Gpu]) -> list[Line]:
    used = [gpu.memory_used_bytes for gpu in gpus if gpu.memory_used_bytes is not None]
    total = [gpu.memory_total_bytes for gpu in gpus if gpu.memory_total_bytes is not None]
    share = sum(used) / sum(total) if used and sum(total) else 0
    out = [
        Line()
        .add("VRAM ", "dim")
        .add(
            figures.used_of(sum(used) if used else None, sum(total)), "warn" if share > 0.97 else ""
        )
    ]
    heats = [gpu.temperature_c for gpu in gpus if gpu.temperature_c is not None]
    power = [gpu.power_w for gpu in gpus if gpu.power_w is not None]
    body = Line()
    if heats:
        body.add(f"{max(heats):.0f}°C", "warn" if max(heats) >= HOT_C else "")
    if power:
        body.add(f" {sum(power):.0f}W" if heats else f"{sum(power):.0f}W")
    return [*out, body] if body.width else out


def _share(name: str, used: float | None, total: float | None) -> Line:
    share = used / total if used is not None and total else 0
    role = "bad" if share > 0.97 else "warn" if share > FULL else ""
    return Line().add(f"{name} ", "dim").add(figures.percent(used, total), role)


def _disk(machine: Machine) -> Line:
    return _share("DISK", machine.disk_used_bytes, machine.disk_total_bytes)


def _free(machine: Machine, left_s: float | None) -> Line:
    """The time until the disk is full when it is filling, else the room that is free."""
    if left_s is not None and left_s < FAR_S:
        role = "bad" if left_s < 86_400 else "warn" if left_s < 3 * 86_400 else "dim"
        return Line().add(f"({figures.coarse(left_s)} left)", role)
    if machine.disk_free_bytes is None:
        return Line()
    return Line().add(f"{figures.size(machine.disk_free_bytes)} free", "dim")


class MetersRow(Canvas):
    def draw(self, width: int, height: int) -> list[Row]:
        return rows(self.app.view, width, self.glyphs)  # type: ignore[attr-defined]
