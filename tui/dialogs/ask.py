"""Questions: confirm with `y`, choose by a letter or from a list, answer in a line; and pages.

Invariant: nothing here is confirmed by enter or by the key that opened it, and pasted text is an
event of its own that no dialog but the prompt takes.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.suggester import SuggestFromList
from textual.widgets import Input, OptionList, Static

from trainer_tui.safety.text import printable
from trainer_tui.tui.ink import style_of

Option = tuple[str, str, str, str | None]  # key, name, what it does, why not
Item = tuple[str, str]  # name, more about it


class Question(ModalScreen[str | None]):
    """A titled box in the middle; `keys` are the answers, escape is None."""

    AUTO_FOCUS = ""

    def __init__(self, title: str, body: Text, keys: Sequence[str], foot: str = "") -> None:
        super().__init__()
        self._title = title
        self._body = body
        self._answers = frozenset(keys)
        self._foot = foot

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            box.border_subtitle = self._foot
            yield Static(self._body)

    def on_key(self, event: events.Key) -> None:
        event.stop()
        if event.key in ("escape", "q"):
            self.dismiss(None)
        elif event.character is not None and event.character in self._answers:
            self.dismiss(event.character)


class Entry(Input):
    """An input that takes keys in the order in which they came. Textual inserts a letter at once
    but runs a key's binding after a round through the parents: ctrl+u and a path in one packet of
    a slow link would lose the path."""

    async def on_key(self, event: events.Key) -> None:
        found = self._bindings.key_to_bindings.get(event.key)
        if found is not None and event.key not in ("tab", "shift+tab"):
            event.stop()
            event.prevent_default()
            for binding in found:
                await self.run_action(binding.action)


class Prompt(ModalScreen[str | None]):
    """One line of text; enter takes it (nothing is lost by it), escape is None."""

    AUTO_FOCUS = "Input"

    def __init__(
        self,
        title: str,
        question: str,
        value: str = "",
        problem: str = "",
        words: Sequence[str] = (),
        palette: str = "dark",
    ) -> None:
        super().__init__()
        self._title = title
        self._body = Text(question)
        if problem:
            self._body.append(f"\n{printable(problem)}", style_of("bad", palette))
        self._value = value
        self._proposed = bool(value) and not problem  # typing replaces it; a mistake is corrected
        self._words = words

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            yield Static(self._body)
            suggester = SuggestFromList(self._words) if self._words else None
            yield Entry(
                self._value,
                max_length=1000,
                suggester=suggester,
                select_on_focus=self._proposed,
            )

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip())

    def on_key(self, event: events.Key) -> None:
        if event.key == "escape":
            event.stop()
            self.dismiss(None)


class Pick(ModalScreen[int | None]):
    """One of a list: j, k and enter; its index, or None. For what can be taken back, or is asked
    about once more."""

    AUTO_FOCUS = "OptionList"

    def __init__(self, title: str, items: Sequence[Item], below: str, palette: str) -> None:
        super().__init__()
        self._title = title
        self._items = [
            Text(printable(name)).append(f"  {printable(more)}", style_of("dim", palette))
            for name, more in items
        ]
        self._below = Text(f"{printable(below)}\n" if below else "", style_of("dim", palette))
        for keys, words in (("j k", " move   "), ("enter", " takes it   "), ("esc", " none")):
            self._below.append(keys, style_of("key", palette)).append(words)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog pick") as box:
            box.border_title = self._title
            yield OptionList(*self._items, markup=False)
            yield Static(self._below)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_index)

    def on_key(self, event: events.Key) -> None:
        """Before the list has it."""
        listed = self.query_one(OptionList)
        match event.key:
            case "j":
                listed.action_cursor_down()
            case "k":
                listed.action_cursor_up()
            case "escape" | "q":
                self.dismiss(None)
            case _:
                return
        event.stop()


class Page(ModalScreen[None]):
    """Something to read; most keys close it."""

    AUTO_FOCUS = "VerticalScroll"

    def __init__(self, title: str, body: Text) -> None:
        super().__init__()
        self._title = title
        self._body = body

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog page") as box:
            box.border_title = self._title
            yield Static(self._body)

    def on_key(self, event: events.Key) -> None:
        scroll = self.query_one(VerticalScroll)
        event.stop()
        match event.key:
            case "j" | "down":
                scroll.scroll_down(animate=False)
            case "k" | "up":
                scroll.scroll_up(animate=False)
            case "pagedown" | "space":
                scroll.scroll_page_down(animate=False)
            case "pageup":
                scroll.scroll_page_up(animate=False)
            case "escape" | "q" | "enter" | "question_mark" | "D":
                self.dismiss(None)
            case _:
                pass


def confirmation(title: str, lines: Sequence[str], palette: str, also: str = "") -> Question:
    """`y` does it, `w` does it and more (`also` says what); everything else does not."""
    body = Text("\n".join(printable(line) for line in lines) + "\n\n")
    body.append("y", style_of("key", palette)).append(" do it    ")
    if also:
        body.append("w", style_of("key", palette)).append(f" do it, and {printable(also)}\n")
    body.append("esc", style_of("key", palette)).append(" leave it as it is")
    return Question(title, body, ["y", "w"] if also else ["y"])


def choice(title: str, options: Sequence[Option], below: str, palette: str) -> Question:
    """One letter per option; an option with a reason cannot be taken."""
    body = Text()
    for key, name, words, why_not in options:
        role = "faint" if why_not else "key"
        body.append(f"{key}  ", style_of(role, palette))
        body.append(f"{name:<24}", style_of("faint" if why_not else "strong", palette))
        body.append(f"\n   {why_not or words}\n", style_of("dim", palette))
    for line in below.strip().splitlines():
        body.append(f"\n{printable(line)}", style_of("dim", palette))
    takes = [key for key, _, _, why_not in options if not why_not]
    return Question(title, body, takes, "esc leave it as it is")


def key_page(title: str, rows: Sequence[tuple[str, str, str]], about: str, palette: str) -> Page:
    """Help: (keys, what they do, why not now)."""
    body = Text()
    if about:
        body.append(f"{about}\n\n", style_of("dim", palette))
    for keys, words, why_not in rows:
        body.append(f"{keys:>12}  ", style_of("faint" if why_not else "key", palette))
        body.append(words, style_of("faint" if why_not else "", palette))
        body.append(f"  ({why_not})\n" if why_not else "\n", style_of("dim", palette))
    body.append("\nesc closes, j k scroll", style_of("dim", palette))
    return Page(title, body)


def text_page(title: str, lines: Sequence[str]) -> Page:
    return Page(title, Text("\n".join(lines)))
