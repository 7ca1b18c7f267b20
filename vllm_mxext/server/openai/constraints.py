"""From the many spellings of a constraint in a request body to one `StructuredOutputsParams`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from vllm_mxext.constraint_params import StructuredOutputsParams, check_backend
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.server.openai.protocol import GenerationRequest

CONSTRAINT_FIELDS = (
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "guided_json_object", "guided_decoding_backend", "guided_whitespace_pattern", "grammar", "json_schema",
)  # fmt: skip
"""Request fields that are read here; any other that looks like one is refused."""

_LOOKS_LIKE_ONE = re.compile(r"(guided_|structured_|response_format|json_schema|grammar|constraint)", re.IGNORECASE)
_OLD_NAMES = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_json_object": "json_object",
    "grammar": "grammar",
    "json_schema": "json",
}
_OPTIONS = {"guided_whitespace_pattern": "whitespace_pattern"}
_SCHEMA_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_PARAMETERS = frozenset(field.name for field in fields(StructuredOutputsParams))

_Values = dict[str, Any]


def refuse_unknown_constraints(body: Mapping[str, Any]) -> None:
    """Refuses fields that look like a constraint and are unknown, for ignoring one would change the answer.

    Raises:
        InvalidRequestError: there is one; `param` names it.
    """
    for field in body:
        if _LOOKS_LIKE_ONE.match(field) and field not in CONSTRAINT_FIELDS and body[field] is not None:
            raise InvalidRequestError(
                f"`{field}` is not a constraint that this server knows; use response_format or structured_outputs, "
                "or leave it out.",
                param=field,
            )


def read_constraint(request: GenerationRequest) -> StructuredOutputsParams | None:
    """Reads the one constraint of a request; null, an empty grammar and `{"type": "text"}` are none.

    Raises:
        InvalidRequestError: several constraints, or one that is malformed; `param` names the field.
    """
    body = _given(request)
    check_backend(body.get("guided_decoding_backend"), "guided_decoding_backend")
    found: dict[str, _Values] = {}
    for field, reader in _READERS.items():
        if body.get(field) is not None:
            values = reader(body[field])
            if values:
                found[field] = values
    options = {name: body[field] for field, name in _OPTIONS.items() if body.get(field) is not None}
    if len(found) > 1:
        names = " and ".join(found)
        raise InvalidRequestError(f"Give one constraint, got {names}.", param=list(found)[1])
    if not found:
        if options:
            field = next(field for field in _OPTIONS if body.get(field) is not None)
            raise InvalidRequestError(f"{field} needs a constraint such as guided_json; leave it out.", param=field)
        return None
    ((field, values),) = found.items()
    try:
        return StructuredOutputsParams(**{**values, **options})
    except InvalidRequestError as error:
        error.param = field
        raise


def name_constraint_field(error: InvalidRequestError, request: GenerationRequest) -> None:
    """Renames the field an error blames to the one in which the request has its constraint."""
    if error.param == "structured_outputs":
        body = _given(request)
        given = (field for field in _READERS if body.get(field) not in (None, "", False, {"type": "text"}))
        error.param = next(given, error.param)


def _given(request: GenerationRequest) -> dict[str, Any]:
    values = {field: getattr(request, field) for field in CONSTRAINT_FIELDS}
    return {field: value for field, value in values.items() if value is not None}


def _old_name(name: str) -> Callable[[Any], _Values]:
    def read(value: Any) -> _Values:
        if name in ("json_object", "json") and value is False:
            return {}
        if name in ("grammar", "regex") and value == "":
            return {}
        return {name: tuple(value) if name == "choice" and isinstance(value, list) else value}

    return read


def _structured_outputs(value: Any) -> _Values:
    if not isinstance(value, dict):
        raise InvalidRequestError("structured_outputs must be an object.", param="structured_outputs")
    unknown = sorted(value.keys() - _PARAMETERS)
    if unknown:
        raise InvalidRequestError(
            f"structured_outputs has no field `{unknown[0]}`; its fields are {', '.join(sorted(_PARAMETERS))}.",
            param="structured_outputs",
        )
    values = {name: inner for name, inner in value.items() if inner is not None}
    if not any(inner is not False for inner in values.values()):
        return {}
    if isinstance(values.get("choice"), list):
        values["choice"] = tuple(values["choice"])
    return values


def _response_format(value: Any) -> _Values:
    if not isinstance(value, dict):
        raise _format_error("must be an object", "")
    kind = value.get("type")
    if kind == "text":
        return {}
    if kind == "json_object":
        schema = value.get("schema")  # llama.cpp and others put one here
        return {"json_object": True} if schema is None else {"json": schema}
    if kind == "json_schema":
        return {"json": _named_schema(value)}
    if kind == "structural_tag":
        tag = {name: inner for name, inner in value.items() if name != "type"}
        return {"structural_tag": tag}
    raise _format_error(f"must be text, json_object, json_schema or structural_tag, got {kind!r}"[:120], ".type")


def _named_schema(value: Mapping[str, Any]) -> Any:
    """Returns the schema of OpenAI's `json_schema` format; `strict` or not, it is enforced."""
    named = value.get("json_schema")
    if not isinstance(named, dict):
        if named is None and isinstance(value.get("schema"), dict):
            return value["schema"]  # llama.cpp's short form
        raise _format_error("is missing: it must be an object with name and schema", ".json_schema")
    name = named.get("name")
    if not isinstance(name, str):
        raise _format_error("is missing", ".json_schema.name")
    if not _SCHEMA_NAME.fullmatch(name):
        raise _format_error("must have 1 to 64 letters, digits, dashes and underscores", ".json_schema.name")
    strict = named.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise _format_error("must be true or false", ".json_schema.strict")
    schema = named.get("schema")
    if schema is None:
        if strict:
            raise _format_error("is missing, and strict needs it", ".json_schema.schema")
        return {"type": "object"}
    if not isinstance(schema, dict):
        raise _format_error("must be an object", ".json_schema.schema")
    return schema


def _format_error(rule: str, part: str) -> InvalidRequestError:
    field = f"response_format{part}"
    return InvalidRequestError(f"{field} {rule}.", param=field)


_READERS: dict[str, Callable[[Any], _Values]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    **{field: _old_name(name) for field, name in _OLD_NAMES.items()},
}
