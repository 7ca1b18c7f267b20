"""The runner against a server with known delays: its figures, its failures, its loads, and its end when interrupted."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.bench_servers.mock_server import Behaviour, MockServer, Served
from tests.client.endpoints import closed_port
from vllm_mxext.bench.serve.address import Address
from vllm_mxext.bench.serve.plan_reading import plan_from_mapping
from vllm_mxext.bench.serve.request import Reply
from vllm_mxext.bench.serve.result import RunResult
from vllm_mxext.bench.serve.runner import Runner
from vllm_mxext.bench.serve.stage_run import Progress, StageRun, StageSpec, Target, _Sent
from vllm_mxext.bench.serve.statistics import run_figures, stage_figures
from vllm_mxext.bench.serve.wire import Wire
from vllm_mxext.errors import ConfigError

FAST = Behaviour(is_precise=False)


def run(behaviour: Behaviour, prompts: int = 0, **sections: dict[str, object]) -> tuple[RunResult, list[Served], float]:
    """Returns the result, what the server served, and the monotonic seconds when the run began."""

    async def measure() -> tuple[RunResult, list[Served], float]:
        async with MockServer(behaviour) as server:
            given = {"prompts": [f"prompt {number}" for number in range(prompts)]} if prompts else {}
            where = {"url": server.url, "model": "m", **sections.pop("server", {})}
            runner = Runner(plan_from_mapping({"server": where, **given, **sections}).checked())
            result = await runner.run()
        return result, server.served, runner.origin_s

    return asyncio.run(measure())


@pytest.mark.promise("PERF-12")
def test_times_lie_where_the_server_s_own_clock_puts_them() -> None:
    behaviour = Behaviour(ttft_s=0.02, gap_s=0.002, role_chunk_s=0.001)
    result, served, origin = run(behaviour, 8, test_params={"max_tokens": 8, "concurrent_requests": 4})
    by_text = {one.body["messages"][0]["content"]: one for one in served}
    ordered = [by_text[f"prompt {number}"] for number in range(8)]
    for record, one in zip(result.records, ordered, strict=True):
        assert record.is_ok
        assert origin + record.sent_s <= one.received_s
        assert len(record.chunk_times_s) == len(one.texts_s) == record.output_tokens == 8
        # Cause before effect: no event is stamped before the server began to send the one before it.
        assert origin + record.chunk_times_s[0] >= one.received_s + behaviour.ttft_s
        assert all(
            origin + stamped >= written for stamped, written in zip(record.chunk_times_s[1:], one.texts_s, strict=False)
        )
        assert record.written_s is not None
        assert record.sent_s <= record.written_s <= record.empty_times_s[0]
        assert record.empty_times_s[0] <= record.chunk_times_s[0]  # a late client stamps both at once
        assert record.ended_s >= record.chunk_times_s[-1]


@pytest.mark.promise("PERF-6")
def test_every_kind_of_failure_is_counted_and_the_run_goes_on() -> None:
    kinds = ["disconnect", "status:503", "cut", "garbage", "error_event", "empty", "html"]
    behaviour = replace(FAST, failures=dict(enumerate(kinds)))
    result, _, _ = run(behaviour, 10, test_params={"max_tokens": 3, "server_metrics": False})
    assert [record.failure for record in result.records] == [
        "disconnected",
        "http_status",
        "disconnected",
        "protocol",
        "server_error",
        "empty",
        "protocol",
        "",
        "",
        "",
    ]
    assert result.records[1].status == 503
    assert "out of memory" in result.records[4].failure_detail


@pytest.mark.promise("PERF-6")
def test_a_request_without_an_answer_is_given_up_in_time() -> None:
    behaviour = replace(FAST, failures={0: "stall"})
    result, _, _ = run(behaviour, 1, test_params={"max_tokens": 3, "timeout": 0.2, "server_metrics": False})
    assert [record.failure for record in result.records] == ["timeout"]


@pytest.mark.promise("PERF-6")
def test_a_server_that_is_not_there_is_a_failure_of_each_request() -> None:
    plan = plan_from_mapping({"server": {"url": closed_port(), "model": "m"}, "prompts": ["a", "b"]})
    result = asyncio.run(Runner(plan).run())
    assert [record.failure for record in result.records] == ["connect", "connect"]


@pytest.mark.promise("PERF-10")
def test_tokens_come_from_usage_although_chunks_have_several() -> None:
    result, _, _ = run(replace(FAST, tokens_per_chunk=4), 2, test_params={"max_tokens": 10})
    for record in result.records:
        assert (len(record.chunk_times_s), record.output_tokens, record.token_source) == (3, 10, "usage")
        assert record.prompt_tokens == 2


@pytest.mark.promise("PERF-10")
def test_tokens_are_counted_by_the_server_s_tokenizer_without_usage() -> None:
    behaviour = replace(FAST, tokens_per_chunk=4, has_usage=False)
    result, _, _ = run(behaviour, 2, test_params={"max_tokens": 10})
    assert [(record.output_tokens, record.token_source) for record in result.records] == [(10, "server")] * 2
    assert "counted by the server's /tokenize" in result.notes[0]


@pytest.mark.promise("PERF-10")
def test_tokens_are_counted_by_a_tokenizer_file_without_usage(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"w": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    result, _, _ = run(replace(FAST, has_usage=False), 1, test_params={"max_tokens": 5, "tokenizer": str(tmp_path)})
    assert (result.records[0].output_tokens, result.records[0].token_source) == (5, "tokenizer")


@pytest.mark.promise("PERF-10")
@pytest.mark.parametrize(
    ("said", "counted"), [(7, 7), (0, None), (-2, None), ("7", None), (True, None), ([7], None), (None, None)]
)
def test_a_number_of_tokens_that_is_none_is_unknown(said: object, counted: int | None) -> None:
    plan = plan_from_mapping({"server": {"url": "http://127.0.0.1:1", "model": "m"}})
    target = Target("A", "m", Wire(Address.parse(plan.server.url)))
    stage = StageRun(plan, target, StageSpec("s", 1, None, None, 1, 0), (), 0, 0.0, 0)
    details = [said]
    usage = {"completion_tokens": said, "prompt_tokens": said, "prompt_tokens_details": details}
    stage._sent.append(_Sent(Reply(texts=["a"], usage=usage), False, None, None, 0))
    (record,) = stage.records()
    assert (record.output_tokens, record.cached_tokens) == (counted, None)
    assert record.prompt_tokens == (0 if said == 0 and said is not False else counted)


def test_a_server_may_say_the_tokens_of_each_chunk() -> None:
    result, _, _ = run(replace(FAST, tokens_per_chunk=4), 1, test_params={"max_tokens": 10, "chunk_tokens": True})
    assert result.records[0].chunk_tokens == (4, 4, 2)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_both_routes_are_measured_streamed_or_not(endpoint: str, stream: bool) -> None:
    result, served, _ = run(FAST, 2, test_params={"max_tokens": 3, "endpoint": endpoint, "stream": stream})
    assert all(record.is_ok and record.output_tokens == 3 for record in result.records)
    assert bool(result.records[0].chunk_times_s) is stream
    assert ("messages" in served[0].body) is (endpoint == "chat")
    assert served[0].body["temperature"] == 0.7


def run_until(behaviour: Behaviour, num_done: int, num_in_flight: int, **sections: dict[str, object]) -> RunResult:
    """Returns the result of a run that is interrupted when so many requests are done and so many others under way."""

    async def measure() -> RunResult:
        async with MockServer(behaviour) as server:
            plan = plan_from_mapping({"server": {"url": server.url, "model": "m"}, **sections})

            def stop(progress: Progress) -> None:
                if (progress.num_done, progress.num_in_flight) == (num_done, num_in_flight):
                    runner.interrupt()

            runner = Runner(plan.checked(), stop)
            return await runner.run()

    return asyncio.run(measure())


@pytest.mark.promise("PERF-5")
def test_measuring_does_not_wait_for_the_end_of_the_warm_up() -> None:
    params: dict[str, object] = {"max_tokens": 2, "concurrent_requests": 3, "warmup_requests": 4}
    result = run_until(replace(FAST, failures={0: "stall"}), 13, 1, test_params=params)
    warm = [record for record in result.records if record.is_warmup]
    measured = result.of_stage(0)
    assert (len(warm), len(measured)) == (4, 10)
    assert [record.failure for record in warm] == ["cancelled", "", "", ""]
    assert warm[-1].sent_s < result.stages[0].measured_s <= measured[0].sent_s
    assert warm[0].ended_s >= max(record.ended_s for record in measured)


@pytest.mark.promise("PERF-9")
def test_requests_with_a_rate_are_sent_when_they_are_due_although_no_answer_has_come() -> None:
    stalled = replace(FAST, failures=dict.fromkeys(range(6), "stall"))
    result = run_until(stalled, 0, 6, workload={"num_prompts": 6}, load={"request_rate": 200.0})
    assert [record.failure for record in result.records] == ["cancelled"] * 6
    assert all(record.send_lag_s is not None and record.send_lag_s >= 0 for record in result.records)


@pytest.mark.promise("PERF-3")
def test_a_server_that_falls_behind_cannot_hide_it_behind_requests_that_were_sent_late() -> None:
    behaviour = Behaviour(ttft_s=0.05, is_precise=False)
    load: dict[str, object] = {"request_rate": 1000.0, "burstiness": "inf", "max_in_flight": 1}
    result, _, _ = run(behaviour, 6, test_params={"max_tokens": 1}, load=load)
    figures = stage_figures(result, 0)
    assert figures.latencies.e2e is not None
    assert figures.from_sending is not None
    assert figures.from_sending.e2e is not None
    last = result.records[-1]
    # It was due 5 ms after the first, and five answers of 50 ms came before it was sent.
    assert last.sent_s - (last.scheduled_s or 0.0) >= 5 * behaviour.ttft_s - 0.005
    assert figures.latencies.e2e.maximum >= 6 * behaviour.ttft_s - 0.005
    assert figures.from_sending.e2e.minimum < figures.latencies.e2e.maximum - 4 * behaviour.ttft_s


def test_requests_in_flight_may_be_limited_with_a_rate() -> None:
    behaviour = Behaviour(ttft_s=0.01, is_precise=False)
    load: dict[str, object] = {"request_rate": 5000.0, "max_in_flight": 2}
    result, _, _ = run(behaviour, 8, test_params={"max_tokens": 1}, load=load)
    figures = stage_figures(result, 0)
    assert figures.num_ok == 8
    assert figures.peak_in_flight <= 2


def test_a_duration_decides_how_many_requests_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count(1)
    clock = SimpleNamespace(monotonic=lambda: next(looks) * 0.01)  # no machine is too slow for it
    for module in ("runner", "stage_run", "wire"):
        monkeypatch.setattr(f"vllm_mxext.bench.serve.{module}.time", clock)
    result, _, _ = run(FAST, 1, test_params={"max_tokens": 2}, load={"duration": 0.5})
    *before, _ = sorted(record.sent_s for record in result.records)  # the last one may leave a moment after its look
    assert result.stages[0].measured_s + 0.5 > max(before)
    assert len(result.records) > 1
    assert "more than once" in result.notes[0]


def test_turns_continue_the_answers_before_them() -> None:
    result, served, _ = run(FAST, 6, test_params={"max_tokens": 2}, workload={"turns": 3})
    assert [(record.conversation, record.turn) for record in result.records] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (1, 2),
    ]
    assert [message["content"] for message in served[2].body["messages"]] == [
        "prompt 0",
        " w w",
        "prompt 1",
        " w w",
        "prompt 2",
    ]


def test_a_trace_is_replayed_at_its_times(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f'{{"timestamp": {at}, "input_length": 7, "output_length": 3}}\n' for at in (5, 5.1, 5.3)))
    result, _, _ = run(FAST, workload={"trace": str(path), "trace_speed": 10})
    due = [record.scheduled_s or 0.0 for record in result.records]
    assert [round(at - due[0], 6) for at in due] == [0, 0.01, 0.03]
    assert all(record.prompt_tokens == 7 and record.output_tokens == 3 for record in result.records)


def test_a_sweep_measures_its_levels_with_enough_requests_for_each() -> None:
    behaviour = Behaviour(ttft_s=0.02, slots=4, is_precise=False)
    load: dict[str, object] = {"sweep": "concurrency", "sweep_levels": [1, 4, 16]}
    result, _, _ = run(behaviour, 8, test_params={"max_tokens": 1}, load=load)
    figures = run_figures(result)
    assert [(figure.stage.level, figure.num_requests) for figure in figures] == [(1, 8), (4, 12), (16, 48)]
    assert all(figure.num_ok == figure.num_requests for figure in figures)


@pytest.mark.promise("PERF-25")
@pytest.mark.parametrize("load", [{}, {"request_rate": 2000.0}, {"request_rate": 600.0, "duration": 0.06}])
def test_every_turn_of_a_comparison_has_the_requests_for_its_load(load: dict[str, object]) -> None:
    async def measure() -> RunResult:
        async with MockServer(FAST) as server:
            where = {"url": server.url, "model": "m", "compare_url": server.url, "compare_rounds": 6}
            params = {"max_tokens": 1, "concurrent_requests": 4}
            return await Runner(plan_from_mapping({"server": where, "test_params": params, "load": load})).run()

    result = asyncio.run(measure())
    assert len(result.stages) == 12
    for index in range(12):
        records = result.of_stage(index)
        assert len(records) >= (1 if load else 4)
        if "duration" in load:  # its part of the duration, not all of it
            assert max(record.scheduled_s or 0.0 for record in records) <= result.stages[index].started_s + 0.01


def test_two_servers_are_measured_in_turns() -> None:
    async def measure() -> RunResult:
        async with MockServer(FAST) as first, MockServer(FAST) as second:
            server = {"url": first.url, "model": "m", "compare_url": second.url, "compare_rounds": 6}
            plan = plan_from_mapping(
                {"server": server, "test_params": {"max_tokens": 2}, "workload": {"num_prompts": 7}}
            )
            result = await Runner(plan.checked()).run()
        texts = [[one.body["messages"][0]["content"] for one in mock.served] for mock in (first, second)]
        assert texts[0] == texts[1]
        assert len(texts[0]) == 7
        return result

    result = asyncio.run(measure())
    assert [stage.server for stage in result.stages] == ["A", "B", "B", "A"] * 3


def test_the_server_s_metrics_are_kept_with_their_times() -> None:
    result, _, _ = run(FAST, 3, test_params={"max_tokens": 2})
    series = 'mock:requests_total{model="m"}'
    assert result.metrics[0].values[series] == 0
    assert result.metrics[-1].values[series] == 3
    assert result.metrics[-1].at_s >= result.records[-1].ended_s


@pytest.mark.promise("PERF-13")
@pytest.mark.parametrize("load", [{}, {"request_rate": 1000.0}, {"sweep": "concurrency"}, {"sweep": "rate"}])
def test_an_interrupted_run_returns_what_had_come(load: dict[str, object]) -> None:
    async def measure() -> RunResult:
        async with MockServer(replace(FAST, failures=dict.fromkeys(range(2, 999), "stall"))) as server:
            plan = plan_from_mapping({"server": {"url": server.url, "model": "m"}, "load": load})
            runner = Runner(plan, lambda progress: runner.interrupt() if progress.num_done == 2 else None)
            return await runner.run()

    result = asyncio.run(measure())
    assert result.is_interrupted
    # Which two the server read first is its own affair: those on new connections may come later than they were sent.
    assert sorted(record.failure for record in result.records)[:3] == ["", "", "cancelled"]
    assert {record.failure for record in result.records} == {"", "cancelled"}
    assert RunResult.from_dict(result.as_dict()).is_interrupted


def test_progress_is_told() -> None:
    seen: list[Progress] = []

    async def measure() -> None:
        async with MockServer(FAST) as server:
            data = {"server": {"url": server.url, "model": "m"}, "test_params": {"max_tokens": 2}}
            await Runner(plan_from_mapping(data), seen.append).run()

    asyncio.run(measure())
    assert (seen[-1].num_done, seen[-1].num_planned, seen[-1].num_chunks, seen[-1].num_in_flight) == (10, 10, 20, 0)


def test_the_key_is_sent_and_kept_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-1")
    result, _, _ = run(FAST, 1, server={"api_key_env": "MY_KEY"})
    assert result.records[0].is_ok
    assert "secret-1" not in result.to_json()


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://a:b", "http://user@h:1", "http://h?x=1"])
def test_wrong_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="http://host:8000"):
        asyncio.run(Runner(plan_from_mapping({"server": {"url": url, "model": "m"}})).run())


@pytest.mark.promise("PERF-13")
def test_a_run_can_be_interrupted_while_its_prompts_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure() -> RunResult:
        async with MockServer(FAST) as server:
            plan = plan_from_mapping({"server": {"url": server.url, "model": "m"}, "workload": {"input_tokens": 9}})
            runner = Runner(plan)

            async def never(*arguments: object) -> None:
                runner.interrupt()
                await asyncio.Event().wait()

            monkeypatch.setattr("vllm_mxext.bench.serve.runner.make_prompts", never)
            return await runner.run()

    result = asyncio.run(measure())
    assert (result.is_interrupted, result.records, result.stages) == (True, (), ())
