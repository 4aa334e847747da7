"""Dashboards as values, and as the JSON that Grafana imports. No I/O."""

from dataclasses import dataclass, field
from itertools import count
from typing import Any

Json = dict[str, Any]

GRID_WIDTH, PANEL_WIDTH, PANEL_HEIGHT = 24, 8, 8
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and what its lines are called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    """Grafana's name: s, percentunit, reqps, bytes, Bps, short."""
    kind: str = "timeseries"
    """timeseries, stat, table."""
    stacked: bool = False
    text: str = ""
    """What a reader should know of it."""


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard: rows of panels, three in a line."""

    uid: str
    title: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    variables: tuple[tuple[str, str], ...] = field(default=())
    """(name, query that lists its values)."""

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All of them."""
        return tuple(panel for _, panels in self.rows for panel in panels)


def to_json(board: Board) -> Json:
    """The dashboard as Grafana 10 and later import it."""
    ids, y, panels = count(1), 0, []
    for title, row in board.rows:
        panels.append(
            {"id": next(ids), "type": "row", "title": title, "collapsed": False, "panels": []}
            | {"gridPos": {"x": 0, "y": y, "w": GRID_WIDTH, "h": 1}}
        )
        y += 1
        per_line = GRID_WIDTH // PANEL_WIDTH
        for index, panel in enumerate(row):
            place = {"x": index % per_line * PANEL_WIDTH, "y": y + index // per_line * PANEL_HEIGHT}
            panels.append(_panel(panel, next(ids)) | {"gridPos": place | {"w": PANEL_WIDTH, "h": PANEL_HEIGHT}})
        y += -(-len(row) // per_line) * PANEL_HEIGHT
    return {
        "uid": board.uid,
        "title": board.title,
        "tags": ["baton"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_datasource(), *(_variable(*each) for each in board.variables)]},
        "links": [{"type": "dashboards", "title": "Baton", "tags": ["baton"], "asDropdown": True, "keepTime": True}],
        "panels": panels,
    }


def _panel(panel: Panel, id: int) -> Json:
    custom: Json = {"showPoints": "never", "lineWidth": 1, "fillOpacity": 30 if panel.stacked else 8}
    custom["stacking"] = {"mode": "normal" if panel.stacked else "none", "group": "A"}
    body: Json = {
        "id": id,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "instant": panel.kind != "timeseries",
                "range": panel.kind == "timeseries",
                "format": "table" if panel.kind == "table" else "time_series",
            }
            for index, query in enumerate(panel.queries)
        ],
    }
    if panel.kind == "timeseries":
        body["fieldConfig"]["defaults"]["custom"] = custom
        body["options"] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    return body


def _datasource() -> Json:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}}


def _variable(name: str, query: str) -> Json:
    return {
        "name": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
