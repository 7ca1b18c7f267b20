"""`ServerContext`: what every route can reach."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from vllm_mxext.config.server import ServerConfig
from vllm_mxext.engine.client import EngineClient, ModelInfo
from vllm_mxext.observability.metrics import PrometheusMetrics
from vllm_mxext.server.adapters import ServedAdapters
from vllm_mxext.server.clock import Clock
from vllm_mxext.server.openai.output_plan import ParserSetup
from vllm_mxext.server.served_hub import ServedHub

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServerContext:
    """The server's parts; one per application.

    Attributes:
        client: the engine.
        config: how to answer.
        metrics: figures for `/metrics`.
        clock: time.
        executor: threads for work that would block the event loop: templates, tokenizing.
        parsers: what reads tool calls and reasoning.
        fingerprint: `system_fingerprint` of every response.
        adapters: LoRA adapters.
        hub: where the model came from.
    """

    client: EngineClient
    config: ServerConfig
    metrics: PrometheusMetrics
    clock: Clock
    executor: ThreadPoolExecutor
    parsers: ParserSetup
    fingerprint: str
    adapters: ServedAdapters
    hub: ServedHub

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        """Runs blocking work and returns its result."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, work)

    def served_name(self, asked: str | None) -> str:
        """Returns the name to report for the model that a request asked for; none asked for means the first.

        Raises:
            ModelNotFoundError: it is not served here.
        """
        self.adapters.resolve(asked)
        return asked or self.client.model.served_names[0]


def package_version() -> str:
    """Returns the installed version, or `0+unknown` when run from a bare source tree."""
    try:
        return version("vllm_mxext")
    except PackageNotFoundError:
        return "0+unknown"


def version_report() -> dict[str, str]:
    """Returns the body of `/v1/version`, with NVIDIA NIM's names: this version, and that of the OpenAPI description."""
    return {"release": package_version(), "api": package_version()}


def system_fingerprint(model: ModelInfo) -> str:
    """Returns what OpenAI calls the fingerprint: program, version, parallelism, and a hash of the served model."""
    facts = f"{model.root}\0{model.max_model_len}\0{model.vocab_size}"
    return f"vllm_mxext-{package_version()}-tp1-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
