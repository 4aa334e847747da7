"""The Ray cluster under a service: an embedded one that lives and dies with this process, or one that exists already.

Ray reads its environment (token, log settings) once, while it is imported. So no module here imports it at the top:
an embedded cluster sets its own token first.
"""

import ctypes
import logging
import os
import re
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from engine.core.errors import InvalidRequest, Unavailable
from engine.server.config import CLUSTER_KEY_VARIABLE

EMBEDDED = "local"
ROUTER_RESOURCE = "baton_router"
"""A custom resource of the node that clients are told of; without one the router may land anywhere."""
ROUTER_SHARE = 0.01
_FOLDER = re.compile(r"baton-ray-(\d+)-")
_PR_SET_CHILD_SUBREAPER = 36
_TRIES = 2
"""Ray gives its node 30 s, which a very busy machine may exceed; what the first try has read is in memory then."""
_OBJECT_STORE_BYTES = 80 << 20
"""Ray's minimum and some: pages never travel through the object store."""


class Cluster:
    """A connection to Ray, as a context manager.

    address: EMBEDDED starts Ray inside this process tree, with a random token that no other process has and a folder
    of its own for sockets and logs; all of it is gone at the end. Anything else ("auto", "ray-head:6379") connects
    to a running cluster with the environment's token and leaves it as it was.
    """

    def __init__(self, address: str = EMBEDDED, namespace: str | None = None) -> None:
        """`namespace` is of the names that actors are given."""
        self.address = address
        self._namespace = namespace
        self._folder: Path | None = None

    @property
    def embedded(self) -> bool:
        """Whether this process owns the cluster."""
        return self.address == EMBEDDED

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def num_gpus(self) -> int:
        """GPUs of the whole cluster."""
        import ray

        return int(ray.cluster_resources().get("GPU", 0))

    def num_cpus(self) -> int:
        """CPU cores of the whole cluster, container limits respected; at least 1."""
        import ray

        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def offers(self, resource: str) -> bool:
        """Whether some node has that custom resource."""
        import ray

        return bool(ray.cluster_resources().get(resource))

    def key(self) -> str:
        """The cluster key of the environment, or a random one.

        Raises InvalidRequest when it came in the runtime environment of a Ray job: Ray writes that to its logs and
        shows it to whoever may read its state.
        """
        import ray

        if CLUSTER_KEY_VARIABLE in ray.get_runtime_context().runtime_env.get("env_vars", {}):
            raise InvalidRequest(
                f"{CLUSTER_KEY_VARIABLE} is in the job's runtime_env, which Ray logs and shows: leave it out (one is "
                "made), or set it in the environment that the nodes start in"
            )
        return os.environ.get(CLUSTER_KEY_VARIABLE, "") or secrets.token_hex(32)

    def router_resources(self) -> dict[str, float]:
        """What the router asks of Ray: ROUTER_RESOURCE, where some node offers it."""
        return {ROUTER_RESOURCE: ROUTER_SHARE} if self.offers(ROUTER_RESOURCE) else {}

    def close(self) -> None:
        """Disconnect; an embedded cluster ends with every process that it started. Idempotent."""
        this = psutil.Process()
        children = this.children(recursive=True) if self.embedded else []
        for monitor in this.children() if self.embedded else []:
            if _is_python(monitor):  # Ray would wait for the end of one after the other.
                _kill(monitor)  # Not raylet's own agents: it reports their loss as the death of its node.
        import ray

        ray.shutdown()
        _, alive = psutil.wait_procs(children, timeout=0.5)
        for child in alive:
            _kill(child)
        psutil.wait_procs(alive, timeout=0.5)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _start(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would let every other process go first
        if not self.embedded:
            _init(f"cannot connect to Ray at {self.address}", address=self.address, namespace=self._namespace)
            return
        _adopt_orphans()
        _remove_stale_folders()
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        for tries_left in reversed(range(_TRIES)):
            try:
                self._embed()
                return
            except Unavailable:
                if not tries_left:
                    raise
                self.close()

    def _embed(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix=f"baton-ray-{os.getpid()}-"))
        _init(
            "Ray did not start",
            address=EMBEDDED,
            namespace=self._namespace,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(self._folder),
        )


def _init(what_failed: str, **options: Any) -> None:
    """ray.init. Raises Unavailable, in one line, when Ray cannot be had.

    Ray has no type for that: a node that is late raises Exception itself, others ValueError, RuntimeError and OSError.
    """
    import ray

    try:
        ray.init(logging_level=logging.ERROR, **options)
    except Exception as error:
        raise Unavailable(f"{what_failed}: {' '.join(str(error).split())}") from error


def _adopt_orphans() -> None:
    """When raylet ends before its workers, they become children of this process, which then can wait for their end.

    Else they would go to process 1, which in a container may leave them as zombies. Linux only: prctl(2).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _remove_stale_folders() -> None:
    """A process that was killed could not clean up; its successor does, so nothing grows."""
    for folder in Path(tempfile.gettempdir()).glob("baton-ray-*"):
        match = _FOLDER.match(folder.name)
        if match is not None and not psutil.pid_exists(int(match[1])):
            shutil.rmtree(folder, ignore_errors=True)


def _is_python(process: psutil.Process) -> bool:
    try:
        return "python" in Path(process.exe()).name
    except psutil.Error:
        return False  # it is gone


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass
