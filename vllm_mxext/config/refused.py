"""vLLM flags that this version does not have: refused with a sentence, unless they ask for what happens anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_mxext.constraint_params import BACKENDS


@dataclass(frozen=True, slots=True)
class RefusedFlag:
    """A flag that people bring from vLLM.

    Attributes:
        name: long flag without dashes in front.
        sentence: why it is not taken and what to do.
        accepts: values that describe what happens anyway; with them the flag is allowed.
        is_switch: takes no value on the command line.
    """

    name: str
    sentence: str
    accepts: tuple[Any, ...] = ()
    is_switch: bool = False

    def allows(self, value: Any) -> bool:
        """Whether `value` (text or a Python value) is what happens anyway."""
        return any(value is wanted or str(value).lower() == str(wanted).lower() for wanted in self.accepts)


SHORT_NAMES = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-q": "--quantization",
    "-O": "--optimization-level",
}
"""Short forms of vLLM flags -> long forms."""

_TEXT_ONLY = "this version generates text from text only; remove the flag"
_ONE_DEVICE = "this version runs on one device; remove the flag or set it to 1"
_NO_TOOLS = "the server calls no tools itself; remove the flag"
_LOSSLESS = "draft tokens never change what is sampled, so there is nothing to choose; remove the flag"
_ONE_GRAMMAR_LIBRARY = "llguidance enforces every constraint here; use auto or remove the flag"
_ONE_REVISION = "configuration, tokenizer and weights are of one revision; use --revision"
_EAGER = "models always run eagerly here; remove the flag"
_RECOMPUTE = "preempted requests are recomputed, nothing is swapped out; remove the flag"
_NO_TRANSFER = "KV blocks stay in the memory of this engine in this version; remove the flag"
_NO_TRACING = "tracing and profiling come with a later version; remove the flag"

_GROUPS: tuple[tuple[str, str], ...] = (
    (
        _TEXT_ONLY,
        "limit-mm-per-prompt mm-processor-cache-gb mm-processor-kwargs allowed-local-media-path allowed-media-domains "
        "interleave-mm-strings media-io-kwargs pooler-config override-pooler-config hf-overrides "
        "logits-processor-pattern",
    ),
    (
        _ONE_DEVICE,
        "distributed-executor-backend nnodes node-rank master-addr master-port enable-expert-parallel worker-use-ray "
        "max-parallel-loading-workers disable-custom-all-reduce api-server-count",
    ),
    (
        _NO_TOOLS,
        "tool-server",
    ),
    (_LOSSLESS, "spec-decoding-acceptance-method typical-acceptance-sampler-posterior-threshold"),
    (_ONE_REVISION, "code-revision tokenizer-revision hf-config-path"),
    (_EAGER, "compilation-config optimization-level cuda-graph-sizes enable-sleep-mode"),
    (
        _NO_TRACING,
        "otlp-traces-endpoint collect-detailed-traces profiler-config",
    ),
    (
        "the server does not offer this yet; remove the flag",
        "logprobs-mode",
    ),
    (
        "requests are read by httptools, within limits of their own; remove the flag",
        "h11-max-incomplete-event-size h11-max-header-count",
    ),
    (_NO_TRANSFER, "kv-transfer-config kv-events-config kv-offloading-size kv-offloading-backend"),
)
"""Sentence -> names."""

_SWITCHES = "enable-expert-parallel disable-custom-all-reduce enable-sleep-mode worker-use-ray interleave-mm-strings"
"""Names in `_GROUPS` that take no value."""

_SINGLE: tuple[RefusedFlag, ...] = (
    RefusedFlag("pipeline-parallel-size", _ONE_DEVICE, (1,)),
    RefusedFlag("data-parallel-size", _ONE_DEVICE, (1,)),
    RefusedFlag("prefix-caching-hash-algo", "blocks are found by SHA-256; use sha256 or remove the flag", ("sha256",)),
    RefusedFlag(
        "fingerprint-mode",
        "system_fingerprint always names version, parallelism and a hash of the model; remove the flag",
    ),
    RefusedFlag("calculate-kv-scales", "scales of the KV cache need no calibration; remove the flag", (False,), True),
    RefusedFlag("ssl-refresh", "restart the server to read a new certificate; remove the flag", (False,), True),
    RefusedFlag(
        "enable-server-load-tracking",
        "the load is vllm:num_requests_running and vllm:num_requests_waiting at /metrics; remove the flag",
        (False,),
        True,
    ),
    RefusedFlag("enforce-eager", _EAGER, (True, False), is_switch=True),
    RefusedFlag("swap-space", _RECOMPUTE, (0,)),
    RefusedFlag("cpu-offload-gb", "weights are not offloaded in this version; remove the flag", (0,)),
    RefusedFlag("preemption-mode", _RECOMPUTE, ("recompute",)),
    RefusedFlag("runner", _TEXT_ONLY, ("auto", "generate")),
    RefusedFlag("convert", _TEXT_ONLY, ("auto", "none")),
    RefusedFlag("task", "vLLM renamed it to --runner and --convert, and " + _TEXT_ONLY, ("auto", "generate")),
    RefusedFlag("tokenizer-mode", "there is one tokenizer mode; remove the flag", ("auto", "hf")),
    RefusedFlag("skip-tokenizer-init", "the server needs the tokenizer; remove the flag", (False,), is_switch=True),
    RefusedFlag("trust-remote-code", "code from checkpoints is never run; remove the flag", (False,), is_switch=True),
    RefusedFlag("lora-dtype", "adapters are computed in --dtype; use auto or remove the flag", ("auto",)),
    RefusedFlag("lora-extra-vocab-size", "adapters cannot add tokens to the vocabulary; remove the flag", (0,)),
    RefusedFlag("fully-sharded-loras", "one device has all of an adapter; remove the flag", (True, False), True),
    RefusedFlag("enable-lora-bias", "biases of adapters are always served; remove the flag", (True, False), True),
    RefusedFlag("prompt-adapters", "prompt adapters are not served, LoRA adapters are: use --lora-modules instead"),
    RefusedFlag("lora-resolver", "use --lora-dir, which serves the adapters of a folder, instead"),
    RefusedFlag("enable-request-id-headers", "the X-Request-Id header is always sent; remove the flag", (True,), True),
    RefusedFlag(
        "enable-prompt-tokens-details", "cached prompt tokens are always reported; remove the flag", (True,), True
    ),
    RefusedFlag(
        "tool-strict-level",
        "a tool with `strict` is always held to its schema, and others where a call is forced; remove the flag",
    ),
    RefusedFlag("async-scheduling", "there is one way of scheduling; remove the flag", (False,), is_switch=True),
    RefusedFlag(
        "guided-decoding-backend",
        "vLLM renamed it to --structured-outputs-config.backend, and " + _ONE_GRAMMAR_LIBRARY,
        BACKENDS,
    ),
    RefusedFlag("structured-outputs-config.backend", _ONE_GRAMMAR_LIBRARY, BACKENDS),
    RefusedFlag("num-scheduler-steps", "vLLM removed it; every step is scheduled, remove the flag", (1,)),
    RefusedFlag("multi-step-stream-outputs", "vLLM removed it; remove the flag", is_switch=True),
    RefusedFlag("use-v2-block-manager", "vLLM removed it; there is one block manager, remove the flag", (True,), True),
    RefusedFlag(
        "disable-log-requests",
        "it is the default now, and its opposite is --enable-log-requests; remove the flag",
        (True,),
        is_switch=True,
    ),
    RefusedFlag("disable-log-stats", "statistics are at /metrics only; remove the flag", (True,), is_switch=True),
    RefusedFlag("enable-reasoning", "vLLM replaced it; use --reasoning-parser", (False,), True),
    RefusedFlag("speculative-model", "use --spec-model, or model in --speculative-config"),
    RefusedFlag("num-speculative-tokens", "use --spec-tokens, or num_speculative_tokens in --speculative-config", (0,)),
    RefusedFlag("ngram-prompt-lookup-max", "use --speculative-config with prompt_lookup_max"),
    RefusedFlag("ngram-prompt-lookup-min", "use --speculative-config with prompt_lookup_min"),
    RefusedFlag("speculative-draft-tensor-parallel-size", _ONE_DEVICE, (1,)),
    RefusedFlag("speculative-max-model-len", "the draft model's limit is read from its checkpoint; remove the flag"),
    RefusedFlag("speculative-disable-by-batch-size", "drafting adapts to the batch by itself; remove the flag"),
    RefusedFlag("speculative-model-quantization", "use --speculative-config with quantization, which is none or int8"),
    RefusedFlag("max-seq-len-to-capture", "vLLM removed it; " + _EAGER),
    RefusedFlag("max-context-len-to-capture", "vLLM removed it; " + _EAGER),
    RefusedFlag("num-lookahead-slots", "vLLM removed it; remove the flag", (0,)),
    RefusedFlag("max-num-partial-prefills", "every prompt may be cut; remove the flag", (1,)),
    RefusedFlag("max-long-partial-prefills", "use --long-prefill-token-threshold instead", (1,)),
    RefusedFlag("scheduler-delay-factor", "vLLM removed it; remove the flag", (0,)),
    RefusedFlag("disable-sliding-window", "the checkpoint decides on sliding windows; remove the flag", (False,), True),
)


def refused_flags() -> dict[str, RefusedFlag]:
    """Returns the table, by name."""
    switches = frozenset(_SWITCHES.split())
    table = {flag.name: flag for flag in _SINGLE}
    for sentence, names in _GROUPS:
        for name in names.split():
            is_switch = name in switches
            table[name] = RefusedFlag(name, sentence, (False,) if is_switch else (), is_switch)
    return table
