"""Draw the dashboards from what a Prometheus has, without Grafana: one PNG a dashboard. Needs matplotlib.

    python tools/draw_dashboards.py http://127.0.0.1:9090 FOLDER --seconds 120

It runs the panels' own queries; what Grafana adds in looks, it does not have.
"""

import argparse
import json
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from deploy.grafana.board import Board, Panel, Query
from deploy.grafana.boards import BOARDS

COLUMNS, RATE_INTERVAL = 3, "15s"
UNITS = {"s": "s", "percentunit": "share", "reqps": "1/s", "bytes": "bytes", "Bps": "B/s", "short": ""}


def fetch(url: str, path: str, **parameters: object) -> list[dict[str, Any]]:
    """The results of a query."""
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as response:
        result: list[dict[str, Any]] = json.load(response)["data"]["result"]
    return result


def expression(board: Board, query: Query) -> str:
    """The query with everything chosen."""
    expr = query.expr.replace("$__rate_interval", RATE_INTERVAL)
    for name, _ in board.variables:
        expr = expr.replace(f"${name}", ".*")
    return expr


def legend(query: Query, labels: dict[str, str]) -> str:
    """What Grafana would call the line."""
    text = query.legend or ", ".join(f"{key}={value}" for key, value in labels.items() if key != "__name__")
    for key, value in labels.items():
        text = text.replace(f"{{{{{key}}}}}", value)
    return text


def draw_lines(axes: Any, url: str, board: Board, panel: Panel, seconds: int) -> None:
    """Lines over time, or the last values as text."""
    now = time.time()
    lines = []
    for query in panel.queries:
        expr = expression(board, query)
        for each in fetch(url, "query_range", query=expr, start=now - seconds, end=now, step=2):
            points = [(float(at) - now, float(value)) for at, value in each["values"] if value != "NaN"]
            if points:
                lines.append((legend(query, each["metric"]), points))
    if panel.kind == "timeseries":
        stacked: dict[float, float] = {}
        for name, points in lines:
            base = [stacked.get(round(at), 0.0) if panel.stacked else 0.0 for at, _ in points]
            top = [low + value for low, (_, value) in zip(base, points, strict=True)]
            times = [at for at, _ in points]
            axes.plot(times, top, label=name, linewidth=1)
            if panel.stacked:
                axes.fill_between(times, base, top, alpha=0.3)
                stacked |= {round(at): value for at, value in zip(times, top, strict=True)}
        axes.set_ylim(bottom=0)
        axes.set_xlim(-seconds, 0)
        if lines:
            axes.legend(fontsize=5, loc="upper left", framealpha=0.5)
        return
    axes.axis("off")
    said = [f"{name}  {points[-1][1]:g}".strip() for name, points in lines] or ["no data"]
    size = 22 if panel.kind == "stat" else 6
    axes.text(0.5, 0.5, "\n".join(said[:12]), ha="center", va="center", fontsize=size, wrap=True)


def draw(url: str, board: Board, path: Path, seconds: int) -> None:
    """One dashboard."""
    panels = board.panels
    rows = -(-len(panels) // COLUMNS)
    figure, grid = pyplot.subplots(rows, COLUMNS, figsize=(15, 2.6 * rows), squeeze=False, layout="constrained")
    figure.suptitle(board.title)
    for index, axes in enumerate(grid.flat):
        if index >= len(panels):
            axes.axis("off")
            continue
        panel = panels[index]
        axes.set_title(f"{panel.title}" + (f" ({UNITS[panel.unit]})" if UNITS[panel.unit] else ""), fontsize=8)
        axes.tick_params(labelsize=6)
        draw_lines(axes, url, board, panel, seconds)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def main() -> None:
    """See the module."""
    flags = argparse.ArgumentParser()
    flags.add_argument("prometheus", help="its URL")
    flags.add_argument("folder", type=Path)
    flags.add_argument("--seconds", type=int, default=120, help="how far back")
    arguments = flags.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for board in BOARDS:
        path = arguments.folder / f"{board.uid.removeprefix('baton-')}.png"
        draw(arguments.prometheus, board, path, arguments.seconds)
        print(path)


if __name__ == "__main__":
    main()
