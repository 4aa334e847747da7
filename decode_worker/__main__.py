"""`python -m decode_worker`: one decode worker, until SIGTERM or Ctrl-C."""

import sys

from decode_worker.server import start_worker
from engine.server.main import main

if __name__ == "__main__":
    sys.exit(main(start_worker, "decode"))
