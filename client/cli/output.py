"""What goes to the screen: data to stdout as a table or as JSON, everything else to stderr."""

import json
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True)
class Output:
    """Prints results in the form that was asked for with -o: "table" or "json"."""

    form: str = "table"

    @property
    def is_json(self) -> bool:
        return self.form == "json"

    def listing(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], data: Sequence[Mapping[str, Any]]
    ) -> None:
        """A table of `rows`, or `data` as one JSON array. Columns whose cells are all numbers stand right."""
        if self.is_json:
            write(json.dumps(data, indent=2, ensure_ascii=False))
            return
        cells = [[_cell(value) for value in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        right = [bool(rows) and all(isinstance(row[n], int | float) for row in rows) for n in range(len(columns))]
        cut = _cutter()
        click.secho(cut(_aligned(columns, widths, right)), bold=True)
        for row_cells in cells:
            write(cut(_aligned(row_cells, widths, right)))

    def details(self, rows: Sequence[tuple[str, object]], data: Mapping[str, Any]) -> None:
        """Names and values below each other, or `data` as one JSON object."""
        if self.is_json:
            write(json.dumps(data, indent=2, ensure_ascii=False))
            return
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            lines = _cell(value).splitlines() or [""]
            write(click.style(f"{name:<{width}}", bold=True) + "  " + lines[0])
            for more in lines[1:]:
                write(" " * (width + 2) + more)

    def line(self, text: str, data: Mapping[str, Any]) -> None:
        """One line of text, or `data` as one line of JSON."""
        write(json.dumps(data, ensure_ascii=False) if self.is_json else text)


def write(text: str) -> None:
    """One line of data."""
    click.echo(text)


def note(text: str) -> None:
    """Something for the person, on stderr."""
    click.echo(text, err=True)


def confirm(question: str, *, yes: bool) -> None:
    """Asks before something is destroyed. Without a terminal `--yes` is required: a script must mean it."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is no terminal to ask on; add --yes to do it.")
    # Inside an event loop Ctrl-C only cancels the task, which this question would never notice.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        click.confirm(question, abort=True, err=True)
    finally:
        signal.signal(signal.SIGINT, before)


def progress() -> "Progress":
    """A progress bar on stderr, silent unless a person is watching it."""
    # Imported here, since few commands show one and it takes a tenth of a second.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[extra]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _cutter() -> Callable[[str], str]:
    """Shortens a row to the terminal's width, so that it stays one line; does nothing without a terminal."""
    if not sys.stdout.isatty():
        return str
    width = shutil.get_terminal_size().columns
    return lambda row: row if len(row) <= width else row[: width - 1] + "…"


def _aligned(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = [f"{c:>{w}}" if r else f"{c:<{w}}" for c, w, r in zip(cells, widths, right, strict=True)]
    return "  ".join(parts).rstrip()


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
