"""`baton doctor`: is everything as it should be, and which worker can take pages from which, and why not."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from baton.diagnosis import Check, Report, examine
from baton.status import DEFAULT_URL, fetch_status
from engine.core.errors import Unavailable


def doctor(
    url: Annotated[str, typer.Option(envvar="BATON_URL", help="Of the HTTP door.")] = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look for what is wrong with a service. Exit code 1 when something is, a pair that cannot hand over included."""
    try:
        report = examine(fetch_status(url))
    except Unavailable as error:
        report = Report((Check("router", False, error.message),))
    if as_json:
        print(json.dumps({"ok": report.ok, **asdict(report)}, indent=2))
    else:
        show(report, Console())
    if not report.ok:
        raise typer.Exit(1)


def show(report: Report, console: Console) -> None:
    """A line a check, then the matrix: who pulls from whom."""
    for check in report.checks:
        console.print(f"{'ok   ' if check.ok else 'WRONG'}  {check.name}: {check.text}", soft_wrap=True, markup=False)
    if not report.pairs:
        return
    targets = sorted({pair.target for pair in report.pairs})
    by_pair = {(pair.source, pair.target): pair for pair in report.pairs}
    table = Table(title="pages from (row) to (column)", show_lines=True)
    table.add_column("")
    for target in targets:
        table.add_column(target, overflow="fold")
    for source in sorted({pair.source for pair in report.pairs}):
        cells = []
        for target in targets:
            pair = by_pair.get((source, target))
            cells.append("-" if pair is None else pair.text if pair.ok else f"WRONG: {pair.text}")
        table.add_row(source, *cells)
    console.print(table)
