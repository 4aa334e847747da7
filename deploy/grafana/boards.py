"""What the dashboards show. Every query here is run against a real Prometheus in tests/e2e/test_dashboards.py."""

from deploy.grafana.board import Board, Panel, Query

RATE = "$__rate_interval"
ROUTER = 'router=~"$router"'
WORKER = 'worker=~"$worker"'
ROUTERS = (("router", "label_values(baton_router_running_requests, router)"),)
WORKERS = (("worker", "label_values(baton_worker_running_rows, worker)"),)
PARTS = ("queue", "admit", "prefill", "transfer", "first_step")


def rate(metric: str, labels: str = "", by: str = "") -> str:
    """Sum of a counter's rates, by labels."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{labels}}}[{RATE}]))"


def mean(metric: str, labels: str = "", by: str = "") -> str:
    """Of a histogram, per observation."""
    return f"{rate(metric + '_sum', labels, by)} / ({rate(metric + '_count', labels, by)} > 0)"


def quantile(share: float, metric: str, labels: str = "", by: str = "") -> str:
    """Of a histogram."""
    return f"histogram_quantile({share:g}, {rate(metric + '_bucket', labels, f'{by}, le' if by else 'le')})"


def quantiles(metric: str, labels: str = "") -> tuple[Query, ...]:
    """Half, nine in ten, 99 in a hundred."""
    return tuple(Query(quantile(share, metric, labels), f"p{100 * share:g}") for share in (0.5, 0.9, 0.99))


def one(title: str, expr: str, legend: str = "", unit: str = "short", text: str = "") -> Panel:
    """A panel with one query."""
    return Panel(title, (Query(expr, legend),), unit, text=text)


def number(title: str, expr: str, unit: str = "short") -> Panel:
    """The last value, large."""
    return Panel(title, (Query(expr),), unit, kind="stat")


OVERVIEW = Board(
    "baton-overview",
    "Baton: overview",
    (
        (
            "Service",
            (
                number("Workers ready", "max(sum by (router) (baton_router_worker_ready))"),
                number("Requests running", "sum(baton_router_running_requests)"),
                number("Requests waiting at the routers", "sum(baton_router_queued_requests)"),
                Panel(
                    "Requests by outcome",
                    (Query(rate("baton_router_requests_total", by="outcome"), "{{outcome}}"),),
                    "reqps",
                    stacked=True,
                ),
                one("Failed share, 5 minutes", "baton:requests_failed:ratio_rate5m", "failed", "percentunit"),
                one("Late first tokens, 5 minutes", "baton:ttft_late:ratio_rate5m", "late", "percentunit"),
            ),
        ),
        (
            "What clients see",
            (
                Panel("Time to first token", quantiles("baton_router_ttft_seconds"), "s"),
                Panel("Gap between tokens", quantiles("baton_router_itl_seconds"), "s"),
                Panel("Arrival to last token", quantiles("baton_router_response_seconds"), "s"),
            ),
        ),
        (
            "Work",
            (
                Panel(
                    "Tokens per second",
                    (
                        Query(rate("baton_router_prompt_tokens_total"), "prompt"),
                        Query(rate("baton_router_cached_tokens_total"), "of these cached"),
                        Query(rate("baton_router_output_tokens_total"), "answer"),
                    ),
                ),
                one(
                    "Cache hit rate",
                    f"{rate('baton_router_cached_tokens_total')} / ({rate('baton_router_prompt_tokens_total')} > 0)",
                    "cached share of prompt tokens",
                    "percentunit",
                ),
                Panel(
                    "Rows and waiting requests at workers",
                    (
                        Query("sum by (role) (baton_worker_running_rows)", "{{role}} running"),
                        Query("sum by (role) (baton_worker_queued_requests)", "{{role}} waiting"),
                    ),
                ),
            ),
        ),
    ),
)

TTFT = Board(
    "baton-ttft",
    "Baton: time to first token, in four parts",
    (
        (
            "Where the time goes: waiting, computing the prompt, moving its pages, the first decode step",
            (
                Panel(
                    "Mean of each part",
                    tuple(Query(mean(f"baton_router_{part}_seconds", ROUTER), part) for part in PARTS),
                    "s",
                    stacked=True,
                    text="The first token leaves after two parts; the other two separate the second from it.",
                ),
                Panel(
                    "p99 of each part",
                    tuple(Query(quantile(0.99, f"baton_router_{part}_seconds", ROUTER), part) for part in PARTS),
                    "s",
                ),
                Panel("Time to first token", quantiles("baton_router_ttft_seconds", ROUTER), "s"),
            ),
        ),
        (
            "Each part",
            tuple(Panel(part, quantiles(f"baton_router_{part}_seconds", ROUTER), "s") for part in PARTS),
        ),
        (
            "Why",
            (
                one("Prediction error", f"baton_router_ttft_prediction_error{{{ROUTER}}}", "{{router}}", "percentunit"),
                one(
                    "Waiting at the workers",
                    quantile(0.99, "baton_worker_queue_seconds", by="role"),
                    "{{role}} p99",
                    "s",
                ),
                one("Prompt tokens that wait", "sum by (worker) (baton_worker_queued_tokens)", "{{worker}}"),
            ),
        ),
    ),
    ROUTERS,
)

ROUTERS_BOARD = Board(
    "baton-router",
    "Baton: routers",
    (
        (
            "Choice",
            (
                one("Attempts by route", rate("baton_router_attempts_total", ROUTER, "route"), "{{route}}", "reqps"),
                one("Open legs by worker", f"sum by (worker) (baton_router_worker_legs{{{ROUTER}}})", "{{worker}}"),
                one("Distinct pages in the index", f"baton_router_indexed_pages{{{ROUTER}}}", "{{router}}"),
                one("Pages by worker", f"max by (worker) (baton_router_worker_pages{{{ROUTER}}})", "{{worker}}"),
                one(
                    "Index in step with the cache",
                    f"min by (worker) (baton_router_worker_index_synced{{{ROUTER}}})",
                    "{{worker}}",
                ),
                one("May get work", f"min by (worker) (baton_router_worker_ready{{{ROUTER}}})", "{{worker}}"),
            ),
        ),
        (
            "Trouble",
            (
                one("Retries by cause", rate("baton_router_retries_total", ROUTER, "cause"), "{{cause}}", "reqps"),
                one("Resumed after their first token", rate("baton_router_resumed_total", ROUTER), "resumed", "reqps"),
                Panel(
                    "Workers lost and silent",
                    (
                        Query(rate("baton_router_workers_lost_total", ROUTER), "lost"),
                        Query(rate("baton_router_workers_hung_total", ROUTER), "silent"),
                    ),
                ),
                one(
                    "Breakers of workers",
                    f"max by (worker) (baton_router_worker_breaker_open{{{ROUTER}}})",
                    "{{worker}}",
                ),
                one(
                    "Breakers of pairs",
                    f"max by (source, target) (baton_router_pair_breaker_open{{{ROUTER}}})",
                    "{{source}} to {{target}}",
                ),
                one("Leaving", f"max by (worker) (baton_router_worker_draining{{{ROUTER}}})", "{{worker}}"),
            ),
        ),
        (
            "Process",
            (
                one(
                    "HTTP requests",
                    rate("baton_http_request_seconds_count", ROUTER, "route, status"),
                    "{{route}} {{status}}",
                    "reqps",
                ),
                one("HTTP requests open", f"sum by (router) (baton_http_requests_open{{{ROUTER}}})", "{{router}}"),
                one(
                    "Processor cores in use",
                    rate("process_cpu_seconds_total", f'job="baton-router",{ROUTER}', "router"),
                    "{{router}}",
                ),
                one(
                    "Memory",
                    f'process_resident_memory_bytes{{job="baton-router",{ROUTER}}}',
                    "{{router}}",
                    "bytes",
                ),
            ),
        ),
    ),
    ROUTERS,
)

HANDOFF = Board(
    "baton-handoff",
    "Baton: handoff and page ledger",
    (
        (
            "Handoffs",
            (
                Panel(
                    "Handoffs",
                    (
                        Query(rate("baton_router_handoffs_total"), "proven"),
                        Query(rate("baton_router_handoff_failures_total"), "failed"),
                    ),
                    "reqps",
                ),
                one(
                    "Ends at the decode workers",
                    rate("baton_worker_handoffs_total", by="outcome"),
                    "{{outcome}}",
                    "reqps",
                ),
                Panel("First ticket to proof", quantiles("baton_worker_transfer_seconds"), "s"),
                one("Bytes moved", rate("baton_worker_transfer_bytes_total", by="worker"), "{{worker}}", "Bps"),
                one(
                    "Pages of handoffs, by where they were",
                    rate("baton_worker_handoff_pages_total", by="source"),
                    "{{source}}",
                ),
                one(
                    "Bytes moved per second of transfer",
                    f"{rate('baton_worker_transfer_bytes_total', by='worker')}"
                    f" / ({rate('baton_worker_transfer_seconds_sum', by='worker')} > 0)",
                    "{{worker}}",
                    "Bps",
                    "From the first ticket on: the wait for the rest of the prompt is in it.",
                ),
            ),
        ),
        (
            "Pairs",
            (
                Panel(
                    "Proven",
                    (Query("min by (source, target) (baton_router_pair_proven)"),),
                    kind="table",
                    text="1: the target can pull pages from the source.",
                ),
                one(
                    "Bandwidth that the proof measured",
                    "max by (source, target) (baton_router_pair_bytes_per_second)",
                    "{{source}} to {{target}}",
                    "Bps",
                ),
                one("Peers that can be pulled from", "sum by (worker) (baton_worker_peer_ready)", "{{worker}}"),
            ),
        ),
        (
            "Ledger: every page is in one of these states",
            (
                Panel(
                    "Pages by state",
                    (Query("sum by (state) (baton_worker_pages)", "{{state}}"),),
                    stacked=True,
                ),
                one("KV memory by state", "sum by (state) (baton_worker_kv_bytes)", "{{state}}", "bytes"),
                one(
                    "Oldest page by state",
                    "max by (state) (baton_worker_page_oldest_seconds)",
                    "{{state}}",
                    "s",
                    "reserved, filling and quarantined pages wait for a transfer: seconds at most.",
                ),
                number("Times that the ledger was wrong", "sum(baton_page_conservation_failures_total)"),
                one("Preempted", rate("baton_worker_preempted_total", by="worker"), "{{worker}}", "reqps"),
            ),
        ),
    ),
)

WORKER_BOARD = Board(
    "baton-worker",
    "Baton: per worker",
    (
        (
            "Engine",
            (
                one("Rows in the step", f"baton_worker_running_rows{{{WORKER}}}", "{{worker}}"),
                one("Mean step", mean("baton_worker_step_seconds", WORKER, "worker"), "{{worker}}", "s"),
                one("p99 step", quantile(0.99, "baton_worker_step_seconds", WORKER, "worker"), "{{worker}}", "s"),
                one("Tokens drawn", rate("baton_worker_generated_tokens_total", WORKER, "worker"), "{{worker}}"),
                one(
                    "Prefill speed",
                    f"baton_worker_prefill_tokens_per_second{{{WORKER}}}",
                    "{{worker}}",
                    text="Tokens per second, measured while prefilling.",
                ),
                one("Requests waiting", f"baton_worker_queued_requests{{{WORKER}}}", "{{worker}}"),
            ),
        ),
        (
            "Requests",
            (
                one("Requests open", f"baton_worker_requests_open{{{WORKER}}}", "{{worker}}"),
                one(
                    "Ends",
                    rate("baton_worker_requests_total", WORKER, "worker, outcome"),
                    "{{worker}} {{outcome}}",
                    "reqps",
                ),
                one(
                    "p99 from arrival to end",
                    quantile(0.99, "baton_worker_response_seconds", WORKER, "worker"),
                    "{{worker}}",
                    "s",
                ),
                one("Cache hit rate", f"baton_worker_cache_hit_rate{{{WORKER}}}", "{{worker}}", "percentunit"),
                one("Prompt tokens", rate("baton_worker_prompt_tokens_total", WORKER, "worker"), "{{worker}}"),
                one("Cached tokens", rate("baton_worker_cached_tokens_total", WORKER, "worker"), "{{worker}}"),
            ),
        ),
        (
            "State",
            (
                one("Pages by state", f"baton_worker_pages{{{WORKER}}}", "{{worker}} {{state}}"),
                one("Routers connected", f"baton_worker_routers{{{WORKER}}}", "{{worker}}"),
                one("Leaving", f"baton_worker_draining{{{WORKER}}}", "{{worker}}"),
                Panel("Who it is", (Query(f"baton_worker_info{{{WORKER}}}"),), kind="table"),
            ),
        ),
    ),
    WORKERS,
)

BOARDS = (OVERVIEW, TTFT, ROUTERS_BOARD, HANDOFF, WORKER_BOARD)
