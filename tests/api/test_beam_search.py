"""`use_beam_search` over HTTP: which search the engine is asked for, and the shape of the answer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import RunningServer, Serve
from tests.api.refusals import CHAT, PLAIN, refused
from vllm_mxext.beam_search_params import BeamSearchParams
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.requests import BeamSearchRequest

pytestmark = pytest.mark.promise("BEAM-2")


class Watched(FakeEngineClient):
    """Keeps the searches it is asked for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.searches: list[BeamSearchRequest] = []

    async def beam_search(self, request: BeamSearchRequest) -> Any:
        stream = await super().beam_search(request)
        self.searches.append(request)
        return stream


@pytest.fixture
async def watched(serve: Serve) -> RunningServer:
    return await serve(Watched())


def params_of(server: RunningServer) -> BeamSearchParams:
    assert isinstance(server.engine, Watched)
    (search,) = server.engine.searches
    return search.params


async def test_n_is_the_width(watched: RunningServer) -> None:
    body = {**PLAIN, "use_beam_search": True, "n": 3, "length_penalty": 0.5, "early_stopping": "never", "max_tokens": 5}
    response = await watched.http.post("/v1/completions", json=body | {"temperature": 0.0, "top_p": 0.5, "seed": 7})
    assert [choice["index"] for choice in response.json()["choices"]] == [0, 1, 2]
    assert params_of(watched) == BeamSearchParams(3, max_tokens=5, length_penalty=0.5, early_stopping="never", n=3)


async def test_best_of_is_a_width_of_which_n_are_returned(watched: RunningServer) -> None:
    body = {**PLAIN, "use_beam_search": True, "n": 2, "best_of": 4}
    response = await watched.http.post("/v1/completions", json=body)
    assert len(response.json()["choices"]) == 2
    assert (params_of(watched).beam_width, params_of(watched).n) == (4, 2)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_conversation_is_answered_with_log_probabilities(watched: RunningServer, is_stream: bool) -> None:
    fields: dict[str, Any] = {"n": 2, "logprobs": True, "top_logprobs": 2, "extra_body": {"use_beam_search": True}}
    client = watched.openai()
    if is_stream:
        chunks = [
            c async for c in await client.chat.completions.create(**CHAT, model="fake-model", stream=True, **fields)
        ]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == 1)
    else:
        answer = await client.chat.completions.create(**CHAT, model="fake-model", **fields)
        text = answer.choices[1].message.content or ""
        assert len(answer.choices[1].logprobs.content[0].top_logprobs) == 2
    assert "hello" in text
    assert params_of(watched).logprobs == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("presence_penalty", 1), ("repetition_penalty", 1.5), ("stop", ["a"]), ("stop_token_ids", [3]),
        ("min_tokens", 2), ("t_max_predict_ms", 5),
    ],
)  # fmt: skip
async def test_what_a_search_would_ignore_is_refused(watched: RunningServer, field: str, value: Any) -> None:
    error = await refused(watched, "/v1/completions", PLAIN | {"use_beam_search": True, field: value})
    assert error["param"] == field
    assert "use_beam_search" in error["message"]


async def test_a_search_cannot_be_held_to_a_form(watched: RunningServer) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}
    for field, value, param in (
        ("tools", [tool], "tools"),
        ("response_format", {"type": "json_object"}, "response_format"),
    ):
        choice = {"tool_choice": "required"} if field == "tools" else {}
        body = CHAT | choice | {"use_beam_search": True, field: value}
        assert (await refused(watched, "/v1/chat/completions", body))["param"] == param


async def test_a_width_below_n_is_refused(watched: RunningServer) -> None:
    error = await refused(watched, "/v1/completions", PLAIN | {"use_beam_search": True, "n": 3, "best_of": 2})
    assert error["param"] == "n"


@pytest.mark.parametrize("penalty", [-10.5, 1e308])
async def test_a_length_penalty_beyond_all_numbers_is_refused(watched: RunningServer, penalty: float) -> None:
    body = PLAIN | {"use_beam_search": True, "n": 2, "length_penalty": penalty}
    assert (await refused(watched, "/v1/completions", body))["param"] == "length_penalty"


async def test_the_models_sampling_defaults_do_not_concern_a_search(serve: Serve) -> None:
    server = await serve(Watched(default_sampling={"repetition_penalty": 1.3, "temperature": 0.7}))
    response = await server.http.post("/v1/completions", json=PLAIN | {"use_beam_search": True, "n": 2})
    assert response.status_code == 200


async def test_widths_count_against_what_one_request_may_open(serve: Serve) -> None:
    server = await serve(Watched(max_num_seqs=2, max_queued=2))
    body = {"prompt": ["a", "b", "c"], "use_beam_search": True, "n": 2}
    assert (await refused(server, "/v1/completions", body))["param"] == "prompt"
