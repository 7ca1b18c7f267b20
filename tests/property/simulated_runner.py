"""A model runner with a KV memory that remembers what was written, so that a wrong or stale block is caught."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vllm_mxext.native.protocol import EngineCoreRequest, FinishReason, ModelRunnerOutput, SchedulerOutput

VOCAB_SIZE = 12
EOS_TOKEN_ID = 0
STOP_TOKEN_ID = 1

Content = bytes


def kv_content(before: Content, token_id: int) -> Content:
    """What a position holds: a digest of every token up to it."""
    return hashlib.blake2b(before + token_id.to_bytes(4, "little"), digest_size=8).digest()


def sample(token_ids: Sequence[int], seed: int) -> int:
    """The token a request samples after these; end-of-text and the stop token come up now and then."""
    return hashlib.blake2b(bytes(token_ids) + seed.to_bytes(8, "little"), digest_size=1).digest()[0] % VOCAB_SIZE


def draft(token_ids: Sequence[int], seed: int, limit: int) -> list[int]:
    """Up to `limit` draft tokens, some of them wrong."""
    drafts: list[int] = []
    for position in range(limit):
        dice = hashlib.blake2b(bytes([*token_ids, *drafts, position, limit]), digest_size=1).digest()[0]
        if dice < 40:
            break
        right = sample([*token_ids, *drafts], seed)
        drafts.append((right + 1) % VOCAB_SIZE if dice < 90 else right)
    return drafts


@dataclass
class Row:
    token_ids: list[int]
    block_ids: list[int]
    num_computed_tokens: int
    seed: int
    root: Content
    contents: list[Content] = field(default_factory=list)

    def content_at(self, position: int) -> Content:
        while len(self.contents) <= position:
            before = self.contents[-1] if self.contents else self.root
            self.contents.append(kv_content(before, self.token_ids[len(self.contents)]))
        return self.contents[position]


class SimulatedRunner:
    """Executes scheduled steps as the real runner does: all writes of the batch first, then all reads.

    Args:
        num_blocks: with the null block.
        block_size: token positions per block.
        root_of: request id -> what its KV content depends on besides tokens, asked whenever a request is sent whole:
            everything that separates requests which must not share blocks.
    """

    def __init__(self, num_blocks: int, block_size: int, root_of: Callable[[str], Content]) -> None:
        self.block_size = block_size
        self.memory: list[Content | None] = [None] * (num_blocks * block_size)
        self.rows: dict[str, Row] = {}
        self._root_of = root_of
        self._never_seen: set[str] = set()

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        self.check_protocol(step)
        for request_id in step.finished_request_ids:
            assert request_id in self.rows or request_id in self._never_seen
            self.rows.pop(request_id, None)
        self._never_seen.clear()
        for new in step.new_requests:
            assert new.request_id not in self.rows, "A request the runner knows was sent whole."
            self.rows[new.request_id] = Row(
                list(new.token_ids),
                list(new.block_ids),
                new.num_computed_tokens,
                new.seed,
                self._root_of(new.request_id),
            )
        for cached in step.cached_requests:
            row = self.rows[cached.request_id]
            row.block_ids += cached.new_block_ids
            assert cached.num_computed_tokens == row.num_computed_tokens
        drafts = self._draft(step)
        self._write(step, drafts)
        self._read(step, drafts)
        sampled = self._sample(step, drafts)
        return ModelRunnerOutput(
            sampled,
            num_draft_tokens={request_id: len(token_ids) for request_id, token_ids in drafts.items()},
            num_accepted_tokens={request_id: len(sampled[request_id]) - 1 for request_id in drafts},
        )

    def fail(self, step: SchedulerOutput) -> None:
        """Fails a step before anything of it is taken in."""
        self.check_protocol(step)
        self._never_seen.update(new.request_id for new in step.new_requests)

    def check_protocol(self, step: SchedulerOutput) -> None:
        new_ids = [new.request_id for new in step.new_requests]
        cached_ids = [cached.request_id for cached in step.cached_requests]
        assert sorted(new_ids + cached_ids) == sorted(step.num_scheduled_tokens), "Scheduled and described ids differ."
        assert all(count >= 1 for count in step.num_scheduled_tokens.values())
        num_drafts = sum(step.num_draft_tokens.values())
        assert step.total_num_scheduled_tokens == sum(step.num_scheduled_tokens.values()) + num_drafts
        assert all(count >= 1 for count in step.num_draft_tokens.values())
        assert not step.num_draft_tokens.keys() & set(new_ids)
        assert len(set(step.finished_request_ids)) == len(step.finished_request_ids)

    def slot(self, row: Row, position: int) -> int:
        block_id = row.block_ids[position // self.block_size]
        assert block_id != 0, "The null block is used."
        return block_id * self.block_size + position % self.block_size

    def _draft(self, step: SchedulerOutput) -> dict[str, list[int]]:
        """Puts drafts behind the tokens of their rows."""
        drafts: dict[str, list[int]] = {}
        for request_id, limit in step.num_draft_tokens.items():
            row = self.rows[request_id]
            assert row.num_computed_tokens + step.num_scheduled_tokens[request_id] == len(row.token_ids)
            found = draft(row.token_ids, row.seed, limit)
            if found:
                drafts[request_id] = found
                row.token_ids += found
        return drafts

    def _write(self, step: SchedulerOutput, drafts: dict[str, list[int]]) -> None:
        new_ids = {new.request_id for new in step.new_requests}
        readers = {
            self.slot(row, position): request_id
            for request_id, row in self.rows.items()
            if request_id not in new_ids
            for position in range(row.num_computed_tokens)
        }
        written: set[int] = set()
        for request_id, num_known in step.num_scheduled_tokens.items():
            row = self.rows[request_id]
            count = num_known + len(drafts.get(request_id, ()))
            assert row.num_computed_tokens + count <= len(row.token_ids), "Unknown tokens are scheduled."
            for position in range(row.num_computed_tokens, row.num_computed_tokens + count):
                slot = self.slot(row, position)
                assert slot not in written, "Two requests write one slot."
                assert slot not in readers, f"{request_id} overwrites what {readers.get(slot)} holds."
                written.add(slot)
                self.memory[slot] = row.content_at(position)

    def _read(self, step: SchedulerOutput, drafts: dict[str, list[int]]) -> None:
        for request_id, row in self.rows.items():
            num_tokens = row.num_computed_tokens + step.num_scheduled_tokens.get(request_id, 0)
            for position in range(num_tokens + len(drafts.get(request_id, ()))):
                assert self.memory[self.slot(row, position)] == row.content_at(position), (
                    f"{request_id} reads wrong keys at position {position}."
                )

    def _sample(self, step: SchedulerOutput, drafts: dict[str, list[int]]) -> dict[str, list[int]]:
        sampled: dict[str, list[int]] = {}
        for request_id, count in step.num_scheduled_tokens.items():
            row, drafted = self.rows[request_id], drafts.get(request_id, [])
            row.num_computed_tokens += count
            num_known = len(row.token_ids) - len(drafted)
            if row.num_computed_tokens == num_known:
                del row.token_ids[num_known:], row.contents[num_known:]
                for token_id in [*drafted, -1]:
                    row.token_ids.append(sample(row.token_ids, row.seed))
                    if row.token_ids[-1] != token_id:
                        break
                sampled[request_id] = row.token_ids[num_known:]
                row.num_computed_tokens = len(row.token_ids) - 1
            if request_id in step.num_draft_tokens:
                del row.block_ids[-(-len(row.token_ids) // self.block_size) :]
        return sampled


def undisturbed_output(request: EngineCoreRequest, max_model_len: int) -> tuple[list[int], FinishReason, int | None]:
    """Output tokens, finish reason and stop reason of a request that runs alone; written apart from `stop.py`."""
    params = request.params
    assert params.max_tokens is not None
    token_ids = list(request.prompt_token_ids)
    num_prompt_tokens = len(token_ids)
    for num_output_tokens in range(1, params.max_tokens + 1):
        token_id = sample(token_ids, request.seed)
        token_ids.append(token_id)
        if num_output_tokens >= params.min_tokens:
            if token_id in request.eos_token_ids and not params.ignore_eos:
                return token_ids[num_prompt_tokens:], FinishReason.STOP, None
            if token_id in params.stop_token_ids:
                return token_ids[num_prompt_tokens:], FinishReason.STOP, token_id
        if len(token_ids) == max_model_len:
            break
    return token_ids[num_prompt_tokens:], FinishReason.LENGTH, None
