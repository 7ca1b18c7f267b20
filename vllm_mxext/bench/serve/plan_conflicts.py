"""Which options of a performance test do not go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_mxext.bench.serve.plan import Plan

MAX_REQUESTS = 1_000_000
"""More would not fit into memory; what a million requests do not show, two million do not either."""


def conflicts(plan: Plan) -> Sequence[tuple[bool, str]]:
    """Returns whether each rule is broken, and what is said then."""
    workload, load, params = plan.workload, plan.load, plan.test_params
    sources = [
        name
        for name, is_given in (
            ("prompts", bool(plan.prompts)),
            ("--prompts-file", bool(workload.prompts_file)),
            ("--input-tokens", workload.input_tokens is not None),
            ("--trace", bool(workload.trace)),
        )
        if is_given
    ]
    is_synthetic = workload.input_tokens is not None
    shortest = workload.input_tokens.low if workload.input_tokens else 0
    return (
        (not plan.server.model, "A model is needed; give --model, or 'model' in section 'server'."),
        (len(sources) > 1, f"Prompts come from one place only; give one of {' and '.join(sources)}."),
        (
            workload.shared_prefix_tokens > 0 and not is_synthetic,
            "--shared-prefix-tokens is for synthetic prompts; give --input-tokens too.",
        ),
        (
            is_synthetic and workload.shared_prefix_tokens > shortest,
            "--shared-prefix-tokens must not be more than --input-tokens.",
        ),
        (workload.turns > 1 and params.endpoint != "chat", "--turns needs --endpoint chat."),
        (
            workload.turns > 1 and (load.request_rate > 0 or load.sweep == "rate" or bool(workload.trace)),
            "--turns goes with --concurrent-requests: a turn starts when the answer before it has come.",
        ),
        (load.ramp_to > 0 and load.request_rate <= 0, "--ramp-to needs --request-rate, where the ramp begins."),
        (
            bool(load.sweep) and (load.request_rate > 0 or bool(workload.trace)),
            "--sweep sets the load itself; leave out --request-rate and --trace.",
        ),
        (bool(load.sweep_levels) and not load.sweep, "--sweep-levels needs --sweep concurrency or --sweep rate."),
        (any(level <= 0 for level in load.sweep_levels), "--sweep-levels must be above 0."),
        (
            load.sweep == "concurrency" and any(level % 1 for level in load.sweep_levels),
            "--sweep-levels of --sweep concurrency must be whole numbers.",
        ),
        (
            bool(workload.trace) and (load.request_rate > 0 or load.duration > 0),
            "--trace has its own times; leave out --request-rate and --duration, or change --trace-speed.",
        ),
        (
            bool(workload.trace)
            and (workload.num_requests > 0 or params.warmup_requests > 0 or load.max_in_flight > 0),
            "--trace sends all of its lines at their times; leave out --num-requests, --warmup-requests and "
            "--max-in-flight.",
        ),
        (
            load.max_in_flight > 0 and load.request_rate <= 0 and load.sweep != "rate" and not workload.trace,
            "--max-in-flight is for requests with a rate; give --request-rate, or --concurrent-requests instead.",
        ),
        (
            load.duration * max(load.request_rate, load.ramp_to, *load.sweep_levels) > MAX_REQUESTS
            and (load.request_rate > 0 or load.sweep == "rate"),
            f"--duration at this rate would be more than {MAX_REQUESTS:,} requests; give a shorter one.",
        ),
        (
            bool(plan.server.compare_url) and bool(load.sweep or workload.trace),
            "--compare-url compares at one load; leave out --sweep and --trace.",
        ),
        (not 0 < plan.slo.percentile <= 100, "--slo-percentile must be above 0 and at most 100."),
    )
