"""What holds of every machine and every model: order does not matter, and more memory is never worse."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.hub.machines import GIB, QWEN_8B, QWEN_SMALL, gpu, model, on_cpu, on_gpu, server
from vllm_mxext.hub.estimate import estimate_shape
from vllm_mxext.hub.explain import explain
from vllm_mxext.hub.judgement import State
from vllm_mxext.hub.manifest.model import Goal, Profile, Tags
from vllm_mxext.hub.model_shape import parse_shape
from vllm_mxext.hub.selection import Question, rank
from vllm_mxext.hub.states import judge

GOALS: tuple[Goal, ...] = ("latency", "throughput", "memory")
PROFILES = [
    *(
        on_gpu(f"{precision}-tp{tp}", tp=tp, precision=precision)
        for precision in ("bf16", "fp8", "awq")
        for tp in (1, 2, 4)
    ),
    on_gpu("latency", profile="latency"),
    on_gpu("exact", needs={"ids": ("10de:2330",)}),
    on_cpu(),
    on_cpu("int8", tags=Tags(precision="int8"), engine_args={"quantization": "int8"}, is_fallback=True),
    on_cpu("short", engine_args={"max-model-len": 4096, "max-num-seqs": 2}),
]
sizes = st.integers(1, 200 * 2**10).map(lambda mebibytes: mebibytes * 2**20)
shares = st.integers(0, 100)


@pytest.mark.promise("HUB-SEL-5")
@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.integers(0, 5), st.sampled_from(GOALS), st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_profiles(
    memory: int, device_memory: int, num_devices: int, goal: Goal, random: Random
) -> None:
    machine = server(memory, *[gpu(device_memory)] * num_devices)
    shuffled = list(PROFILES)
    random.shuffle(shuffled)
    texts = {explain(rank(model(*profiles), machine, Question(goal))) for profiles in (PROFILES, shuffled, PROFILES)}
    assert len(texts) == 1


@pytest.mark.promise("HUB-SEL-5")
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PROFILES), sizes, shares, sizes, shares, st.sampled_from([QWEN_8B, QWEN_SMALL]))
def test_more_memory_never_makes_a_state_worse(
    profile: Profile, memory: int, share: int, more: int, more_share: int, config: dict[str, Any]
) -> None:
    available = memory * share // 100
    grown, grown_available = memory + more, min(memory + more, available + more * more_share // 100)
    order = tuple(State)

    def place(total: int, free: int) -> int:
        machine = server(
            max(total, 16 * GIB) if profile.device.kind == "gpu" else total, *[gpu(total, free)] * 4, available=free
        )
        return order.index(judge(model(profile, config=config), profile, machine).state)

    assert place(grown, grown_available) <= place(memory, available)


@pytest.mark.promise("HUB-SEL-5")
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(
        [
            {},
            {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128},
            {"model_type": "gemma2", "sliding_window": 4096},
        ]
    ),
    st.sampled_from(PROFILES[:9]),
    st.integers(1, 200_000),
    st.integers(0, 200_000),
    st.integers(1, 300),
    st.integers(0, 300),
)
def test_an_estimate_grows_with_context_and_requests(
    changes: dict[str, Any], profile: Profile, length: int, more: int, requests: int, more_requests: int
) -> None:
    shape = parse_shape({**QWEN_8B, **changes})
    small = estimate_shape(model(), profile, shape, length, requests)
    large = estimate_shape(model(), profile, shape, length + more, requests + more_requests)
    assert small.kv_cache <= large.kv_cache
    assert small.device_total <= large.device_total


@settings(max_examples=30, deadline=None)
@given(st.integers(16, 40_000), st.integers(0, 900), st.integers(1, 200), st.integers(0, 200))
def test_an_estimate_of_the_native_engine_grows_with_context_and_requests(
    length: int, more: int, requests: int, more_requests: int
) -> None:
    def total(tokens: int, num_seqs: int) -> int:
        profile = replace(PROFILES[-1], engine_args={"max-model-len": tokens, "max-num-seqs": num_seqs})
        estimate = judge(model(profile), profile, server(400 * GIB)).estimate
        assert estimate is not None
        return estimate.device_total - estimate.kv_cache

    assert total(length, requests) <= total(length + more, requests + more_requests)
