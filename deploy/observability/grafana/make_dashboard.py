"""Writes the dashboard: `python -m deploy.observability.grafana.make_dashboard`, from the root of the repository.

The JSON is what Grafana provisions; it is not written by hand, since a panel is sixty lines of it and two that matter.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.observability.grafana.moderation_rows import CLASSIFY_CALLS, MODERATION, SECURITY
from deploy.observability.grafana.panel import Panel, Row
from deploy.observability.grafana.serving_rows import ENGINE, LATENCY, OVERVIEW

DASHBOARD = Path(__file__).with_name("guardwire.json")
ROWS: tuple[Row, ...] = (OVERVIEW, LATENCY, ENGINE, MODERATION, CLASSIFY_CALLS, SECURITY)

SCHEMA_VERSION = 39
"""Of Grafana 11.0; later ones migrate it when they load it."""

NUM_COLUMNS = 24
HEIGHTS = {"stat": 4, "timeseries": 8}

SOURCE = {"type": "prometheus", "uid": "${datasource}"}

JsonObject = dict[str, Any]


def render() -> str:
    """The dashboard as JSON."""
    dashboard = {
        "uid": "guardwire",
        "title": "Guardwire",
        "description": "Moderation of text that language models are writing: load, latency, decisions, limits.",
        "tags": ["guardwire"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "annotations": {"list": [_alerts()]},
        "links": [],
        "templating": {"list": _variables()},
        "panels": list(_laid_out(ROWS)),
    }
    return json.dumps(dashboard, indent=2) + "\n"


def _alerts() -> JsonObject:
    """Marks on every panel when an alert fired."""
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Guardwire.*", alertstate="firing", job=~"$job|"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{instance}}",
        "step": "60s",
    }


def _variables() -> list[JsonObject]:
    """Where the data lies, and which servers to show."""
    source = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "refresh": 1,
    }
    return [
        source,
        _label_variable("job", "Job", "label_values(guardwire_health_serving, job)"),
        _label_variable("instance", "Server", 'label_values(guardwire_health_serving{job=~"$job"}, instance)'),
    ]


def _label_variable(name: str, label: str, query: str) -> JsonObject:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": f"{name}s"},
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "allValue": ".+",
        "includeAll": True,
        "multi": True,
        "hide": 0,
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
    }


def _laid_out(rows: tuple[Row, ...]) -> Iterator[JsonObject]:
    """Headings and panels from left to right and from top to bottom."""
    panel_id = y = 0
    for row in rows:
        panel_id += 1
        yield {
            "id": panel_id,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": NUM_COLUMNS, "h": 1},
            "panels": [],
        }
        y += 1
        x = line_height = 0
        for panel in row.panels:
            panel_id += 1
            if x + panel.width > NUM_COLUMNS:
                y += line_height
                x = line_height = 0
            height = HEIGHTS[panel.kind]
            yield _panel(panel, panel_id) | {"gridPos": {"x": x, "y": y, "w": panel.width, "h": height}}
            x += panel.width
            line_height = max(line_height, height)
        y += line_height


def _panel(panel: Panel, panel_id: int) -> JsonObject:
    is_stat = panel.kind == "stat"
    steps: list[JsonObject] = [{"color": panel.color, "value": None}]
    steps += [{"color": color, "value": value} for value, color in panel.thresholds]
    return {
        "id": panel_id,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "editorMode": "code",
                "expr": expr,
                "legendFormat": legend,
                "instant": is_stat,
                "range": not is_stat,
            }
            for index, (legend, expr) in enumerate(panel.queries.items())
        ],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "color": {"mode": "thresholds" if is_stat else "palette-classic"},
                "thresholds": {"mode": "absolute", "steps": steps},
                "custom": {} if is_stat else _lines(panel),
            },
            "overrides": [],
        },
        "options": _STAT_OPTIONS if is_stat else _SERIES_OPTIONS,
    }


def _lines(panel: Panel) -> JsonObject:
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if panel.is_stacked else 0,
        "showPoints": "auto",
        "spanNulls": False,
        "axisSoftMin": 0,
        "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
    }


_STAT_OPTIONS: JsonObject = {
    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    "colorMode": "value",
    "graphMode": "none",
    "textMode": "auto",
    "justifyMode": "auto",
    "orientation": "auto",
    "wideLayout": True,
}
_SERIES_OPTIONS: JsonObject = {
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
    "tooltip": {"mode": "multi", "sort": "desc"},
}

if __name__ == "__main__":
    DASHBOARD.write_text(render())
