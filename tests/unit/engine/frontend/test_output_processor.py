"""From tokens to text, finish reasons and times, for every cut of the stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.engine_fakes import engine_config, name_of
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.frontend.input_processor import InputProcessor
from vllm_mxext.engine.frontend.output_processor import OutputProcessor
from vllm_mxext.engine.frontend.request_state import RequestState
from vllm_mxext.errors import GenerationError
from vllm_mxext.native.protocol import EngineCoreOutput, EngineCoreOutputs, FinishReason, SchedulerStats, TokenLogprobs
from vllm_mxext.observability.stats import FinishedRequest, NullStatsRecorder, StepStats
from vllm_mxext.outputs import Logprob, RequestOutput
from vllm_mxext.requests import GenerateRequest, TextPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Recorder(NullStatsRecorder):
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def record_step(self, stats: StepStats) -> None:
        self.events.append(("step", stats.num_running, stats.kv_cache_usage))

    def record_first_token(self, num_prompt_tokens: int, ttft_s: float) -> None:
        self.events.append(("first", num_prompt_tokens, ttft_s))

    def record_next_tokens(self, num_tokens: int, gaps_s: Sequence[float]) -> None:
        self.events.append(("next", num_tokens, *gaps_s))

    def record_finished(self, request: FinishedRequest) -> None:
        self.events.append(("finished", tuple(request.finish_reasons), tuple(request.num_generation_tokens)))


class Front:
    """An output processor fed by hand."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.recorder = Recorder()
        self.outputs = OutputProcessor(FakeTokenizer(), self.clock, self.recorder)
        self._input = InputProcessor(engine_config(), FakeTokenizer(), lambda: 1)
        self.aborted: list[str] = []
        self._core_ids: dict[str, str] = {}

    def open(self, request_id: str = "r", on_change: Callable[[], None] | None = None, **params: Any) -> RequestState:
        values = {"max_tokens": 100, "output_kind": OutputKind.DELTA, **params}
        request = GenerateRequest(request_id, TextPrompt("hi"), SamplingParams(**values))
        processed = self._input.process(request, self.clock())
        self._core_ids.update({name_of(sample.request_id): sample.request_id for sample in processed.samples})
        return self.outputs.add(processed, on_change)

    def feed(
        self,
        token_ids: Sequence[int] | bytes,
        request_id: str = "r",
        stats: SchedulerStats | None = None,
        **fields: Any,
    ) -> None:
        output = EngineCoreOutput(self.core_id(request_id), list(token_ids), **fields)
        self.aborted += map(name_of, self.outputs.process(EngineCoreOutputs([output], stats)).abort_ids)

    def core_id(self, name: str) -> str:
        return self._core_ids[name]


@pytest.fixture
def front() -> Front:
    return Front()


def take(state: RequestState) -> RequestOutput:
    output = state.take_output()
    assert output is not None
    return output


def test_deltas_carry_what_is_new_and_the_last_one_the_finish_reason(front: Front) -> None:
    state = front.open()
    front.feed(b"a")
    first = take(state)
    front.feed(b"b", finish_reason=FinishReason.LENGTH)
    second = take(state)
    assert [(o.outputs[0].text, o.outputs[0].token_ids) for o in (first, second)] == [("a", [97]), ("b", [98])]
    assert (first.finished, first.outputs[0].finish_reason) == (False, None)
    assert (second.finished, second.outputs[0].finish_reason) == (True, "length")
    assert state.take_output() is None
    assert front.outputs.num_requests == front.outputs.num_samples == 0


def test_outputs_that_nobody_takes_merge_into_one(front: Front) -> None:
    state = front.open(logprobs=0)
    for byte in b"abc":
        front.feed([byte], logprobs=[TokenLogprobs([byte], [-1.0], 1)])
    sample = take(state).outputs[0]
    assert (sample.text, sample.token_ids) == ("abc", [*b"abc"])
    assert [list(position) for position in sample.logprobs or []] == [[97], [98], [99]]
    assert sample.cumulative_logprob == -3.0
    assert state.take_output() is None


def test_cumulative_outputs_carry_everything_so_far(front: Front) -> None:
    state = front.open(output_kind=OutputKind.CUMULATIVE)
    texts = []
    for byte in b"abc":
        front.feed([byte])
        texts.append(take(state).outputs[0].text)
    assert texts == ["a", "ab", "abc"]
    assert take_nothing(state)


def take_nothing(state: RequestState) -> bool:
    return state.take_output() is None


def test_final_only_says_nothing_before_the_end(front: Front) -> None:
    state = front.open(output_kind=OutputKind.FINAL_ONLY)
    front.feed(b"ab")
    assert take_nothing(state)
    front.feed(b"c", finish_reason=FinishReason.LENGTH)
    assert take(state).outputs[0].text == "abc"


@pytest.mark.promise("STREAM-2")
@pytest.mark.parametrize("cut", range(1, 5))
def test_a_character_is_never_split(front: Front, cut: int) -> None:
    state = front.open()
    data = "€é".encode()
    front.feed(data[:cut])
    texts = [take(state).outputs[0].text]
    front.feed(data[cut:], finish_reason=FinishReason.LENGTH)
    texts.append(take(state).outputs[0].text)
    assert "".join(texts) == "€é"
    assert "\ufffd" not in texts[0]


def test_half_a_character_at_the_end_becomes_a_replacement_character(front: Front) -> None:
    state = front.open()
    front.feed("é".encode()[:1], finish_reason=FinishReason.LENGTH)
    assert take(state).outputs[0].text == "\ufffd"


@pytest.mark.promise("SAMP-3", "STREAM-2")
@pytest.mark.parametrize("cut", range(1, 8))
def test_a_stop_string_ends_the_request_wherever_the_stream_is_cut(front: Front, cut: int) -> None:
    state = front.open(stop=["STOP"])
    text = ""
    for part in (b"xxSTOPyy"[:cut], b"xxSTOPyy"[cut:]):
        front.feed(part)
        output = state.take_output()
        text += output.outputs[0].text if output else ""
        assert "S" not in text
    assert text == "xx"
    assert output is not None or cut >= 6
    assert front.aborted == ["r"]
    assert front.outputs.num_requests == 0


def test_a_stop_string_is_the_stop_reason_and_the_tokens_after_it_are_dropped(front: Front) -> None:
    state = front.open(stop=["b", "zz"], logprobs=0)
    front.feed(b"abcd", logprobs=[TokenLogprobs([byte], [-1.0], 1) for byte in b"abcd"])
    output = take(state)
    sample = output.outputs[0]
    assert (sample.text, sample.token_ids, sample.finish_reason, sample.stop_reason) == ("a", [97, 98], "stop", "b")
    assert sample.logprobs is not None
    assert len(sample.logprobs) == 2
    assert output.finished
    front.feed(b"late")
    assert take_nothing(state)


def test_a_stop_string_is_kept_on_request(front: Front) -> None:
    state = front.open(stop=["bc"], include_stop_str_in_output=True)
    front.feed(b"abcd")
    assert take(state).outputs[0].text == "abc"


def test_a_stop_string_completed_by_the_last_token_beats_length_and_needs_no_abort(front: Front) -> None:
    state = front.open(stop=["b"])
    front.feed(b"ab", finish_reason=FinishReason.LENGTH)
    sample = take(state).outputs[0]
    assert (sample.finish_reason, sample.stop_reason) == ("stop", "b")
    assert front.aborted == []


def test_the_beginning_of_a_stop_string_is_shown_once_the_request_ends_without_it(front: Front) -> None:
    state = front.open(stop=["STOP"])
    front.feed(b"xST")
    assert take(state).outputs[0].text == "x"
    front.feed(b"", finish_reason=FinishReason.LENGTH)
    assert take(state).outputs[0].text == "ST"


def test_a_stop_string_does_not_count_before_min_tokens(front: Front) -> None:
    state = front.open(stop=["a"], min_tokens=3)
    front.feed(b"aba")
    sample = take(state).outputs[0]
    assert (sample.text, sample.finish_reason, len(sample.token_ids)) == ("ab", "stop", 3)


@pytest.mark.parametrize(("is_kept", "text"), [(False, "a"), (True, "ab")])
def test_a_stop_token_is_reported_and_shown_only_on_request(front: Front, is_kept: bool, text: str) -> None:
    state = front.open(stop_token_ids=[98], include_stop_str_in_output=is_kept)
    front.feed(b"ab", finish_reason=FinishReason.STOP, stop_reason=98)
    sample = take(state).outputs[0]
    assert (sample.text, sample.token_ids, sample.stop_reason) == (text, [97, 98], 98)


def test_end_of_text_has_no_stop_reason(front: Front) -> None:
    state = front.open()
    front.feed([97, FakeTokenizer.EOS], finish_reason=FinishReason.STOP)
    sample = take(state).outputs[0]
    assert (sample.text, sample.finish_reason, sample.stop_reason) == ("a", "stop", None)


def test_without_detokenizing_there_are_tokens_and_no_text(front: Front) -> None:
    state = front.open(detokenize=False, logprobs=0)
    front.feed(b"a", logprobs=[TokenLogprobs([97], [-1.0], 1)], finish_reason=FinishReason.LENGTH)
    sample = take(state).outputs[0]
    assert (sample.text, sample.token_ids) == ("", [97])
    assert sample.logprobs == [{97: Logprob(-1.0, 1, None)}]


@pytest.mark.promise("SAMP-4")
def test_log_probabilities_list_the_chosen_token_first_with_ranks_and_texts(front: Front) -> None:
    state = front.open(logprobs=2)
    entries = [TokenLogprobs([99, 97, 98], [-3.0, -0.5, -1.0], 5), TokenLogprobs([97, 97, 98], [-0.5, -0.5, -1.0], 1)]
    front.feed([99, 97], logprobs=entries)
    sample = take(state).outputs[0]
    assert sample.logprobs is not None
    assert list(sample.logprobs[0].items()) == [
        (99, Logprob(-3.0, 5, "c")),
        (97, Logprob(-0.5, 1, "a")),
        (98, Logprob(-1.0, 2, "b")),
    ]
    assert list(sample.logprobs[1].items()) == [(97, Logprob(-0.5, 1, "a")), (98, Logprob(-1.0, 2, "b"))]
    assert sample.cumulative_logprob == -3.5


def test_samples_merge_into_one_output_ordered_by_index(front: Front) -> None:
    state = front.open(n=2, output_kind=OutputKind.CUMULATIVE)
    front.feed(b"b", "r/1")
    front.feed(b"a", "r/0", finish_reason=FinishReason.LENGTH)
    output = take(state)
    assert [(s.index, s.text, s.finish_reason) for s in output.outputs] == [(0, "a", "length"), (1, "b", None)]
    assert not output.finished
    front.feed(b"c", "r/1", finish_reason=FinishReason.LENGTH)
    output = take(state)
    assert output.finished
    assert [s.text for s in output.outputs] == ["a", "bc"]


def test_deltas_of_several_samples_carry_only_those_with_news(front: Front) -> None:
    state = front.open(n=2)
    front.feed(b"a", "r/0")
    assert [s.index for s in take(state).outputs] == [0]
    front.feed(b"b", "r/1", finish_reason=FinishReason.LENGTH)
    front.feed(b"c", "r/0", finish_reason=FinishReason.LENGTH)
    output = take(state)
    assert [(s.index, s.text) for s in output.outputs] == [(0, "c"), (1, "b")]
    assert output.finished


def test_abort_ends_a_request_once_and_releases_text_held_back(front: Front) -> None:
    state = front.open(stop=["STOP"])
    front.feed(b"xS")
    step = front.outputs.abort(["r", "unknown"])
    assert step.abort_ids == [front.core_id("r")]
    output = take(state)
    assert (output.outputs[0].text, output.outputs[0].finish_reason, output.finished) == ("xS", "abort", True)
    assert front.outputs.abort(["r"]).abort_ids == []
    front.feed(b"", finish_reason=FinishReason.ABORT)
    assert take_nothing(state)


def test_late_news_of_an_aborted_request_is_not_taken_for_that_of_a_new_one_with_its_id(front: Front) -> None:
    front.open()
    old_id = front.core_id("r")
    front.outputs.abort(["r"])
    state = front.open()
    late = [EngineCoreOutput(old_id, [97]), EngineCoreOutput(old_id, [], finish_reason=FinishReason.ABORT)]
    front.outputs.process(EngineCoreOutputs(late))
    assert take_nothing(state)
    assert not state.is_finished


def test_abort_leaves_finished_samples_as_they_are(front: Front) -> None:
    state = front.open(n=2)
    front.feed(b"a", "r/0", finish_reason=FinishReason.LENGTH)
    assert front.outputs.abort(["r"]).abort_ids == [front.core_id("r/1")]
    assert [s.finish_reason for s in take(state).outputs] == ["length", "abort"]


@pytest.mark.promise("ENG-7")
def test_an_error_of_one_sample_ends_its_request_and_no_other(front: Front) -> None:
    state, other = front.open("bad", n=2), front.open("good")
    front.feed(b"", "bad/1", finish_reason=FinishReason.ERROR, error="NaN")
    assert isinstance(state.error, GenerationError)
    assert str(state.error) == "NaN"
    assert state.is_finished
    assert front.aborted == ["bad/0", "bad/1"]
    front.feed(b"x", "good")
    assert take(other).outputs[0].text == "x"


@pytest.mark.promise("ENG-7")
def test_text_that_cannot_be_made_fails_one_request_and_no_other(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(token_id: int) -> str:
        raise RuntimeError("no such token")

    state, other = front.open("bad", logprobs=0), front.open("good")
    monkeypatch.setattr(FakeTokenizer, "token_text", staticmethod(broken))
    outputs = [
        EngineCoreOutput(front.core_id("bad"), [97], [TokenLogprobs([97], [0.0], 1)]),
        EngineCoreOutput(front.core_id("good"), [97]),
    ]
    assert front.outputs.process(EngineCoreOutputs(outputs)).abort_ids == [front.core_id("bad")]
    assert isinstance(state.error, GenerationError)
    assert take(other).outputs[0].text == "a"


@pytest.mark.promise("ENG-4")
def test_open_requests_go_on_with_the_tokens_delivered_so_far(front: Front) -> None:
    front.open("a", n=2)
    front.open("b")
    front.open("done")
    front.feed(b"xy", "a/1")
    front.feed(b"z", "done", finish_reason=FinishReason.LENGTH)
    again = front.outputs.open_core_requests()
    assert [(name_of(r.request_id), r.output_token_ids) for r in again] == [("a/0", []), ("a/1", [*b"xy"]), ("b", [])]
    assert all(r.prompt_token_ids == [FakeTokenizer.BOS, *b"hi"] for r in again)


@pytest.mark.promise("ENG-4")
def test_figures_of_the_first_life_survive_a_restart(front: Front) -> None:
    state = front.open()
    front.clock.now_s = 103.0
    front.feed(b"a", num_cached_tokens=2, scheduled_after_s=1.0)
    front.outputs.count_restart()
    front.clock.now_s = 110.0
    front.feed(b"b", num_cached_tokens=3, scheduled_after_s=0.5, finish_reason=FinishReason.LENGTH)
    output = take(state)
    assert output.num_cached_tokens == 2
    metrics = output.metrics
    assert metrics is not None
    assert (metrics.arrival_s, metrics.first_scheduled_s, metrics.first_token_s) == (100.0, 101.0, 103.0)
    assert (metrics.finished_s, metrics.num_restarts) == (110.0, 1)


def test_the_recorder_hears_of_tokens_ends_and_steps(front: Front) -> None:
    front.open()
    front.clock.now_s = 102.0
    front.feed(b"a", stats=SchedulerStats(num_running=1, num_blocks=10, num_free_blocks=4))
    front.clock.now_s = 102.5
    front.feed(b"bc", finish_reason=FinishReason.LENGTH)
    assert front.recorder.events == [
        ("first", 3, 2.0),
        ("step", 1, 0.6),
        ("finished", ("length",), (3,)),
        ("next", 2, 0.5),
    ]


def test_tokens_that_come_with_the_first_one_are_counted(front: Front) -> None:
    front.open()
    front.feed(b"abc")
    assert front.recorder.events == [("first", 3, 0.0), ("next", 2)]


def test_queued_tokens_are_those_of_requests_the_core_has_not_reported(front: Front) -> None:
    front.open("a")
    front.open("b", n=2)
    assert front.outputs.queued_tokens() == 6
    front.feed(b"x", "b/1")
    assert front.outputs.queued_tokens() == 3


def test_consumers_are_told_of_every_change(front: Front) -> None:
    calls: list[str] = []
    front.open(on_change=lambda: calls.append("changed"))
    front.feed(b"a")
    front.outputs.abort(["r"])
    assert calls == ["changed", "changed"]


def test_how_drafts_fared_is_counted_by_step(front: Front) -> None:
    state = front.open()
    front.feed(b"a")
    for num_accepted in (2, 0, 2):
        front.feed(b"abc"[: num_accepted + 1], num_draft_tokens=3, num_accepted_tokens=num_accepted)
    assert take(state).metrics is not None
    assert state.metrics.drafts == {(3, 2): 2, (3, 0): 1}
