"""Every environment variable the project reads: name, type, default and meaning, read when asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from vllm_mxext.errors import ConfigError

T = TypeVar("T")

FLAG_PREFIX = "VLLM_MXEXT_"
"""A flag `--some-flag` of `mxext serve` can also be given as the variable `VLLM_MXEXT_SOME_FLAG`."""

OWNERS = {FLAG_PREFIX: "the ", "MIM_": "the ", "VLLM_": "vLLM's ", "NIM_": "NVIDIA NIM's "}
"""How variables begin, and whose they are; the first that fits. Ours are those of the first two."""

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def parse_bool(text: str) -> bool:
    """Reads 1/true/yes/on or 0/false/no/off, in any case.

    Raises:
        ValueError: anything else; the text is the rule.
    """
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("must be 1, true, yes, on, 0, false, no or off")


def parse_log_level(text: str) -> str:
    """Reads a level name, in any case.

    Raises:
        ValueError: not a level; the text is the rule.
    """
    level = text.strip().upper()
    if level not in LOG_LEVELS:
        raise ValueError(f"must be one of {', '.join(LOG_LEVELS)}")
    return level


def parse_path(text: str) -> Path:
    """Reads a path, with `~` standing for the home directory.

    Raises:
        ValueError: it begins with that of a user whom nobody knows here.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("must not begin with the home folder of an unknown user") from None


@dataclass(frozen=True, slots=True)
class EnvVar(Generic[T]):
    """One environment variable.

    Attributes:
        name: the variable.
        parse: text to value; raises ValueError with the rule as its text.
        default: value when neither the variable nor an alias is set, or set to nothing.
        help: one sentence for the documentation.
        aliases: other names, tried in order after `name`.
        is_secret: never print the value.
    """

    name: str
    parse: Callable[[str], T]
    default: T
    help: str
    aliases: tuple[str, ...] = ()
    is_secret: bool = False

    def get(self, environ: Mapping[str, str] | None = None) -> T:
        """Returns the value in `environ` (the process's environment by default).

        Raises:
            ConfigError: the value cannot be read.
        """
        source = os.environ if environ is None else environ
        for name in (self.name, *self.aliases):
            text = source.get(name, "")
            if not text:
                continue
            try:
                return self.parse(text)
            except ValueError as error:
                shown = "its value" if self.is_secret else repr(text)
                raise ConfigError(f"Environment variable {name} {error}, got {shown}.") from None
        return self.default


CONFIGURE_LOGGING: EnvVar[bool] = EnvVar(
    "VLLM_MXEXT_CONFIGURE_LOGGING",
    parse_bool,
    default=True,
    help="Set to 0 to leave Python's logging as it is; nothing is configured then.",
    aliases=("VLLM_CONFIGURE_LOGGING",),
)
LOGGING_CONFIG_PATH: EnvVar[Path | None] = EnvVar(
    "VLLM_MXEXT_LOGGING_CONFIG_PATH",
    parse_path,
    default=None,
    help="JSON or YAML file for `logging.config.dictConfig`, used instead of the built-in configuration.",
    aliases=("VLLM_LOGGING_CONFIG_PATH",),
)
LOG_LEVEL: EnvVar[str] = EnvVar(
    "VLLM_MXEXT_LOG_LEVEL",
    parse_log_level,
    default="INFO",
    help="Least severe level that is logged: DEBUG, INFO, WARNING, ERROR or CRITICAL.",
    aliases=("VLLM_LOGGING_LEVEL",),
)
JSONL_LOGGING: EnvVar[bool] = EnvVar(
    "VLLM_MXEXT_JSONL_LOGGING",
    parse_bool,
    default=False,
    help="Set to 1 to log one JSON object per line.",
)
KERNEL_DIR: EnvVar[Path | None] = EnvVar(
    "VLLM_MXEXT_KERNEL_DIR",
    parse_path,
    default=None,
    help="Folder with compiled kernel libraries, used instead of the ones in the package (for development).",
)
CPU_ISA: EnvVar[str | None] = EnvVar(
    "VLLM_MXEXT_CPU_ISA",
    str,
    default=None,
    help="Kernel library to use: avx512_bf16, avx512, avx2, arm64_bf16, generic, or torch for the PyTorch path; "
    "by default the best that this CPU runs.",
)

VARIABLES: tuple[EnvVar[Any], ...] = (
    CONFIGURE_LOGGING,
    LOGGING_CONFIG_PATH,
    LOG_LEVEL,
    JSONL_LOGGING,
    KERNEL_DIR,
    CPU_ISA,
)
"""All variables that are not just another way to give a flag."""

VARIABLES_OF_OTHERS: dict[str, str | None] = {
    "VLLM_NO_USAGE_STATS": None,
    "VLLM_DO_NOT_TRACK": None,
    "DO_NOT_TRACK": None,
    "VLLM_USAGE_STATS_SERVER": "nothing about the use of this program is collected",
    "VLLM_USAGE_SOURCE": "nothing about the use of this program is collected",
    "VLLM_TRACE_FUNCTION": "function calls are not traced; use a Python profiler",
    "VLLM_USE_V1": None,
    "VLLM_TARGET_DEVICE": "the device is chosen at start, with --device",
    "VLLM_CPU_KVCACHE_SPACE": "the KV cache is sized with --kv-cache-memory-bytes",
    "VLLM_CPU_OMP_THREADS_BIND": "threads are chosen with --num-threads",
    "VLLM_BATCH_INVARIANT": None,
    "VLLM_LORA_RESOLVER_CACHE_DIR": "adapters of a folder are served with --lora-dir",
    "VLLM_PLUGINS": "plug-ins of vLLM are not loaded",
    "NIM_LOG_LEVEL": "the level is chosen with VLLM_MXEXT_LOG_LEVEL",
    "NIM_JSONL_LOGGING": "JSON lines are asked for with VLLM_MXEXT_JSONL_LOGGING=1",
    "NIM_SERVER_PORT": "the port is chosen with --port or VLLM_MXEXT_PORT",
}
"""Variables of others: why they have no effect, or None where what they ask for is so anyway."""
