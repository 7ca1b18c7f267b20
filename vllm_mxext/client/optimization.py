"""`optimize_model()`: applies client settings for speed, memory or both, and names the server flags it cannot apply."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vllm_mxext.client.handlers import client_of
from vllm_mxext.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ClientProfile:
    """Settings of a client.

    Attributes:
        max_concurrent_requests: most requests at the server at once.
        max_batch_size: most prompts in one request.
        batch_timeout: seconds that the first of them waits for others.
    """

    max_concurrent_requests: int
    max_batch_size: int
    batch_timeout: float


@dataclass(frozen=True, slots=True)
class ServerFlag:
    """A flag that a server would have to be started with.

    Attributes:
        flag: the flag with its value.
        effect: what it does.
    """

    flag: str
    effect: str


CLIENT_PROFILES = {
    "speed": ClientProfile(max_concurrent_requests=64, max_batch_size=32, batch_timeout=0.01),
    "memory": ClientProfile(max_concurrent_requests=2, max_batch_size=1, batch_timeout=0.0),
    "balanced": ClientProfile(max_concurrent_requests=10, max_batch_size=8, batch_timeout=0.1),
}
"""By the name of the optimization."""

SERVER_FLAGS = {
    "vllm_mxext": {
        "speed": (
            ServerFlag("--max-num-seqs 256", "more requests make progress in one step"),
            ServerFlag("--quantization int8", "weights are read in half the time, at some loss"),
        ),
        "memory": (
            ServerFlag("--max-num-seqs 8", "fewer requests hold keys and values at once"),
            ServerFlag("--kv-cache-dtype int8", "keys and values take half of bfloat16's memory (CPU)"),
            ServerFlag("--quantization int8", "weights take half of bfloat16's memory, at some loss"),
        ),
        "balanced": (),
    },
    "vllm": {
        "speed": (ServerFlag("--quantization fp8", "weights are read in half the time, at some loss (GPU)"),),
        "memory": (
            ServerFlag("--max-num-seqs 8", "fewer requests hold keys and values at once"),
            ServerFlag("--kv-cache-dtype fp8", "keys and values take half of bfloat16's memory (GPU)"),
            ServerFlag("--quantization fp8", "weights take half of bfloat16's memory, at some loss (GPU)"),
        ),
        "balanced": (),
    },
}
"""By `owned_by` of a server's models and the name of the optimization; `balanced` is how servers start by default."""


def optimize_model(endpoint_url: str, model: str = "default", optimization_type: str = "balanced") -> dict[str, Any]:
    """Applies a profile to this process's client for a URL, and returns what was applied and what was not.

    The profile affects later calls of the functions in `handlers` for this URL. A model's precision and memory are
    chosen when its server starts, so `not_applied` lists flags to start it with. It is None for a server that is
    neither ours nor vLLM, because its flags are unknown here.

    Args:
        endpoint_url: the server's URL.
        model: a model that it must serve.
        optimization_type: `speed`, `memory` or `balanced`.

    Raises:
        ConfigError: there is no such type.
        ClientError: the server does not serve the model, or does not answer.
    """
    profile = CLIENT_PROFILES.get(optimization_type)
    if profile is None:
        raise ConfigError(f"optimization_type is one of {', '.join(CLIENT_PROFILES)}, not {optimization_type!r}.")
    client = client_of(endpoint_url)
    card = client.get_model(model)
    flags = SERVER_FLAGS.get(str(card.get("owned_by")))
    for setting, value in asdict(profile).items():
        setattr(client, setting, value)
    return {
        "model": card["id"],
        "optimization_type": optimization_type,
        "applied": {setting: getattr(client, setting) for setting in asdict(profile)},
        "not_applied": None
        if flags is None
        else [
            {**asdict(one), "reason": "A running server cannot change it; start it with this flag."}
            for one in flags[optimization_type]
        ],
    }
