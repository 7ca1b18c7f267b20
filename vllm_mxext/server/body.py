"""Reads a request's JSON body into a checked model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from vllm_mxext.server.disconnect import ClientDisconnectedError
from vllm_mxext.server.errors import MalformedRequestError, malformed
from vllm_mxext.server.openai.unsupported import refuse_unsupported

M = TypeVar("M", bound=BaseModel)

_MAX_SHOWN_CHARS = 100


async def read_object(request: Request) -> dict[str, Any]:
    """Returns the body as a JSON object, whatever the content type says.

    Raises:
        MalformedRequestError: it is empty, not UTF-8, not JSON, or no object.
        RequestTooLargeError: it is larger than the server takes.
        ClientDisconnectedError: the client went away while sending it.
    """
    try:
        body = await request.body()
    except ClientDisconnect:
        raise ClientDisconnectedError from None
    if not body.strip():
        raise MalformedRequestError("The request body is empty; send a JSON object.")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _explain(body, error) from None
    if not isinstance(value, dict):
        raise MalformedRequestError('The request body must be a JSON object, such as {"model": ...}.')
    return value


def _explain(body: bytes, error: orjson.JSONDecodeError) -> MalformedRequestError:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as cause:
        return MalformedRequestError(f"The request body is not UTF-8: {cause.reason} at byte {cause.start}.")
    return MalformedRequestError(f"The request body is not valid JSON: {error}.")


def check(
    value: Mapping[str, Any],
    model: type[M],
    unsupported: Mapping[str, Callable[[Any], bool]],
    *,
    refuses_unknown: bool = False,
) -> M:
    """Returns the body as `model`.

    Args:
        value: the body.
        model: what it should be.
        unsupported: fields that cannot be honoured; see `refuse_unsupported`.
        refuses_unknown: refuse fields of other names, rather than ignore them.

    Raises:
        MalformedRequestError: fields are missing, of wrong types, or refused as unknown.
        UnsupportedFeatureError: a known field cannot be honoured.
    """
    refuse_unsupported(value, unsupported)
    if refuses_unknown:
        _refuse_unknown(value, (*model.model_fields, *unsupported))
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise malformed(error) from None


def _refuse_unknown(value: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = value.keys() - set(known)
    if not unknown:
        return
    name = min(unknown)[:_MAX_SHOWN_CHARS]  # as long as the body, if a client likes; matching takes its square
    similar = get_close_matches(name, known, n=1)
    advice = f"did you mean `{similar[0]}`?" if similar else "leave it out."
    raise MalformedRequestError(
        f"There is no field `{name}`, and this server runs with --strict-params: {advice}", param=name
    )
