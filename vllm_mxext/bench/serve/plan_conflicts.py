"""Which options of a performance test do not go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_mxext.bench.serve.plan import Plan

MAX_REQUESTS = 1_000_000
"""More records would not fit into memory, and figures gain nothing from more requests than this."""

Rule = tuple[bool, str]
"""Whether a rule is broken, and what is said then."""


def conflicts(plan: Plan) -> Sequence[Rule]:
    """Returns every rule about options that must go together, in the order in which they are checked."""
    return (
        (not plan.server.model, "A model is needed; give --model, or 'model' in section 'server'."),
        *_of_prompts(plan),
        *_of_turns(plan),
        *_of_load(plan),
        *_of_trace(plan),
        (
            bool(plan.server.compare_url) and bool(plan.load.sweep or plan.workload.trace),
            "--compare-url compares at one load; leave out --sweep and --trace.",
        ),
        (not 0 < plan.slo.percentile <= 100, "--slo-percentile must be above 0 and at most 100."),
    )


def _of_prompts(plan: Plan) -> Sequence[Rule]:
    workload = plan.workload
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
        (len(sources) > 1, f"Prompts come from one place only; give one of {' and '.join(sources)}."),
        (
            workload.shared_prefix_tokens > 0 and not is_synthetic,
            "--shared-prefix-tokens is for synthetic prompts; give --input-tokens too.",
        ),
        (
            is_synthetic and workload.shared_prefix_tokens > shortest,
            "--shared-prefix-tokens must not be more than --input-tokens.",
        ),
    )


def _of_turns(plan: Plan) -> Sequence[Rule]:
    workload, load = plan.workload, plan.load
    return (
        (workload.turns > 1 and plan.test_params.endpoint != "chat", "--turns needs --endpoint chat."),
        (
            workload.turns > 1 and (load.request_rate > 0 or load.sweep == "rate" or bool(workload.trace)),
            "--turns goes with --concurrent-requests: a turn starts when the answer before it has come.",
        ),
    )


def _of_load(plan: Plan) -> Sequence[Rule]:
    load, has_trace = plan.load, bool(plan.workload.trace)
    return (
        (load.ramp_to > 0 and load.request_rate <= 0, "--ramp-to needs --request-rate, where the ramp begins."),
        (
            bool(load.sweep) and (load.request_rate > 0 or has_trace),
            "--sweep sets the load itself; leave out --request-rate and --trace.",
        ),
        (bool(load.sweep_levels) and not load.sweep, "--sweep-levels needs --sweep concurrency or --sweep rate."),
        (any(level <= 0 for level in load.sweep_levels), "--sweep-levels must be above 0."),
        (
            load.sweep == "concurrency" and any(level % 1 for level in load.sweep_levels),
            "--sweep-levels of --sweep concurrency must be whole numbers.",
        ),
        (
            load.max_in_flight > 0 and load.request_rate <= 0 and load.sweep != "rate" and not has_trace,
            "--max-in-flight is for requests with a rate; give --request-rate, or --concurrent-requests instead.",
        ),
        (
            load.duration * max(load.request_rate, load.ramp_to, *load.sweep_levels) > MAX_REQUESTS
            and (load.request_rate > 0 or load.sweep == "rate"),
            f"--duration at this rate would be more than {MAX_REQUESTS:,} requests; give a shorter one.",
        ),
    )


def _of_trace(plan: Plan) -> Sequence[Rule]:
    workload, load = plan.workload, plan.load
    return (
        (
            bool(workload.trace) and (load.request_rate > 0 or load.duration > 0),
            "--trace has its own times; leave out --request-rate and --duration, or change --trace-speed.",
        ),
        (
            bool(workload.trace)
            and (workload.num_requests > 0 or plan.test_params.warmup_requests > 0 or load.max_in_flight > 0),
            "--trace sends all of its lines at their times; leave out --num-requests, --warmup-requests and "
            "--max-in-flight.",
        ),
    )
