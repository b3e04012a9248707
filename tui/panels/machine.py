"""The machine in full: every GPU with a minute of history, processor, memory, disk."""

from __future__ import annotations

from collections.abc import Callable

from trainer_tui.safety.text import printable
from trainer_tui.tui import figures
from trainer_tui.tui.glyphs import Glyphs, bar, sparkline
from trainer_tui.tui.ink import Line, Row, cut
from trainer_tui.tui.panels.base import FramedPanel
from trainer_tui.tui.panels.meters import FAR_S
from trainer_tui.tui.view import Gpu, Machine, Panel, View


def rows(view: View, width: int, height: int, glyphs: Glyphs) -> list[Row]:
    machine = view.status.machine if view.status else None
    if machine is None:
        return [Line().add(" no figures yet", "dim").row(width)]
    past = view.machine_past
    lines: list[Line] = []
    roomy = height >= 3 * len(machine.gpus) + 4
    for index, gpu in enumerate(machine.gpus):
        lines += _gpu(gpu, index, past, width, glyphs, roomy)
    if not machine.gpus:
        reason = printable(machine.gpu_problem or "none found", 60)
        lines.append(Line().add(" GPU    ", "dim").add(f"no GPU: {reason}", "dim"))
    cores = f"{machine.cores} cores" if machine.cores else ""
    lines.append(_line("CPU", machine.load_percent, 100, cores, past, width, glyphs, _load))
    ram = figures.used_of(machine.memory_used_bytes, machine.memory_total_bytes)
    lines.append(
        _line(
            "RAM",
            machine.memory_used_bytes,
            machine.memory_total_bytes,
            ram,
            past,
            width,
            glyphs,
            _ram,
        )
    )
    if machine.swap_used_bytes:
        lines.append(
            Line().add(" swap   ", "dim").add(f"{figures.size(machine.swap_used_bytes)} used")
        )
    left_s = view.disk_left_s
    filling = left_s is not None and left_s < FAR_S
    free = f"{figures.size(machine.disk_free_bytes)} free"
    if filling:
        free = f"full in {figures.coarse(left_s)}"
    lines.append(
        _line(
            "disk",
            machine.disk_used_bytes,
            machine.disk_total_bytes,
            free,
            past,
            width,
            glyphs,
            None,
        )
    )
    if machine.disk_place:  # not the root's own: say which one the figures are of
        lines.append(Line().add(" disk   ", "dim").add(f"of {printable(machine.disk_place, 60)}"))
    return [cut(tuple(line.spans), width) for line in lines[:height]]


def _load(machine: Machine) -> float | None:
    return machine.load_percent


def _ram(machine: Machine) -> float | None:
    return machine.memory_used_bytes


def _line(
    name: str,
    value: float | None,
    top: float | None,
    words: str,
    past: tuple[Machine, ...],
    width: int,
    glyphs: Glyphs,
    pick: Callable[[Machine], float | None] | None,
) -> Line:
    cells = max(4, min(18, (width - 30) // 2))
    filled, rest = bar(value / top if value is not None and top else 0.0, cells, glyphs)
    share = value / top if value is not None and top else 0.0
    line = Line().add(f" {name:<6} ", "dim").add(filled, "bad" if share > 0.97 else "bar")
    line.add(rest, "off").add(f" {figures.percent(value, top):>4} ").cell(words, 12, "dim")
    room = width - line.width - 1
    if pick is not None and room >= 8:
        values = [found for item in past if (found := pick(item)) is not None]
        line.add(sparkline(values, min(room, 60), glyphs), "raw")
    return line


def _gpu(
    gpu: Gpu, index: int, past: tuple[Machine, ...], width: int, glyphs: Glyphs, roomy: bool
) -> list[Line]:
    def use(machine: Machine) -> float | None:
        return machine.gpus[index].utilisation_percent if index < len(machine.gpus) else None

    heat = f"{gpu.temperature_c:.0f}°C" if gpu.temperature_c is not None else ""
    power = f"{gpu.power_w:.0f}W" if gpu.power_w is not None else ""
    if power and gpu.power_limit_w:
        power += f"/{gpu.power_limit_w:.0f}"
    head = _line(f"GPU {gpu.index}", gpu.utilisation_percent, 100, heat, past, width, glyphs, use)
    if not roomy:
        return [head]
    memory = figures.used_of(gpu.memory_used_bytes, gpu.memory_total_bytes)
    vram = _line(
        "VRAM", gpu.memory_used_bytes, gpu.memory_total_bytes, memory, past, width, glyphs, None
    )
    return [
        Line().add(f" {printable(gpu.name, width - 20)}", "strong").add(f"  {power}", "dim"),
        head,
        vram,
    ]


class MachinePanel(FramedPanel):
    number = 5
    title_text = "Machine"

    def __init__(self) -> None:
        super().__init__(id=Panel.MACHINE.value)

    def inner(self, width: int, height: int) -> list[Row]:
        return rows(self.screen_app.view, width, height, self.glyphs)
