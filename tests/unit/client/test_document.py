"""`Document` beside the types of the `openai` package: the same attributes, the same None, the same errors."""

from __future__ import annotations

import copy
import json
import pickle
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from vllm_mxext.client.document import Document

pytestmark = pytest.mark.promise("CLIENT-8")

ROOTS: dict[str, type[BaseModel]] = {
    "chat.completion": ChatCompletion,
    "chat.completion.chunk": ChatCompletionChunk,
    "text_completion": Completion,
    "list": CreateEmbeddingResponse,
    "model": Model,
}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields the types of objects in a field's type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from models_in(part)


def known(kind: type[BaseModel], place: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yields every type within another, with the field that it stands in."""
    yield place, kind
    for name, field in kind.model_fields.items():
        if name != "moderation":  # a service of OpenAI's own
            for inner in models_in(field.annotation):
                yield from known(inner, name)


EVERY = [
    pytest.param(root, place, kind, id=f"{root}-{place}-{kind.__name__}")
    for root, whole in ROOTS.items()
    for place, kind in known(whole, "")
]


@pytest.mark.parametrize(("root", "place", "kind"), EVERY)
def test_fields_that_openai_knows_are_none_where_the_server_has_left_them_out(
    root: str, place: str, kind: type[BaseModel]
) -> None:
    document = Document({"object": root}) if not place else Document({place: [{}]})[place][0]
    needed = {"delta", "message", "text"} if place == "choices" else set()  # one tells which kind of choice it is
    for name in kind.model_fields.keys() - needed - {"object"}:
        assert getattr(document, name) is None
        assert name in document.model_dump()
        assert name not in document


@pytest.mark.parametrize(
    "read",
    [
        lambda document: document.colour,
        lambda document: document.choices[0].delta.reasoning_content,
        lambda document: document.choices[0].message,
        lambda document: document.choices[0].colour,
        lambda document: document["usage"],
        lambda document: document.model_extra["usage"],
    ],
)
def test_other_fields_and_brackets_are_errors(read: Any) -> None:
    choice = {"index": 0, "delta": {"role": "assistant"}}
    document = Document({"object": "chat.completion.chunk", "choices": [choice]})
    with pytest.raises((AttributeError, KeyError)):
        read(document)


ANSWER: dict[str, Any] = {
    "id": "chat-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "logprobs": None,
            "message": {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Grüße",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
}


@pytest.mark.parametrize("options", [{}, {"exclude_unset": True}, {"exclude_none": True}])
def test_dumps_are_those_of_openai(options: dict[str, Any]) -> None:
    theirs = ChatCompletion.model_validate(ANSWER).model_dump(**options)
    ours = Document(ANSWER).model_dump(**options)
    for message in (theirs["choices"][0]["message"], ours["choices"][0]["message"]):
        for call in message["tool_calls"]:  # one type for all that a tool call can be
            call.pop("custom", None), call.pop("index", None)
    assert ours == theirs
    assert type(ours["choices"][0]) is dict


def test_to_dict_and_json_are_what_the_server_sent() -> None:
    theirs, ours = ChatCompletion.model_validate(ANSWER), Document(ANSWER)
    assert ours.to_dict() == theirs.to_dict() == ANSWER
    assert ours.to_json().startswith('{\n  "id": ')
    assert "Grüße" in ours.model_dump_json()
    for text in (ours.to_json(), ours.model_dump_json(exclude_unset=True)):
        assert json.loads(text) == ANSWER
    assert ours.choices[0].message.model_extra == theirs.choices[0].message.model_extra


def test_copies_keep_what_is_known_and_fields_can_be_set() -> None:
    document = Document(ANSWER)
    for copied in (copy.deepcopy(document), pickle.loads(pickle.dumps(document))):
        assert copied == document
        assert copied.choices[0].message.refusal is None
    document.choices[0].message.content = "corrected"
    assert document["choices"][0]["message"]["content"] == "corrected"
