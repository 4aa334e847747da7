"""`python -m prefill_worker`: one prefill worker, until SIGTERM or Ctrl-C."""

import sys

from engine.server.main import main
from prefill_worker.server import start_worker

if __name__ == "__main__":
    sys.exit(main(start_worker, "prefill"))
