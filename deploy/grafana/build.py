"""`python -m deploy.grafana.build`: write the dashboards and rules from their Python sources.

With --check nothing is written; exit code 1 names the files that are not what their sources say.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from deploy.grafana.board import to_json
from deploy.grafana.boards import BOARDS
from deploy.prometheus.rules import groups

DEPLOY = Path(__file__).resolve().parents[1]
_HEAD = "# Made by `python -m deploy.grafana.build` from deploy/prometheus/rules.py.\n"


def files(folder: Path = DEPLOY) -> dict[Path, str]:
    """Every file that is made, and its text. The Helm chart links to them."""
    made = {
        folder / "grafana" / "dashboards" / f"{board.uid.removeprefix('baton-')}.json": json.dumps(
            to_json(board), indent=1
        )
        + "\n"
        for board in BOARDS
    }
    rules = yaml.safe_dump({"groups": groups()}, sort_keys=False, width=1000)
    return made | {folder / "prometheus" / "rules.yaml": _HEAD + rules}


def stale(folder: Path = DEPLOY) -> list[Path]:
    """Files that differ from their sources, and dashboards that have none."""
    made = files(folder)
    extra = set((folder / "grafana" / "dashboards").glob("*.json")) - made.keys()
    return sorted({path for path, text in made.items() if not path.is_file() or path.read_text() != text} | extra)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    flags = argparse.ArgumentParser(prog="python -m deploy.grafana.build")
    flags.add_argument("--check", action="store_true", help="write nothing; say what is out of date")
    if flags.parse_args(argv).check:
        for path in stale():
            print(f"{path}: not what its source says; run python -m deploy.grafana.build")
        return bool(stale())
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
