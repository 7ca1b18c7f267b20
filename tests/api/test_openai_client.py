"""The official `openai` package, with strict validation of every response, sync and async, streamed and not."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

pytestmark = pytest.mark.promise("API-1")

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


async def test_a_chat_completion_is_answered(server):
    answer = await server.openai().chat.completions.create(model="fake-model", messages=HELLO)

    assert answer.object == "chat.completion"
    assert answer.model == "fake-model"
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint.startswith("vllm_mxext-")
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "hello")
    assert (choice.finish_reason, choice.index) == ("stop", 0)
    assert choice.logprobs is None
    # <|user|> h e l l o </s> <|assistant|> / h e l l o </s>
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (8, 6, 14)
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_cached_prompt_tokens_are_reported(server):
    messages = [{"role": "user", "content": "x" * 40}]

    answer = await server.openai().chat.completions.create(model="fake-model", messages=messages)

    assert answer.usage.prompt_tokens_details.cached_tokens == 32


async def test_a_chat_completion_is_streamed(server):
    stream = await server.openai().chat.completions.create(model="fake-model", messages=HELLO, stream=True)
    chunks: list[ChatCompletionChunk] = [chunk async for chunk in stream]

    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    first = chunks[0].choices[0].delta
    assert (first.role, first.content) == ("assistant", "")
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello"
    assert [chunk.choices[0].finish_reason for chunk in chunks][:-1] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.promise("STREAM-1")
async def test_tokens_are_streamed_one_by_one_as_they_come(server):
    server.engine.hold()
    stream = await server.openai().chat.completions.create(model="fake-model", messages=HELLO, stream=True)
    received = []

    for _ in range(6):
        server.engine.release(1)
        chunk = await anext(stream)
        while chunk.choices[0].delta.role:
            chunk = await anext(stream)
        received.append(chunk.choices[0].delta.content)

    assert received == ["h", "e", "l", "l", "o", None]


@pytest.mark.promise("STREAM-1")
async def test_usage_comes_in_a_last_chunk_when_asked_for(server):
    stream = await server.openai().chat.completions.create(
        model="fake-model", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (8, 6)
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_usage_comes_with_every_chunk_when_asked_for(server):
    server.engine.hold()
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = await server.openai().chat.completions.create(
        model="fake-model", messages=HELLO, stream=True, stream_options=options
    )
    server.engine.release(1)
    first = await anext(stream)
    second = await anext(stream)
    server.engine.release()
    rest = [chunk async for chunk in stream]

    assert [chunk.usage.completion_tokens for chunk in (first, second)] == [1, 1]
    assert rest[-1].usage.completion_tokens == 6
    assert all(chunk.usage.prompt_tokens == 8 for chunk in rest)


async def test_several_samples_have_their_own_choices(server):
    answer = await server.openai().chat.completions.create(model="fake-model", messages=HELLO, n=3, temperature=0.8)

    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.prompt_tokens == 8
    assert answer.usage.completion_tokens == 18


async def test_each_streamed_sample_begins_with_its_role(server):
    stream = await server.openai().chat.completions.create(
        model="fake-model", messages=HELLO, n=2, temperature=0.8, stream=True
    )
    roles: dict[int, list[str | None]] = {}
    texts: dict[int, str] = {}
    async for chunk in stream:
        for choice in chunk.choices:
            roles.setdefault(choice.index, []).append(choice.delta.role)
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")

    assert texts == {0: "hello", 1: "hello"}
    assert all(seen[0] == "assistant" and not any(seen[1:]) for seen in roles.values())


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_chat_log_probabilities_have_tokens_bytes_and_candidates(server, is_streamed):
    request: Any = {
        "model": "fake-model",
        "messages": [{"role": "user", "content": "hé"}],
        "logprobs": True,
        "top_logprobs": 2,
    }
    client = server.openai()
    if is_streamed:
        stream = await client.chat.completions.create(**request, stream=True)
        parts = [chunk.choices[0].logprobs async for chunk in stream]
        entries = [entry for part in parts if part for entry in part.content]
    else:
        answer = await client.chat.completions.create(**request)
        entries = answer.choices[0].logprobs.content

    assert [entry.bytes for entry in entries] == [[ord("h")], [0xC3], [0xA9], list(b"</s>")]
    assert [entry.token for entry in entries] == ["h", "\ufffd", "\ufffd", "</s>"]
    assert all(entry.logprob == -0.5 for entry in entries)
    assert [top.token for top in entries[0].top_logprobs] == ["h", "i"]


async def test_logprobs_without_candidates_lists_none(server):
    answer = await server.openai().chat.completions.create(model="fake-model", messages=HELLO, logprobs=True)

    assert all(entry.top_logprobs == [] for entry in answer.choices[0].logprobs.content)


async def test_tokens_can_be_written_as_ids(server):
    answer = await server.openai().chat.completions.create(
        model="fake-model", messages=HELLO, logprobs=True, extra_body={"return_tokens_as_token_ids": True}
    )

    assert answer.choices[0].logprobs.content[0].token == f"token_id:{ord('h')}"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_token_ids_are_returned_when_asked_for(server, is_streamed):
    client = server.openai()
    options: Any = {"model": "fake-model", "messages": HELLO, "extra_body": {"return_token_ids": True}}
    if is_streamed:
        stream = await client.chat.completions.create(**options, stream=True)
        chunks = [chunk async for chunk in stream]
        prompt_ids = chunks[0].prompt_token_ids
        ids = [token for chunk in chunks[1:] for token in chunk.choices[0].token_ids]
    else:
        answer = await client.chat.completions.create(**options)
        prompt_ids, ids = answer.prompt_token_ids, answer.choices[0].token_ids

    assert ids == [*b"hello", 257]
    assert prompt_ids == [259, *b"hello", 257, 260]


async def test_the_matched_stop_string_is_reported_and_cut_off(server):
    answer = await server.openai().chat.completions.create(model="fake-model", messages=HELLO, stop=["lo", "zz"])

    assert answer.choices[0].message.content == "hel"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == "lo"


async def test_max_completion_tokens_ends_with_length(server):
    answer = await server.openai().chat.completions.create(
        model="fake-model", messages=HELLO, max_completion_tokens=2, max_tokens=5
    )

    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("he", "length")


async def test_a_message_can_be_continued_and_echoed(server):
    messages = [*HELLO, {"role": "assistant", "content": "wor"}]
    answer = await server.openai().chat.completions.create(
        model="fake-model",
        messages=messages,
        extra_body={"continue_final_message": True, "add_generation_prompt": False, "echo": True},
    )

    assert answer.choices[0].message.content == "wor" + "hellowor"
    assert server.engine.requests[0].prompt.text == "<|user|>hello</s><|assistant|>wor"


async def test_content_parts_and_developer_messages_become_text(server):
    messages: list[Any] = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    await server.openai().chat.completions.create(model="fake-model", messages=messages)

    assert server.engine.requests[0].prompt.text == "<|system|>be brief</s><|user|>a\nb</s><|assistant|>"


@pytest.mark.promise("API-2")
@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([97, 98], ["ab"]),
        ([[97, 98], [99]], ["ab", "c"]),
    ],
    ids=["text", "texts", "ids", "lists of ids"],
)
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_every_form_of_prompt_is_completed(server, prompt, texts, is_streamed):
    client = server.openai(is_strict=not is_streamed)
    if is_streamed:
        received = dict.fromkeys(range(len(texts)), "")
        async for chunk in await client.completions.create(model="fake-model", prompt=prompt, stream=True):
            for choice in chunk.choices:
                received[choice.index] += choice.text
        assert [received[index] for index in range(len(texts))] == texts
    else:
        answer = await client.completions.create(model="fake-model", prompt=prompt)
        assert [choice.text for choice in answer.choices] == texts
        assert answer.object == "text_completion"
        assert {choice.finish_reason for choice in answer.choices} == {"stop"}


async def test_samples_of_several_prompts_are_numbered_by_prompt_then_sample(server):
    answer = await server.openai().completions.create(model="fake-model", prompt=["ab", "c"], n=2, temperature=1)

    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "ab"), (1, "ab"), (2, "c"), (3, "c")]
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == 10


async def test_a_completion_has_sixteen_tokens_unless_asked_otherwise(server):
    answer = await server.openai().completions.create(model="fake-model", prompt="x" * 40)

    assert answer.choices[0].text == "x" * 16
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_completion_can_echo_its_prompt_once(server, is_streamed):
    client = server.openai(is_strict=not is_streamed)
    if is_streamed:
        stream = await client.completions.create(model="fake-model", prompt=[97, 98], echo=True, stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
    else:
        text = (await client.completions.create(model="fake-model", prompt=[97, 98], echo=True)).choices[0].text

    assert text == "abab"


async def test_completion_log_probabilities_follow_the_text(server):
    answer = await server.openai().completions.create(model="fake-model", prompt="abc", logprobs=2, max_tokens=3)

    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens == ["a", "b", "c"]
    assert logprobs.token_logprobs == [-0.5] * 3
    assert logprobs.text_offset == [0, 1, 2]
    assert logprobs.top_logprobs[0] == {"a": -0.5, "b": -2.5}


async def test_streamed_offsets_go_on_where_the_last_chunk_ended(server):
    server.engine.hold()
    stream = await server.openai(is_strict=False).completions.create(
        model="fake-model", prompt="abc", logprobs=1, max_tokens=3, stream=True
    )
    offsets = []
    for _ in range(3):
        server.engine.release(1)
        offsets += (await anext(stream)).choices[0].logprobs.text_offset

    assert offsets == [0, 1, 2]


@pytest.mark.promise("API-3")
async def test_models_are_listed_and_retrieved_by_names_with_slashes(server):
    client = server.openai()

    assert [model.id async for model in client.models.list()] == ["fake-model", "org/fake-model"]
    model = await client.models.retrieve("org/fake-model")
    assert (model.id, model.object, model.owned_by, model.max_model_len) == (
        "org/fake-model", "model", "vllm_mxext", 4096,
    )  # fmt: skip


async def test_errors_arrive_as_the_package_s_exceptions(server):
    client = server.openai()
    with pytest.raises(openai.NotFoundError, match="The model `nope` does not exist"):
        await client.chat.completions.create(model="nope", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="fake-model", messages=HELLO, temperature=3)
    assert caught.value.param == "temperature"
    assert caught.value.type == "BadRequestError"


async def test_the_synchronous_client_works_streamed_and_not(server):
    def talk() -> tuple[str, str]:
        with server.openai_sync() as client:
            answer = client.chat.completions.create(model="fake-model", messages=HELLO)
            with client.chat.completions.create(model="fake-model", messages=HELLO, stream=True) as stream:
                text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return answer.choices[0].message.content or "", text

    assert await asyncio.to_thread(talk) == ("hello", "hello")


async def test_many_requests_are_served_at_once(server):
    client = server.openai()
    server.engine.hold()
    asking = [asyncio.create_task(client.completions.create(model="fake-model", prompt=f"{i:02d}")) for i in range(32)]
    await server.engine.wait_for(lambda: server.engine.num_open == 32)
    server.engine.release()

    answers = await asyncio.gather(*asking)

    assert [answer.choices[0].text for answer in answers] == [f"{i:02d}" for i in range(32)]


async def test_the_model_s_default_sampling_fills_open_fields(serve):
    from vllm_mxext.engine.backends.fake import FakeEngineClient

    server = await serve(FakeEngineClient(default_sampling={"temperature": 0.3, "top_p": 0.7, "top_k": 5}))

    await server.openai().chat.completions.create(model="fake-model", messages=HELLO, top_p=0.9)

    params = server.engine.requests[0].params
    assert (params.temperature, params.top_p, params.top_k) == (0.3, 0.9, 5)
