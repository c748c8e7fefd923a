"""Tables for people who read a terminal."""

from collections.abc import Mapping, Sequence


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> str:
    """A table as text, in colours where stdout is a terminal; the first column left-aligned, the others right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    console = Console()
    with console.capture() as text:
        console.print(made)
    return text.get().rstrip("\n")


def listing(names: Mapping[str, str]) -> str:
    """A line for each name, with what it is; never folded."""
    width = max(map(len, names))
    return "\n".join(f"{name:{width}}  {about}" for name, about in names.items())
