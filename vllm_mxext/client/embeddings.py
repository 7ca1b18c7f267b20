"""`client.embeddings.create(…)`: embeddings in the shape of OpenAI's client, single inputs together where possible."""

from __future__ import annotations

from typing import Any

from vllm_mxext.client.document import Document
from vllm_mxext.client.namespaces import OPTION_NAMES, CallOptions, Requests
from vllm_mxext.client.pipeline import Pipeline
from vllm_mxext.client.sharing import BatchSettings, Group, ListForm, SharedRequests

EMBEDDINGS = "/v1/embeddings"

SharedInputs = SharedRequests[Document]


class Embeddings:
    """`client.embeddings`.

    Args:
        requests: sends them.
        inputs: sends single texts, those of other clients over the same pipeline too.
    """

    def __init__(self, requests: Requests, inputs: SharedInputs) -> None:
        self._requests = requests
        self._inputs = inputs

    async def create(self, **fields: Any) -> Document:
        """Returns embeddings.

        If the client batches, texts of concurrent calls with equal fields and options are sent as one request; `usage`
        is then known only for all of them together, and is in `batch.usage`.

        Args:
            fields: of the request (`model`, `input`, `dimensions`, `encoding_format`, …), and those of `CallOptions`.

        Raises:
            ConfigError: an option is out of range.
            ClientError: there are none; its class says why.
        """
        own = dict(fields)
        options = self._requests.options.merged(own)
        text = own.pop("input", None)
        if not isinstance(text, str) or "input" in options.extra_body:
            return await self._requests.post(EMBEDDINGS, fields)
        return await self._inputs.ask(Group.of(own, {name: getattr(options, name) for name in OPTION_NAMES}), text)


def shared_inputs(pipeline: Pipeline, batches: BatchSettings) -> SharedInputs:
    """Returns what sends the texts of all clients over a pipeline."""
    form = ListForm(EMBEDDINGS, "input", "data", _result)
    return SharedRequests(pipeline, Requests(pipeline, CallOptions()), batches, form)


def _result(answer: Document, part: Document | None, num_inputs: int) -> Document:
    """Returns the answer that the input would have had alone, without its usage, which nobody knows."""
    if part is None:
        return answer
    own = {"data": [{**part, "index": 0}], "usage": None, "batch": {"size": num_inputs, "usage": answer.get("usage")}}
    return Document({**answer, **own}, answer.answer)
