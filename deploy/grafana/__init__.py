"""Dashboards: `boards.py` is their source, `dashboards/*.json` what `python -m deploy.grafana.build` makes of it."""
