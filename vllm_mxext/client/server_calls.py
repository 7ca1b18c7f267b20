"""`ServerCalls`: the part of `VllmClient` that is not about generating text: models, adapters, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_mxext.client.call import Call
from vllm_mxext.client.document import Document
from vllm_mxext.client.errors import ClientError, NotFoundError, ProtocolError
from vllm_mxext.client.inference import ANY_MODEL
from vllm_mxext.client.namespaces import Models, Requests
from vllm_mxext.client.pipeline import Pipeline
from vllm_mxext.client.sync_face import SyncFace

MAIN = "main"
"""Id of the endpoint that the client's constructor creates. Adapters are loaded, and therefore used, only there."""

_NAMES = {"id", "name"}


class ServerCalls:
    """Base of `VllmClient`.

    Args:
        face: runs the asynchronous calls.
        pipeline: sends the calls.
        requests: makes calls of requests.
        model: used for calls that name none.
    """

    def __init__(self, face: SyncFace, pipeline: Pipeline, requests: Requests, model: str) -> None:
        self._face = face
        self._pipeline = pipeline
        self._requests = requests
        self._model = model

    def get_model(self, model_id: str | None = None) -> Document:
        """Returns a model's card (its entry in `/v1/models`); the first served model's if none is named.

        Raises:
            ClientError: there is no such model, or no answer.
        """
        name = model_id or self._model
        cards = self._cards("/v1/models")
        if name in ANY_MODEL and not cards:
            raise ClientError("The server lists no model; wait until it has loaded one.")
        found = next((one for one in cards if name in (*ANY_MODEL, one.get("id"))), None)
        # Not every server can be asked for one model (vLLM cannot), and not every name is listed (base:adapter).
        return self._face.run(Models(self._requests).retrieve(name)) if found is None else found

    def read_text(self, path: str) -> str:
        """Returns the text at a path of the server, such as `/metrics`.

        Raises:
            ClientError: there is none, or no answer.
        """
        call = Call(path, method="GET", may_be_text=True, endpoint_id=MAIN)
        return str(self._face.run(self._pipeline.call(call)).body)

    def load_lora(self, lora_name: str, lora_path: str, **fields: Any) -> Document:
        """Loads an adapter from a path on the server's machine; returns the server's answer, a text in `message`.

        Args:
            lora_name: the name by which requests will use it.
            lora_path: its folder.
            fields: further fields of `POST /v1/load_lora_adapter`, such as `load_inplace`.

        Raises:
            ClientError: the server refused, or did not answer.
        """
        return self._update("/v1/load_lora_adapter", {"lora_name": lora_name, "lora_path": lora_path, **fields})

    def unload_lora(self, lora_name: str) -> Document:
        """Unloads an adapter; returns the server's answer, a text in `message`.

        Raises:
            ClientError: the server refused, or did not answer.
        """
        return self._update("/v1/unload_lora_adapter", {"lora_name": lora_name})

    def list_loras(self) -> list[Document]:
        """Returns the loaded adapters; for a server that only lists them among its models, as vLLM does, those cards.

        Raises:
            ClientError: the server did not answer.
        """
        try:
            return self._cards("/v1/lora_adapters", endpoint_id=MAIN)
        except NotFoundError:
            return [
                Document({**one, "name": one["id"]})
                for one in self._cards("/v1/models", endpoint_id=MAIN)
                if one.get("parent")
            ]

    def chat_with_lora(self, lora_name: str, messages: Sequence[Mapping[str, Any]], **parameters: Any) -> Document:
        """Returns a chat completion by an adapter, at most 150 tokens long by default.

        Raises:
            ClientError: there is none; its class says why.
        """
        fields = {
            "endpoint_id": MAIN,
            "max_tokens": 150,
            **parameters,
            "model": lora_name,
            "messages": list(messages),
        }
        return self._face.run(self._requests.post("/v1/chat/completions", fields))

    def _update(self, path: str, body: Mapping[str, Any]) -> Document:
        call = Call(path, body, is_idempotent=False, may_be_text=True, endpoint_id=MAIN)
        answer = self._face.run(self._pipeline.call(call)).body
        return Document(answer if isinstance(answer, dict) else {"message": str(answer)})  # vLLM answers with text

    def _cards(self, path: str, **options: Any) -> list[Document]:
        """Returns what the server lists at a path."""
        cards = self._face.run(self._requests.get(path, **options)).get("data")
        if not isinstance(cards, list) or not all(isinstance(one, Document) and one.keys() & _NAMES for one in cards):
            raise ProtocolError(f"'{path}' answered with something that is no list of names; check the address.")
        return cards
