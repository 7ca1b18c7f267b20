"""`SharedRequests`: inputs of concurrent calls with equal parameters as one request, whose answer is taken apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from vllm_mxext.client.batcher import Batcher, NotTogetherError
from vllm_mxext.client.call import Call
from vllm_mxext.client.clock import SystemClock
from vllm_mxext.client.document import Document
from vllm_mxext.client.errors import BadRequestError, ProtocolError, ServerError
from vllm_mxext.client.namespaces import Requests
from vllm_mxext.client.numbers import check_numbers
from vllm_mxext.client.pipeline import Pipeline

ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class BatchSettings:
    """How inputs share requests.

    Attributes:
        is_enabled: whether they do.
        max_size: most inputs in one request.
        timeout_s: how long the first of them waits for others.

    Raises:
        ConfigError: a number is out of range.
    """

    is_enabled: bool = True
    max_size: int = 8
    timeout_s: float = 0.1

    def __post_init__(self) -> None:
        check_numbers("BatchSettings", least=1, is_whole=True, max_size=self.max_size)
        check_numbers("BatchSettings", timeout_s=self.timeout_s)


@dataclass(frozen=True, slots=True)
class Group:
    """What inputs must have in common to share a request.

    Attributes:
        text: fields and options as text, for comparison.
        fields: fields of the request, without the input.
        options: fields of `CallOptions`.
    """

    text: str
    fields: Mapping[str, Any] = field(compare=False)
    options: Mapping[str, Any] = field(compare=False)

    @classmethod
    def of(cls, fields: Mapping[str, Any], options: Mapping[str, Any]) -> Group:
        """Returns the group of inputs with such fields and options.

        Raises:
            BadRequestError: they cannot be written as JSON.
        """
        try:  # not a number would be sent as null, which means the server's default
            text = json.dumps([fields, options], sort_keys=True, default=repr, allow_nan=False)
        except (TypeError, ValueError) as error:
            problem = f"The parameters cannot be written as JSON ({error}); give plain values."
            raise BadRequestError(problem) from error
        return cls(text, fields, options)


@dataclass(frozen=True, slots=True)
class ListForm(Generic[ResultT]):
    """How one kind of request takes and answers a list.

    Attributes:
        path: below the server's address.
        asked: the field of the request that has the input, or a list of them.
        answered: the field of the answer that has a part with an `index` for each.
        read: makes a result of an answer, its part (None = the answer is that of one input), and the number of inputs.
    """

    path: str
    asked: str
    answered: str
    read: Callable[[Document, Document | None, int], ResultT]


class SharedRequests(Generic[ResultT]):
    """Sends inputs, several in one request where possible.

    An input waits for others only if other calls are under way, so sequential calls are never delayed.

    Args:
        pipeline: sends the calls.
        requests: makes calls of requests.
        batches: how inputs share requests; may be changed at any time.
        form: of requests and answers.

    Attributes:
        batches: the same.
    """

    def __init__(self, pipeline: Pipeline, requests: Requests, batches: BatchSettings, form: ListForm[ResultT]) -> None:
        self._pipeline = pipeline
        self._requests = requests
        self.batches = batches
        self._form = form
        self._batcher: Batcher[Group, str, ResultT] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._num_calls = 0
        self._takes_lists: bool | None = None  # None = no server has shown it

    async def ask(self, group: Group, one: str) -> ResultT:
        """Returns the result for one input.

        Raises:
            ClientError: there is none; its class says why.
        """
        self._check_loop()
        self._num_calls += 1
        try:
            if self._num_calls > 1 and self._may_batch():
                return await self._shared_batcher().add(group, one)
            return await self._alone(group, one)
        finally:
            self._num_calls -= 1

    async def ask_all(self, group: Group, inputs: Sequence[str]) -> list[ResultT | Exception]:
        """Returns a result or an error for each input, in their order, from as many concurrent requests as allowed."""
        size = self.batches.max_size if self._may_batch() else 1
        batcher = self._new_batcher()
        batcher.max_size, batcher.timeout_s = size, 0.0
        results: list[Any] = [None] * len(inputs)
        starts = iter(range(0, len(inputs), size))

        async def work() -> None:
            for start in starts:
                part = slice(start, start + size)
                adding = (batcher.add(group, one) for one in inputs[part])
                results[part] = await asyncio.gather(*adding, return_exceptions=True)

        await asyncio.gather(*(work() for _ in range(self._num_places(group.options))))
        for one in results:
            if isinstance(one, BaseException) and not isinstance(one, Exception):
                raise one
        return results

    async def close(self) -> None:
        """Cancels waiting inputs."""
        if self._batcher is not None:
            await self._batcher.close(flushes=False)

    def _check_loop(self) -> None:
        """Discards what belongs to an earlier event loop, as after a fork."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._batcher, self._num_calls = loop, None, 0

    def _may_batch(self) -> bool:
        return self.batches.is_enabled and self.batches.max_size > 1 and self._takes_lists is not False

    def _num_places(self, options: Mapping[str, Any]) -> int:
        """Returns how many requests of one list to send at once: more would only fill the queue."""
        call = Call(self._form.path, endpoint_id=options.get("endpoint_id"))
        return max(1, sum(one.limiter.limit for one in self._pipeline.endpoints if one.takes(call)))

    def _shared_batcher(self) -> Batcher[Group, str, ResultT]:
        if self._batcher is None:
            self._batcher = self._new_batcher()
        self._batcher.max_size, self._batcher.timeout_s = self.batches.max_size, self.batches.timeout_s
        self._batcher.parts_wait = not self._pipeline.max_queue
        return self._batcher

    def _new_batcher(self) -> Batcher[Group, str, ResultT]:
        record = self._pipeline.metrics.record_batch
        batcher = Batcher(self._send, SystemClock(), on_batch=record, on_answered_alone=self._take_for_listless)
        batcher.parts_wait = not self._pipeline.max_queue
        return batcher

    async def _send(self, group: Group, inputs: Sequence[str]) -> list[ResultT]:
        if len(inputs) == 1:
            return [await self._alone(group, inputs[0])]
        form = self._form
        fields = {**group.fields, form.asked: list(inputs), **group.options}
        try:
            answer = await self._requests.post(form.path, fields, is_trial=True)
        except ServerError as error:
            if error.status != 500:
                raise
            # llama-cpp-python's server says this to every list, and llama.cpp's to one with an input that is too long.
            raise NotTogetherError from error
        parts = answer.get(form.answered)
        if not isinstance(parts, list) or sorted(_index(one) for one in parts) != list(range(len(inputs))):
            raise ProtocolError(
                f"The server answered a list of {len(inputs)} with other {form.answered} than one for each; set "
                "batch_enabled = False (batches.is_enabled of an AsyncVllmClient)."
            )
        self._takes_lists = True
        return [form.read(answer, part, len(inputs)) for part in sorted(parts, key=_index)]

    async def _alone(self, group: Group, one: str) -> ResultT:
        form = self._form
        answer = await self._requests.post(form.path, {**group.fields, form.asked: one, **group.options})
        return form.read(answer, None, 1)

    def _take_for_listless(self) -> None:
        """Sends no more lists, unless a server has answered one."""
        if self._takes_lists is None:
            self._takes_lists = False


def _index(part: Any) -> int:
    index = part.get("index") if isinstance(part, Mapping) else None
    return index if isinstance(index, int) else -1
