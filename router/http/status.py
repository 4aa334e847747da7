"""The status page: what `baton status` and operators read."""

from router.api import PrefixTree, RequestStatus, ServiceStatus, WorkerStatus
from router.http.logprobs import Json
from router.prefix_outline import PrefixNode
from router.recent import RecentTimes


def status_body(status: ServiceStatus) -> Json:
    """The service and its workers as JSON."""
    return {
        "ready": status.ready,
        "detail": status.detail,
        "queued_requests": status.queued_requests,
        "running_requests": status.running_requests,
        "prompt_tokens": status.prompt_tokens,
        "cached_tokens": status.cached_tokens,
        "cache_hit_rate": round(status.cached_tokens / max(status.prompt_tokens, 1), 4),
        "totals": dict(status.totals),
        "recent": _recent(status.recent),
        "requests": [_request(request) for request in status.requests],
        "workers": [_worker(worker) for worker in status.workers],
    }


def prefixes_body(tree: PrefixTree) -> Json:
    """What is cached where."""
    return {
        "page_size": tree.page_size,
        "left_out": tree.left_out,
        "nodes": [_node(node, tree.page_size) for node in tree.nodes],
    }


def _node(node: PrefixNode, page_size: int) -> Json:
    """Nodes lie no deeper than prefixes branch; a hundred at most."""
    return {
        "id": node.digest.hex()[:8],
        "pages": node.pages,
        "tokens": node.pages * page_size,
        "workers": list(node.workers),
        "children": [_node(child, page_size) for child in node.children],
    }


def _recent(times: RecentTimes | None) -> Json | None:
    if times is None:
        return None
    return {
        "requests": times.requests,
        "ttft_ms": round(times.ttft_s * 1e3, 3),
        "queue_ms": round(times.queue_s * 1e3, 3),
        "prefill_ms": round(times.prefill_s * 1e3, 3),
        "transfer_ms": round(times.transfer_s * 1e3, 3),
        "itl_ms": round(times.itl_s * 1e3, 3),
    }


def _request(request: RequestStatus) -> Json:
    return {
        "id": request.id,
        "state": request.state,
        "prompt_tokens": request.prompt_tokens,
        "tokens": request.tokens,
        "age_s": round(request.age_s, 3),
        "prefill": request.prefill_worker,
        "decode": request.decode_worker,
    }


def _worker(worker: WorkerStatus) -> Json:
    info, load = worker.info, worker.load
    body: Json = {
        "id": info.id,
        "incarnation": f"{info.incarnation:016x}",
        "roles": list(info.roles),
        "address": info.address,
        "model": info.model,
        "state": worker.state,
        "detail": worker.detail,
        "version": info.version,
        "transports": [name for name, _ in info.transports],
        "layout": {
            "model_hash": info.layout.model_hash,
            "num_layers": info.layout.num_layers,
            "num_kv_heads": info.layout.num_kv_heads,
            "head_dim": info.layout.head_dim,
            "page_size": info.layout.page_size,
            "dtype": info.layout.dtype,
            "tp_size": info.layout.tp_size,
            "version": info.layout.version,
        },
        "requests": worker.num_requests,
        "topology": dict(info.topology),
        "num_pages": info.num_pages,
        "load": None,
        "peers": [
            {
                "id": peer.worker_id,
                "incarnation": f"{peer.incarnation:016x}",
                "ready": peer.ready,
                "transport": peer.transport,
                "bytes_per_s": round(peer.bytes_per_s),
                "detail": peer.message,
            }
            for peer in worker.peers
        ],
    }
    if load is not None:
        body["load"] = {
            "age_s": round(worker.load_age_s, 3),
            "queued_requests": load.queued_requests,
            "queued_tokens": load.queued_tokens,
            "running_rows": load.running_rows,
            "free_pages": load.free_pages,
            "step_ms": round(load.step_s * 1e3, 3),
            "prefill_tokens_per_s": round(load.prefill_tokens_per_s, 1),
            "pages_by_state": {count.state: count.pages for count in load.pages_by_state},
            "oldest_page_s": {count.state: round(count.oldest_s, 1) for count in load.pages_by_state if count.oldest_s},
            "num_page_faults": load.num_page_faults,
            "num_preempted": load.num_preempted,
            "draining": load.draining,
        }
    return body
