"""`ServerRecord`: the settings of one registered server, validated, and their form as plain data."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from vllm_mxext.config import values
from vllm_mxext.envs import parse_path
from vllm_mxext.errors import ConfigError

SELF_HOSTED = "self-hosted"
NATIVE = "native"
REMOTE = "remote"
BACKENDS = (NATIVE, "vllm", "llama.cpp", "mlx", "transformers", "tensorrt_llm")
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")

REMOTE_SETTINGS = ("endpoint_url", "model_path", "api_key_env")
"""Settings that apply to remote servers; all others are for starting one."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_WORD = re.compile(r"(^|_)(api_?key|key|token|secret|password|passwd|credentials?)(_|$)", re.IGNORECASE)
_SECRET_FLAG = re.compile(r"--?(\w+[-_])*(key|token|secret|password|passwd)", re.IGNORECASE)
_PASSWORD_IN_ADDRESS = re.compile(r"//[^/?#]*@")
_CERTIFICATE = re.compile(r"--ssl[-_]certfile(=|$)")
_NOT_TYPED = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRecord:
    """One registered server; None leaves a setting to the backend.

    Attributes:
        name: the name it is registered under.
        endpoint_url: `self-hosted`, or the address of a remote server, one that is not started here.
        backend: the program that serves the model; unknown for a remote server.
        model_path: the model to serve; for a remote server, the one that it is expected to serve.
        tensor_parallel: devices that share each layer.
        max_model_len: most tokens of prompt plus output.
        gpu_memory_utilization: share of the device's memory that may be used.
        dtype: element type of weights and activations.
        host: address to listen on.
        port: to listen on; None lets the first start choose one.
        chosen_port: the port that the last start chose; the next one tries it first.
        api_key_env: environment variable that holds the server's key; the key itself is never stored.
        env: environment variables of the server, added to those that `start` runs with.
        extra_args: flags passed to the program as they are.
    """

    name: str
    endpoint_url: str = SELF_HOSTED
    backend: str | None = None
    model_path: str | None = None
    tensor_parallel: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    dtype: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    chosen_port: int | None = None
    api_key_env: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    extra_args: tuple[str, ...] = ()

    @property
    def is_remote(self) -> bool:
        """Whether it is an address rather than a server that is started here."""
        return self.endpoint_url != SELF_HOSTED

    @property
    def kind(self) -> str:
        """Its backend, or `remote`."""
        return REMOTE if self.is_remote else self.backend or NATIVE

    @property
    def known_port(self) -> int | None:
        """The port that it has or had; None before the first start."""
        return self.port if self.port is not None else self.chosen_port

    def url(self, port: int | None = None, host: str | None = None) -> str | None:
        """Returns the address for clients on this machine, without `/v1`; None while no port is known.

        Args:
            port: port of a running process, which may have been started before the record changed.
            host: host of the same.
        """
        if self.is_remote:
            return self.endpoint_url
        port = self.known_port if port is None else port
        if port is None:
            return None
        host = self.host if host is None else host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        scheme = "https" if any(_CERTIFICATE.match(one) for one in self.extra_args) else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def as_mapping(self) -> dict[str, Any]:
        """Returns the settings that are set, as plain data without the name."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "name"}
        found |= {"env": dict(self.env), "extra_args": list(self.extra_args)}
        return {key: value for key, value in found.items() if value not in (None, {}, [])}


def read_record(name: str, settings: Mapping[Any, Any], place: str = "") -> ServerRecord:
    """Validates settings and returns them as a record.

    Args:
        name: the server's name.
        settings: fields of `ServerRecord` by name; dashes may stand for underscores.
        place: begins every error message, such as `In 'servers.json': `.

    Raises:
        ConfigError: the name or a setting is wrong.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"{place}'{name}' cannot be the name of a server; use up to 64 letters, digits, dots, dashes and "
            "underscores, beginning with a letter or digit."
        )
    where = f"{place}{name}: " if place else ""
    given: dict[str, Any] = {}
    for key, value in settings.items():
        known = str(key).replace("-", "_")
        if known not in _KINDS:
            from vllm_mxext.config.sources import did_you_mean  # noqa: PLC0415 - slow to import, and rarely needed

            raise ConfigError(f"{where}unknown setting '{key}'{did_you_mean(known, _KINDS)}")
        if value is None:
            continue
        if isinstance(value, str) and _NOT_TYPED.search(value):
            raise ConfigError(f"{where}{flag_of(known)} must be one line without control characters.")
        try:
            given[known] = _KINDS[known].parse(value)
        except ValueError as error:
            raise ConfigError(f"{where}{flag_of(known)} {error}, got {value!r}.") from None
    record = ServerRecord(name=name, **given)
    _check_together(record, where)
    return record


def flag_of(setting: str) -> str:
    """Returns the flag of a setting."""
    return "--" + setting.replace("_", "-")


def _check_together(record: ServerRecord, where: str) -> None:
    if not record.is_remote:
        if record.model_path is None and record.kind != NATIVE:
            raise ConfigError(f"{where}which model is {record.kind} to serve? Name it with --model-path.")
        return
    own = ServerRecord(name=record.name)
    for one in fields(record):
        if one.name not in (*REMOTE_SETTINGS, "name") and getattr(record, one.name) != getattr(own, one.name):
            raise ConfigError(
                f"{where}{flag_of(one.name)} is for servers that this machine starts, but {record.endpoint_url} is the "
                "address of a remote one; leave the flag out, or use --endpoint-url self-hosted."
            )


def _endpoint(value: Any) -> str:
    rule = f"must be '{SELF_HOSTED}' or an address such as http://192.0.2.1:8000"
    if value == SELF_HOSTED:
        return SELF_HOSTED
    if isinstance(value, str) and any(one in value for one in "@?#"):
        raise _SecretInAddressError
    try:
        parts = urlsplit(value)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, AttributeError, TypeError):
        raise values.BadValueError(rule) from None
    if not is_address or " " in value:
        raise values.BadValueError(rule)
    return str(value).rstrip("/").removesuffix("/v1")


class _SecretInAddressError(ConfigError):
    """The address may contain a secret, so the message does not repeat it."""

    def __init__(self) -> None:
        super().__init__(
            "--endpoint-url must have no user, password or query ('?...'), because the registry stores no secrets; put "
            "the key into an environment variable and name that with --api-key-env."
        )


def _model(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise values.BadValueError("must be a folder or a model's name")
    if _PASSWORD_IN_ADDRESS.search(value):
        raise ConfigError(
            "--model-path must contain neither a user nor a password, because the registry stores no secrets; export "
            "what the source needs, such as HF_TOKEN, before 'start'."
        )
    return absolute(value) if value.startswith(("/", ".", "~")) else value


def absolute(path: str) -> str:
    """Returns a path in absolute form.

    Raises:
        ValueError: it begins with the home folder of an unknown user.
    """
    return os.path.abspath(parse_path(path))


def _variable(value: Any) -> str:
    if not isinstance(value, str) or _VARIABLE.fullmatch(value) is None:
        raise _NotAVariableError
    return value


class _NotAVariableError(ConfigError):
    """What was given as a variable's name may be the key itself, so the message does not repeat it."""

    def __init__(self) -> None:
        super().__init__(
            "--api-key-env must be the name of an environment variable, such as MY_SERVER_KEY, not the key itself."
        )


def _environment(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and _VARIABLE.fullmatch(key) and isinstance(text, str) and "\0" not in text
        for key, text in value.items()
    ):
        raise ConfigError("--env must be NAME=VALUE, with a name of letters, digits and underscores.")
    for key in value:
        if _SECRET_WORD.search(key):
            raise ConfigError(
                f"--env {key} looks like a secret, and the registry stores none; export {key} before 'start' instead: "
                "a server inherits the environment of the command that starts it."
            )
        if _PASSWORD_IN_ADDRESS.search(value[key]):
            raise ConfigError(
                f"--env {key} contains an address with a user or password, and the registry stores no secrets; export "
                f"{key} before 'start' instead."
            )
    return dict(value)


def _arguments(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) and "\0" not in one for one in value):
        raise values.BadValueError("must be a list of texts")
    for one in value:
        flag = one.partition("=")[0]
        if _SECRET_FLAG.fullmatch(flag):
            raise ConfigError(
                f"{flag} in --extra-args would store a secret in the registry; put the key into an environment "
                "variable and name that with --api-key-env."
            )
    return tuple(value)


_KINDS: dict[str, values.ValueKind] = {
    "endpoint_url": values.ValueKind(_endpoint),
    "backend": values.choice(*BACKENDS),
    "model_path": values.ValueKind(_model),
    "tensor_parallel": values.integer(1),
    "max_model_len": values.integer(1, special={"auto": None}),
    "gpu_memory_utilization": values.number(0, 1),
    "dtype": values.choice(*DTYPES),
    "host": values.text(),
    "port": values.integer(1, 65535),
    "chosen_port": values.integer(1, 65535),
    "api_key_env": values.ValueKind(_variable),
    "env": values.ValueKind(_environment),
    "extra_args": values.ValueKind(_arguments),
}

SETTINGS = tuple(key for key in _KINDS if key != "chosen_port")
"""Every setting that a user can set."""
