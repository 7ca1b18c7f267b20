"""Makes engine clients from configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.config.frontend import FrontendConfig
from vllm_mxext.engine.backends.native import NativeClientOptions, NativeEngineClient
from vllm_mxext.engine.client import EngineClient
from vllm_mxext.native.core_client import ProcessCoreClient
from vllm_mxext.observability.stats import StatsRecorder
from vllm_mxext.tokenizer.loading import load_tokenizer


def create_engine_client(
    config: EngineConfig,
    frontend: FrontendConfig,
    *,
    recorder: StatsRecorder | None = None,
    options: NativeClientOptions | None = None,
    environ: Mapping[str, str] | None = None,
    first_core: ProcessCoreClient | None = None,
) -> EngineClient:
    """Makes a client for the engine that a configuration describes; nothing but the tokenizer is loaded yet.

    Args:
        config: the engine.
        frontend: admission, sampling defaults and chat template.
        recorder: told about steps, tokens, ends and rejections.
        options: threads, watchdog and restarts.
        environ: variables of the engine process in addition to those of this one.
        first_core: the first engine process, launched already; by default it is launched when the client starts.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
    """
    tokenizer = load_tokenizer(config.model.tokenizer_path, frontend.templates)
    variables = {**os.environ, **(environ or {})}
    launched = [] if first_core is None else [first_core]

    def spawn() -> ProcessCoreClient:
        return launched.pop() if launched else ProcessCoreClient(config, environ=variables)

    return NativeEngineClient(
        config,
        frontend,
        tokenizer,
        options=options,
        recorder=recorder,
        spawn=spawn,
    )
