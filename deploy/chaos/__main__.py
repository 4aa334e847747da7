"""`python -m deploy.chaos [SECONDS [TRANSPORT]]`."""

import sys

from deploy.chaos.command import run

if __name__ == "__main__":
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    sys.exit(run(seconds=seconds, transport=sys.argv[2] if len(sys.argv) > 2 else "auto", as_json=True))
