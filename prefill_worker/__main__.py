"""`python -m prefill_worker`: one prefill worker, until SIGTERM or Ctrl-C."""

import sys
from typing import Any

from engine.server.config import WorkerConfig
from engine.server.main import main
from engine.server.worker import RunningWorker


def _start(config: WorkerConfig) -> RunningWorker[Any, Any]:
    from prefill_worker.server import start_worker  # torch: seconds that --help and wrong flags need not wait for

    return start_worker(config)


if __name__ == "__main__":
    sys.exit(main(_start, "prefill"))
