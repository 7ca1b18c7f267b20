"""`client.chat.completions.create(…)` and its like for programs without an event loop."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from vllm_mxext.client.call import Attempt
from vllm_mxext.client.document import Document
from vllm_mxext.client.embeddings import Embeddings
from vllm_mxext.client.namespaces import Chat, Completions, Models, Page, Stream
from vllm_mxext.client.sync_face import SyncFace


class SyncStream(Iterator[Document]):
    """A streamed answer, chunk by chunk; `with` or `close()` end it at once.

    Args:
        face: runs it.
        stream: the answer.
    """

    def __init__(self, face: SyncFace, stream: Stream) -> None:
        self._face = face
        self._stream = stream
        self._chunks: Generator[Document, None, None] = face.iterate(stream)
        self._num_given = 0

    @property
    def text(self) -> str:
        """The text of the first choice in the chunks that have been given out; the client may have read more."""
        return self._stream.text_of(self._num_given)

    @property
    def request_id(self) -> str:
        """The server's name for the request."""
        return self._stream.request_id

    @property
    def endpoint_id(self) -> str:
        """Who answers."""
        return self._stream.endpoint_id

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """What was tried."""
        return self._stream.attempts

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the call to the first token, queue and retries included."""
        return self._stream.ttft_s

    def __next__(self) -> Document:
        chunk = next(self._chunks)
        self._num_given += 1
        return chunk

    def __enter__(self) -> SyncStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it; the server is told by the closed connection."""
        self._chunks.close()
        self._face.end(self._stream)  # the generator does not, if nothing was asked of it


class SyncCompletions:
    """`completions` of a client.

    Args:
        face: runs it.
        completions: the asynchronous ones.
    """

    def __init__(self, face: SyncFace, completions: Completions) -> None:
        self._face = face
        self._completions = completions

    def create(self, *, stream: bool = False, **fields: Any) -> Document | SyncStream:
        """Returns the answer, or with `stream=True` its chunks.

        Raises:
            ClientError: there is none; its class says why.
        """
        answer = self._face.run(self._completions.create(stream=stream, **fields))
        return SyncStream(self._face, answer) if isinstance(answer, Stream) else answer


class SyncChat:
    """`chat` of a client.

    Args:
        face: runs it.
        chat: the asynchronous one.

    Attributes:
        completions: chat completions.
    """

    def __init__(self, face: SyncFace, chat: Chat) -> None:
        self.completions = SyncCompletions(face, chat.completions)


class SyncEmbeddings:
    """`embeddings` of a client.

    Args:
        face: runs it.
        embeddings: the asynchronous ones.
    """

    def __init__(self, face: SyncFace, embeddings: Embeddings) -> None:
        self._face = face
        self._embeddings = embeddings

    def create(self, **fields: Any) -> Document:
        """Returns embeddings; texts of concurrent calls may share a request, see the asynchronous one.

        Raises:
            ClientError: there are none; its class says why.
        """
        return self._face.run(self._embeddings.create(**fields))


class SyncModels:
    """`models` of a client.

    Args:
        face: runs it.
        models: the asynchronous ones.
    """

    def __init__(self, face: SyncFace, models: Models) -> None:
        self._face = face
        self._models = models

    def list(self, **options: Any) -> Page:
        """Returns the models that are served, in the field `data`; going through it gives them.

        Raises:
            ClientError: there is no answer.
        """
        return self._face.run(self._models.list(**options).page())

    def retrieve(self, model: str, **options: Any) -> Document:
        """Returns what is known of one model.

        Raises:
            ClientError: there is no such model, or no answer.
        """
        return self._face.run(self._models.retrieve(model, **options))
