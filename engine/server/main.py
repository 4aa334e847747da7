"""The command line of one worker process: `python -m prefill_worker`, `python -m decode_worker`.

Scripts read one JSON line from its output when it is ready; the log goes to stderr. SIGTERM drains the worker: routers
move what runs there, then it ends. A second one, or Ctrl-C, ends it at once. Exit code 0 after a signal or a drain, 1
when the engine died, 2 when it could not start.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from engine.attention.choice import AUTO
from engine.attention.choice import BACKENDS as NAMED
from engine.core.errors import BatonError, InvalidRequest
from engine.runtime.config import (
    COLLECTIVES,
    KV_DTYPES,
    QUANTIZATIONS,
    EngineConfig,
    Formats,
    Parallel,
    parse_kv_memory,
)
from engine.server.config import CLUSTER_KEY_VARIABLE, TRANSPORTS, WorkerConfig
from engine.server.kv_events.config import parse_feed
from engine.server.worker import STOP_TIMEOUT_S, RunningWorker
from engine.wire.tls import TlsFiles

logger = logging.getLogger(__name__)

BACKENDS = (AUTO, *NAMED)
SIGNAL_POLL_S = 0.25
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"

StartWorker = Callable[[WorkerConfig], RunningWorker[Any, Any]]


def parser(kind: str) -> argparse.ArgumentParser:
    """Every flag of a worker."""
    flags = argparse.ArgumentParser(
        prog=f"python -m {kind}_worker",
        epilog=f"The cluster key, shared by all workers, comes from the environment variable {CLUSTER_KEY_VARIABLE}.",
    )
    flags.add_argument("--model", required=True, help="checkpoint folder or hub id")
    flags.add_argument("--model-name", default="", help="what clients call the model")
    flags.add_argument("--worker-id", default=f"{kind}-0", help="unique in the cluster")
    flags.add_argument("--host", default="127.0.0.1", help="address to listen on")
    flags.add_argument("--port", type=int, default=0, help="0 takes a free one")
    flags.add_argument("--advertise", default="", help="host that others reach this worker by")
    flags.add_argument("--metrics-port", type=int, default=0, help="of /metrics, /live and /ready; 0 takes a free one")
    flags.add_argument("--page-port", type=int, default=0, help="of the gRPC page transport; 0 takes a free one")
    flags.add_argument("--transport", default="auto", choices=TRANSPORTS, help="how pages move")
    flags.add_argument("--device", default="auto", help="cpu, cuda or cuda:N; the first of --tp ones")
    flags.add_argument("--tp", type=int, default=1, help="devices of this host that compute the model together")
    flags.add_argument("--collective", default="auto", choices=COLLECTIVES, help="how they sum, on CUDA")
    flags.add_argument("--dtype", default="auto")
    flags.add_argument("--kv-dtype", default="auto", choices=tuple(KV_DTYPES), help="of KV pages; auto: as --dtype")
    flags.add_argument("--quantization", default="auto", choices=QUANTIZATIONS, help="auto: as the checkpoint is")
    flags.add_argument("--page-size", type=int)
    flags.add_argument("--kv-memory", help="of each device: bytes (2GiB) or a fraction (0.8) of what is free")
    flags.add_argument("--max-model-len", type=int)
    flags.add_argument("--max-step-tokens", type=int, default=2048)
    flags.add_argument("--max-rows", type=int, default=256)
    flags.add_argument("--attention-backend", default="auto", help=f"one of {', '.join(BACKENDS)}")
    flags.add_argument("--random-weights", action="store_true", help="draw weights from --seed; needs config.json only")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--drain-grace", type=float, default=25.0, help="seconds that SIGTERM gives requests to move")
    flags.add_argument("--kv-events", default="", metavar="tcp://HOST:PORT", help="publish prefix events; see docs")
    flags.add_argument(
        "--cluster-tls", type=Path, metavar="FOLDER", help="with tls.crt, tls.key, ca.crt: mutual TLS with all others"
    )
    flags.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return flags


def config_of(arguments: argparse.Namespace, environment: "os._Environ[str] | dict[str, str]") -> WorkerConfig:
    """Raises InvalidRequest."""
    key = environment.get(CLUSTER_KEY_VARIABLE, "").encode()
    if not key:
        raise InvalidRequest(f"set {CLUSTER_KEY_VARIABLE} to a secret that all workers of the cluster share")
    engine = EngineConfig(
        model=arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        formats=Formats(arguments.kv_dtype, arguments.quantization),
        page_size=arguments.page_size,
        kv_memory=None if arguments.kv_memory is None else parse_kv_memory(arguments.kv_memory),
        max_model_len=arguments.max_model_len,
        max_step_tokens=arguments.max_step_tokens,
        max_rows=arguments.max_rows,
        attention_backend=arguments.attention_backend,
        random_weights=arguments.random_weights,
        seed=arguments.seed,
        parallel=Parallel(arguments.tp, arguments.collective),
    )
    return WorkerConfig(
        engine=engine,
        worker_id=arguments.worker_id,
        cluster_key=key,
        model_name=arguments.model_name,
        host=arguments.host,
        port=arguments.port,
        advertise=arguments.advertise,
        metrics_port=arguments.metrics_port,
        page_port=arguments.page_port,
        transport=arguments.transport,
        drain_grace_s=arguments.drain_grace,
        kv_events=parse_feed(arguments.kv_events),
        tls=None if arguments.cluster_tls is None else TlsFiles.folder(arguments.cluster_tls),
    )


def ready_line(worker: RunningWorker[Any, Any]) -> str:
    """What scripts wait for."""
    info = worker.info
    return json.dumps(
        {
            "ready": True,
            "worker": info.id,
            "incarnation": f"{info.incarnation:016x}",
            "roles": info.roles,
            "address": info.address,
            "metrics_port": worker.metrics_port,
            "num_pages": info.num_pages,
            "max_model_len": info.max_model_len,
            "pid": os.getpid(),
        }
    )


def _claim_stdout() -> TextIO:
    """Standard output for the ready line alone: what C libraries print goes to stderr from here on."""
    ready_file = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return ready_file


def main(start_worker: StartWorker, kind: str, argv: Sequence[str] | None = None) -> int:
    """Run one worker. Returns the exit code."""
    arguments = parser(kind).parse_args(argv)
    logging.basicConfig(level=arguments.log_level, stream=sys.stderr, format=LOG_FORMAT)
    try:
        config = config_of(arguments, os.environ)
        ready_file = _claim_stdout()
        worker = start_worker(config)
    except BatonError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 2
    must_end_s: list[float] = []

    def stop(_signal: int, _frame: object) -> None:
        must_end_s.append(time.monotonic() + STOP_TIMEOUT_S)
        worker.ask_to_stop()

    def drain(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, stop)  # who asks again does not want to wait
        must_end_s.append(time.monotonic() + config.drain_grace_s + STOP_TIMEOUT_S)
        worker.drain(config.drain_grace_s)

    signal.signal(signal.SIGTERM, drain)
    signal.signal(signal.SIGINT, stop)
    with ready_file:
        ready_file.write(ready_line(worker) + "\n")
    while not worker.wait(SIGNAL_POLL_S):
        # The kernel may give a signal to any thread; its handler runs when this one wakes up.
        if must_end_s and time.monotonic() > min(must_end_s):
            logger.error(
                "worker=%s did not stop within %g s: a step is still under way", worker.info.id, STOP_TIMEOUT_S
            )
            os._exit(1)
    return 1 if worker.died else 0
