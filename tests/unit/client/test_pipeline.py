"""What the caller gets when servers fail in every way the fault server knows."""

from __future__ import annotations

import asyncio
import json
from email.utils import formatdate

import pytest

from tests.client.endpoints import assert_idle, chat, closed_port, endpoint, pipeline, text_of
from tests.client.fake_clock import FakeClock
from tests.client.fault_server import (
    WORDS,
    Fault,
    FaultServer,
    Reply,
    Request,
    body,
    completion,
    delta,
    healthy,
    never_answer,
    reset,
    status,
    stream,
)
from vllm_mxext.client.breaker import BreakerConfig, CircuitBreaker
from vllm_mxext.client.call import Call, Timeouts
from vllm_mxext.client.errors import (
    AuthenticationError,
    BadRequestError,
    CircuitOpenError,
    ClientError,
    ConnectionFailedError,
    NotFoundError,
    ProtocolError,
    RateLimitedError,
    ServerError,
    StreamInterruptedError,
    TimeoutExceededError,
)
from vllm_mxext.client.limiter import AdaptiveLimiter, LimiterConfig
from vllm_mxext.client.pipeline import Pipeline, PipelineConfig
from vllm_mxext.client.retry import BudgetConfig, RetryPolicy
from vllm_mxext.client.router import Endpoint

TEXT = "".join(WORDS)
BEGUN = (delta(role="assistant"), delta("The"), delta(" answer"))


@pytest.mark.parametrize(
    "fault",
    [
        reset,
        status(408),
        status(409),
        status(425),
        status(429),
        status(429, retry_after="0"),
        status(429, retry_after_ms="1"),
        status(429, retry_after=formatdate(0, usegmt=True)),
        status(500),
        status(502, kind="text/html"),
        status(503, retry_after="0"),
        status(504),
        status(400, x_should_retry="true"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.promise("CLIENT-1")
async def test_a_fault_that_may_pass_is_tried_again(fault: Fault, is_stream: bool) -> None:
    async with FaultServer([fault, fault, healthy]) as server:
        client = pipeline(server.url)
        if is_stream:
            assert await text_of(client) == TEXT
        else:
            answer = await client.call(chat())
            assert answer.body == completion()
            assert len(answer.attempts) == 3
            assert [attempt.problem == "" for attempt in answer.attempts] == [False, False, True]
        assert len(server.requests) == 3
        assert_idle(client)
        await client.close()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (status(400, "bad `x`"), BadRequestError),
        (status(401), AuthenticationError),
        (status(403), AuthenticationError),
        (status(404), NotFoundError),
        (status(413), BadRequestError),
        (status(422), BadRequestError),
        (status(500, x_should_retry="false"), ServerError),
        (status(501), ServerError),
        (status(429, retry_after="999"), RateLimitedError),
        (status(307, location="http://user:secret@127.0.0.1/x?key=secret"), ProtocolError),
        (body("<html>", "text/html"), ProtocolError),
        (body("just words", "text/plain"), ProtocolError),
        (body('{"cut off'), ProtocolError),
        (body('{"error": {"message": "bad", "code": 400}}'), BadRequestError),
        (body('{"error": {"message": "who?", "type": "authentication_error"}}'), AuthenticationError),
        (body('{"object": "error", "message": "no model", "code": 404}'), NotFoundError),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.promise("CLIENT-1")
async def test_what_would_fail_again_is_not_tried_again(fault: Fault, kind: type[ClientError], is_stream: bool) -> None:
    async with FaultServer([fault]) as server:
        client = pipeline(server.url)
        with pytest.raises(kind) as caught:
            await (text_of(client) if is_stream else client.call(chat()))
        assert len(server.requests) == 1
        assert len(caught.value.attempts) == 1
        assert caught.value.endpoint_id == "e0"
        assert caught.value.request_id == "req-1"
        assert "secret" not in str(caught.value)
        assert_idle(client)
        await client.close()


async def test_an_error_says_status_message_and_attempts() -> None:
    async with FaultServer([status(503, "loading")]) as server:
        client = pipeline(server.url)
        with pytest.raises(ServerError, match=r"answered 503 \(loading\); .* \(3 attempts\)") as caught:
            await client.call(chat())
        assert caught.value.status == 503
        assert [attempt.status for attempt in caught.value.attempts] == [503, 503, 503]
        await client.close()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (stream(delta(role="assistant")), ProtocolError),
        (stream(delta(role="assistant"), end="cut"), ConnectionFailedError),
        (stream(b"data: {\n\n"), ProtocolError),
        (stream(b"data: 7\n\n"), ProtocolError),
        (stream(end="done"), ProtocolError),
        (stream(b"data: " + b"x" * (2**24 + 1)), ProtocolError),
        (stream({"error": {"message": "dead", "code": 500}}, end="done"), ServerError),
        (stream(b'event: error\ndata: {"message": "dead", "code": 503}\n\n', end="done"), ServerError),
        (body(json.dumps(completion())), ProtocolError),
    ],
)
async def test_a_stream_that_fails_before_its_first_token_is_begun_anew_elsewhere(
    fault: Fault, kind: type[ClientError]
) -> None:
    async with FaultServer([fault]) as bad, FaultServer([healthy]) as good:
        lone = pipeline(bad.url)
        with pytest.raises(kind):
            await text_of(lone)
        pair = pipeline(bad.url, good.url)
        pair.endpoints[1].weight = 1e-9
        assert await text_of(pair) == TEXT
        assert_idle(lone)
        assert_idle(pair)
        await lone.close()
        await pair.close()


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (stream(*BEGUN), ProtocolError),
        (stream(*BEGUN, end="cut"), ConnectionFailedError),
        (stream(*BEGUN, b"data: {]\n\n"), ProtocolError),
        (
            stream(b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in BEGUN) + b"data: ]\n\n"),
            ProtocolError,
        ),
        (stream(*BEGUN, {"error": {"message": "dead", "code": 500}}, end="done"), ServerError),
        (stream(*BEGUN, end="stall"), TimeoutExceededError),
        (stream(*BEGUN, end="keep-alive"), TimeoutExceededError),
    ],
)
@pytest.mark.promise("CLIENT-2")
async def test_a_stream_that_breaks_after_its_first_token_is_not_begun_anew_and_keeps_its_text(
    fault: Fault, cause: type[ClientError]
) -> None:
    async with FaultServer([fault]) as server:
        client = pipeline(server.url, timeouts=Timeouts(idle=0.05 if cause is TimeoutExceededError else 5.0))
        events = client.stream(chat(stream=True))
        assert [await anext(events) for _ in BEGUN] == list(BEGUN)
        with pytest.raises(StreamInterruptedError, match="broke off after 10 characters") as caught:
            await anext(events)
        assert caught.value.text == "The answer"
        assert isinstance(caught.value.__cause__, cause)
        assert caught.value.request_id == "req-1"
        assert len(server.requests) == 1
        assert_idle(client)
        await client.close()


@pytest.mark.parametrize(
    ("faults", "timeouts", "match"),
    [
        ([never_answer], Timeouts(first_token=0.02), "first token limit of 0.02 s"),
        ([stream(end="keep-alive")], Timeouts(first_token=0.05), "first token limit of 0.05 s"),
        ([never_answer], Timeouts(total=0.03), "total limit of 0.03 s"),
        ([stream(*BEGUN, end="stall")], Timeouts(total=0.05), "total limit of 0.05 s"),
    ],
)
@pytest.mark.promise("CLIENT-3")
async def test_a_limit_of_time_names_itself_and_ends_the_request_at_the_server(
    faults: list[Fault], timeouts: Timeouts, match: str
) -> None:
    async with FaultServer(faults) as server:
        client = pipeline(server.url, timeouts=timeouts)
        with pytest.raises((TimeoutExceededError, StreamInterruptedError), match=match):
            await text_of(client)
        await server.until_gone(len(server.requests))
        assert_idle(client)
        await client.close()


async def test_a_refused_connection_is_told_as_such() -> None:
    client = pipeline(closed_port())
    with pytest.raises(ConnectionFailedError, match="no connection") as caught:
        await client.call(chat())
    assert len(caught.value.attempts) == 3
    await client.close()


async def test_what_may_have_had_an_effect_is_not_sent_twice() -> None:
    async with FaultServer([reset, healthy]) as server:
        client = pipeline(server.url)
        with pytest.raises(ConnectionFailedError):
            await client.call(Call("/v1/load_lora_adapter", {}, is_idempotent=False))
        assert len(server.requests) == 1
        await client.close()


async def test_one_bad_endpoint_of_three_is_not_noticed_by_the_caller() -> None:
    async with FaultServer([status(500)]) as bad, FaultServer([healthy]) as good, FaultServer([healthy]) as better:
        client = pipeline(bad.url, good.url, better.url)
        answers = [await client.call(chat()) for _ in range(40)]
        assert all(answer.body == completion() for answer in answers)
        assert client.endpoints[0].breaker.state == "OPEN"
        assert len(bad.requests) == 5
        await client.close()


async def test_a_wrong_request_says_nothing_against_the_server() -> None:
    async with FaultServer([status(400)] * 20 + [healthy]) as server:
        client = pipeline(server.url)
        for _ in range(20):
            with pytest.raises(BadRequestError):
                await client.call(chat())
        assert client.endpoints[0].breaker.state == "CLOSED"
        assert (await client.call(chat())).status == 200
        await client.close()


async def test_an_outage_opens_the_circuit_and_its_end_closes_it() -> None:
    async with FaultServer([status(500)] * 5 + [healthy]) as server:
        breaker = BreakerConfig(reset_timeout_s=0.0, successes_to_close=1, last_probe_interval_s=0.0)
        client = Pipeline([endpoint(server.url, breaker=breaker)], pipeline().config)
        with pytest.raises(ServerError):
            await client.call(chat())
        assert (await client.call(chat())).status == 200
        assert client.endpoints[0].breaker.state == "CLOSED"
        await client.close()


async def test_an_open_circuit_refuses_at_once_and_says_until_when() -> None:
    client = pipeline(closed_port())
    client.endpoints[0].breaker.state = "OPEN"
    with pytest.raises(CircuitOpenError) as caught:
        await client.call(chat())
    assert caught.value.retry_after_s > 0
    await client.close()


async def test_a_server_with_too_much_to_do_gets_less_at_once_and_is_not_given_up() -> None:
    async with FaultServer([status(429)] * 8 + [healthy]) as server:
        client = pipeline(server.url, retry=RetryPolicy(max_retries=0))
        results = await asyncio.gather(*(client.call(chat()) for _ in range(8)), return_exceptions=True)
        assert all(isinstance(result, RateLimitedError) for result in results)
        assert client.endpoints[0].limiter.limit == 5
        assert client.endpoints[0].breaker.state == "CLOSED"
        await client.close()


@pytest.mark.promise("CLIENT-13")
async def test_what_a_server_asks_to_wait_holds_for_all_calls() -> None:
    clock = FakeClock()
    async with FaultServer([status(429, retry_after="20"), healthy]) as server:
        usual = PipelineConfig()
        paused = Endpoint(
            id="e0",
            url=server.url,
            breaker=CircuitBreaker(usual.breaker, clock),
            limiter=AdaptiveLimiter(usual.limiter, clock),
        )
        client = Pipeline([paused], usual, clock)
        with pytest.raises(RateLimitedError):
            await client.call(chat(), RetryPolicy(max_retries=0))
        waiting = [asyncio.ensure_future(client.call(chat())) for _ in range(5)]
        await clock.advance(19.9)
        assert client.num_queued == 5
        assert len(server.requests) == 1
        await clock.advance(2.5)  # up to a tenth longer
        await asyncio.gather(*waiting)
        assert len(server.requests) == 6
        await client.close()


@pytest.mark.promise("CLIENT-13")
async def test_a_call_whose_time_ends_before_the_pause_does_is_not_sent() -> None:
    async with FaultServer([status(429, retry_after="60"), healthy]) as server:
        client = pipeline(server.url, timeouts=Timeouts(total=30.0))
        with pytest.raises(RateLimitedError):
            await client.call(chat())
        with pytest.raises(RateLimitedError, match="more than is left") as caught:
            await client.call(chat())  # at once, and not after half a minute
        assert 30.0 < (caught.value.retry_after_s or 0.0) <= 60.0
        assert len(server.requests) == 1
        await client.close()


@pytest.mark.promise("CLIENT-14")
async def test_a_retry_that_waits_for_another_server_holds_up_nobody() -> None:
    released = asyncio.Event()

    async def when_released(request: Request, reply: Reply) -> None:
        await released.wait()
        await healthy(request, reply)

    async with FaultServer([status(500), healthy]) as failing, FaultServer([when_released]) as busy:
        client = pipeline(failing.url, busy.url)
        client.endpoints[1].limiter.change(LimiterConfig(max_limit=1))
        pinned = asyncio.ensure_future(client.call(chat(endpoint_id="e1")))
        await busy.until_asked(1)
        retried = asyncio.ensure_future(client.call(chat()))  # fails at the first, waits for the second
        while not client.num_queued:  # noqa: ASYNC110 - a queue has no event
            await asyncio.sleep(0.001)
        client.endpoints[0].limiter.change(LimiterConfig(max_limit=1))
        answers = await asyncio.wait_for(asyncio.gather(*(client.call(chat()) for _ in range(3))), 60.0)
        assert [answer.endpoint_id for answer in answers] == ["e0"] * 3
        released.set()
        await asyncio.gather(pinned, retried)
        await client.close()


async def test_a_server_that_refuses_even_one_call_at_a_time_is_given_up() -> None:
    async with FaultServer([status(429)]) as server:
        client = pipeline(server.url, retry=RetryPolicy(max_retries=0))
        for _ in range(10):
            with pytest.raises((RateLimitedError, CircuitOpenError)):
                await client.call(chat())
        assert client.endpoints[0].breaker.state == "OPEN"
        await client.close()


async def test_a_probe_is_judged_by_its_first_token() -> None:
    async with FaultServer([stream(*BEGUN, end="stall"), healthy]) as server:
        client = Pipeline([endpoint(server.url, breaker=BreakerConfig(successes_to_close=1))], pipeline().config)
        client.endpoints[0].breaker.state = "HALF-OPEN"
        events = client.stream(chat(stream=True))
        await anext(events)
        assert client.endpoints[0].breaker.state == "CLOSED"
        assert (await client.call(chat())).status == 200
        await events.aclose()
        assert_idle(client)
        await client.close()


async def test_a_password_in_an_address_is_sent_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with FaultServer([status(404)]) as server:
        client = pipeline(server.url.replace("//", "//me:hidden@") + "/v1")
        with pytest.raises(NotFoundError) as caught:
            await client.call(chat())
        assert server.requests[0].headers["authorization"].startswith("Basic ")
        assert "hidden" not in str(caught.value) + caplog.text
        await client.close()


async def test_retries_of_all_calls_together_are_limited() -> None:
    async with FaultServer([status(500)]) as server:
        client = pipeline(server.url, budget=BudgetConfig(share=0.5, per_second=0.0, reserve=4.0))
        client.endpoints[0] = endpoint(server.url, breaker=BreakerConfig(failure_threshold=1000, min_calls=100))
        for _ in range(20):
            with pytest.raises(ServerError):
                await client.call(chat())
        assert len(server.requests) - 20 <= 4 + 0.5 * 20
        await client.close()
