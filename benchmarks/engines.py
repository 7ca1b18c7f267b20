"""The engines that can be compared, as a table: which worker, in which environment, on which form of the checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.make_environments import models_folder
from peers.process import WorkerProcess


@dataclass(frozen=True)
class EngineSpec:
    """One engine of the table.

    Attributes:
        worker: script in `peers/`.
        environment: folder of `peers/make_environments.py` with its environment; None is this interpreter.
        model: file or folder among the converted forms of the checkpoint; None is the checkpoint itself.
        options: settings that only this worker knows.
        environ: environment variables.
    """

    worker: str
    environment: str | None = None
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)


_AVX2 = {"VLLM_MXEXT_CPU_ISA": "avx2"}

ENGINES = {
    "vllm_mxext": EngineSpec("mxext_worker.py"),
    "vllm_mxext-kv8": EngineSpec("mxext_worker.py", options={"kv_cache_dtype": "int8"}),
    "vllm_mxext-int8": EngineSpec("mxext_worker.py", options={"quantization": "int8"}),
    "vllm_mxext-int8-kv8": EngineSpec("mxext_worker.py", options={"quantization": "int8", "kv_cache_dtype": "int8"}),
    "vllm_mxext-avx2": EngineSpec("mxext_worker.py", environ=_AVX2),
    "vllm_mxext-int8-avx2": EngineSpec("mxext_worker.py", options={"quantization": "int8"}, environ=_AVX2),
    "transformers": EngineSpec("transformers_worker.py"),
    "transformers-float32": EngineSpec("transformers_worker.py", options={"dtype": "float32"}),
    "openvino-fp16": EngineSpec("openvino_worker.py", "openvino", "openvino-fp16"),
    "openvino-int8": EngineSpec("openvino_worker.py", "openvino", "openvino-int8"),
    "vllm": EngineSpec("vllm_worker.py", "vllm"),
    "llamacpp-bf16": EngineSpec("llamacpp_worker.py", "llamacpp", "bf16.gguf"),
    "llamacpp-q8_0": EngineSpec("llamacpp_worker.py", "llamacpp", "q8_0.gguf"),
    "llamacpp-avx2-bf16": EngineSpec("llamacpp_worker.py", "llamacpp-avx2", "bf16.gguf"),
    "llamacpp-avx2-q8_0": EngineSpec("llamacpp_worker.py", "llamacpp-avx2", "q8_0.gguf"),
}
DEFAULT_ENGINES = (
    "vllm_mxext",
    "vllm_mxext-kv8",
    "vllm_mxext-int8",
    "vllm_mxext-int8-kv8",
    "transformers",
    "openvino-fp16",
    "openvino-int8",
    "vllm",
    "llamacpp-bf16",
    "llamacpp-q8_0",
)


@dataclass(frozen=True)
class Room:
    """How much an engine must be able to hold.

    Attributes:
        kv_tokens: token positions with keys and values, over all requests.
        max_model_len: tokens of one request.
        max_num_seqs: requests at once.
    """

    kv_tokens: int
    max_model_len: int
    max_num_seqs: int


@dataclass(frozen=True)
class Comparison:
    """What all engines of a run have in common.

    Attributes:
        checkpoint: folder in Hugging Face layout.
        peers: root of the environments.
        num_threads: for every engine.
        room: for every engine.
    """

    checkpoint: Path
    peers: Path
    num_threads: int
    room: Room

    def python(self, name: str) -> Path:
        """Returns the interpreter an engine runs in."""
        environment = ENGINES[name].environment
        return Path(sys.executable) if environment is None else self.peers / environment / "env" / "bin" / "python"

    def model(self, name: str) -> Path:
        """Returns the form of the checkpoint that an engine reads."""
        form = ENGINES[name].model
        return self.checkpoint if form is None else models_folder(self.peers, self.checkpoint) / form

    def missing(self, name: str) -> str | None:
        """Returns the command that makes what an engine needs and does not have; None if it can start."""
        if self.python(name).exists() and self.model(name).exists():
            return None
        script = Path(__file__).parent / "peers" / "make_environments.py"
        return f"python {script} {ENGINES[name].environment} --root {self.peers} --model {self.checkpoint}"

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of the keys and values of one token in 16 bits."""
        config = json.loads((self.checkpoint / "config.json").read_text())
        return int(config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 4)

    @property
    def vocab_size(self) -> int:
        """Prompts are random ids below it."""
        return int(json.loads((self.checkpoint / "config.json").read_text())["vocab_size"])

    def start(self, name: str, enable_prefix_caching: bool) -> WorkerProcess:
        """Starts an engine and returns when it has loaded.

        Raises:
            RuntimeError: it ended before.
        """
        spec = ENGINES[name]
        settings = {
            "model": str(self.model(name)),
            "num_threads": self.num_threads,
            "kv_tokens": self.room.kv_tokens,
            "kv_token_bytes": self.kv_token_bytes,
            "max_model_len": self.room.max_model_len,
            "max_num_seqs": self.room.max_num_seqs,
            "enable_prefix_caching": enable_prefix_caching,
            **spec.options,
        }
        return WorkerProcess(self.python(name), spec.worker, settings, spec.environ, self.vocab_size)
