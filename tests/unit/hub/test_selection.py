"""Which profile is chosen: one test per rule, the filters, and what is said when nothing can run."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.hub.machines import GIB, gpu, model, on_cpu, on_gpu, server
from vllm_mxext.errors import ConfigError, HubCause, NoCompatibleProfileError
from vllm_mxext.hub.explain import as_dict, explain, table
from vllm_mxext.hub.hardware import Hardware
from vllm_mxext.hub.judgement import Selection
from vllm_mxext.hub.manifest.model import Goal, Profile, Tags
from vllm_mxext.hub.selection import RULES, Question, find_profile, rank, select

H100S = server(256 * GIB, *[gpu()] * 4, engines=("native", "vllm", "tensorrt_llm"))


def choose(*profiles: Profile, hardware: Hardware = H100S, goal: Goal = "latency", **filters: Any) -> Selection:
    return select(model(*profiles), hardware, Question(goal, "test", **filters))


def order(*profiles: Profile, hardware: Hardware = H100S, goal: Goal = "latency") -> list[str]:
    """Names of those that can run, the best first."""
    rankings = choose(*profiles, hardware=hardware, goal=goal).rankings
    return [ranking.judgement.profile.name for ranking in rankings if ranking.place]


def trt(name: str, **tags: Any) -> Profile:
    profile = on_gpu(name, **tags)
    return replace(profile, tags=replace(profile.tags, llm_engine="tensorrt_llm"))


@pytest.mark.promise("HUB-SEL-1")
def test_a_gpu_comes_before_the_processor() -> None:
    assert order(on_cpu("a"), on_gpu("b")) == ["b", "a"]


@pytest.mark.promise("HUB-SEL-1")
def test_a_gpu_with_a_tiny_context_comes_after_a_processor_with_all_of_it() -> None:
    small = server(64 * GIB, gpu(22 * GIB, 18 * GIB, name="NVIDIA L4", arch="sm_89"))
    assert order(on_gpu("gpu"), on_cpu("cpu"), hardware=small) == ["cpu", "gpu"]


@pytest.mark.promise("HUB-SEL-1")
def test_fallbacks_come_last_unless_memory_counts() -> None:
    half = on_cpu("half", tags=Tags(precision="int8"), engine_args={"quantization": "int8"}, is_fallback=True)
    assert order(half, on_cpu("z")) == ["z", "half"]
    assert order(half, on_cpu("z"), goal="memory") == ["half", "z"]


@pytest.mark.promise("HUB-SEL-1")
def test_most_of_the_context_is_as_good_as_all_but_half_is_not() -> None:
    fp8 = on_gpu("fp8", precision="fp8")
    nearly, half = (server(64 * GIB, gpu(size * GIB, name="card")) for size in (24, 22))
    assert order(on_gpu("bf16"), fp8, hardware=nearly) == ["bf16", "fp8"]
    assert order(on_gpu("bf16"), fp8, hardware=half) == ["fp8", "bf16"]


@pytest.mark.promise("HUB-SEL-1")
def test_the_goal_chooses_among_profiles_made_for_it() -> None:
    profiles = (on_gpu("b"), on_gpu("l", profile="latency"), on_gpu("t", profile="throughput"))
    assert order(*profiles, goal="latency") == ["l", "b", "t"]
    assert order(*profiles, goal="throughput") == ["t", "b", "l"]


@pytest.mark.promise("HUB-SEL-1")
def test_exact_weights_come_before_lossy_ones_unless_memory_counts() -> None:
    profiles = [on_gpu(name, precision=name) for name in ("awq", "fp8", "bf16")]
    assert order(*profiles) == ["bf16", "fp8", "awq"]
    assert order(*profiles, goal="memory") == ["awq", "fp8", "bf16"]


@pytest.mark.promise("HUB-SEL-1")
def test_more_devices_are_for_latency_fewer_for_throughput() -> None:
    profiles = [on_gpu(f"tp{count}", tp=count) for count in (1, 2, 4, 8)]
    assert order(*profiles) == ["tp4", "tp2", "tp1"]
    assert order(*profiles, goal="throughput") == ["tp1", "tp2", "tp4"]


@pytest.mark.promise("HUB-SEL-1")
def test_a_profile_for_exactly_this_device_comes_before_others() -> None:
    profiles = (
        on_gpu("a-other", gpu="A100"),
        on_gpu("b-any"),
        on_gpu("c-arch", needs={"arch": ("sm_90",)}),
        on_gpu("d-name", gpu="H100"),
        on_gpu("e-id", needs={"ids": ("10de:2330",)}),
    )
    assert order(*profiles) == ["e-id", "d-name", "c-arch", "b-any", "a-other"]


@pytest.mark.promise("HUB-SEL-1")
def test_what_is_equal_goes_by_engine_and_then_by_name() -> None:
    assert order(on_gpu("a"), trt("b"), on_gpu("c")) == ["b", "a", "c"]


@pytest.mark.promise("HUB-SEL-2")
def test_a_profile_is_asked_for_by_name_alias_id_or_the_beginning_of_an_id() -> None:
    cpu = on_cpu("cpu", aliases=("slow",))
    for text in ("cpu", "slow", cpu.id, cpu.id[:4], cpu.id[:12].upper()):
        selection = choose(cpu, on_gpu(), profile=text)
        assert selection.chosen is not None
        assert selection.chosen.profile is cpu
        assert selection.rankings[0].why == "Chosen: of those that were asked for it is the only one that can run."
        assert selection.rankings[1].why == "The profile cpu was asked for."
    assert choose(cpu, on_gpu(), profile="default").rankings[0].judgement.profile.name == "gpu"


@pytest.mark.promise("HUB-SEL-2")
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("cqu", "org/model has no profile 'cqu'; did you mean cpu?"),
        ("xyz", "org/model has no profile 'xyz'. Known: cpu, gpu."),
        ("ab1", "has no profile 'ab1'"),
    ],
)
def test_an_unknown_profile_is_refused_with_what_there_is(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose(on_cpu(), on_gpu(), profile=text)
    assert complaint in str(caught.value)


@pytest.mark.promise("HUB-SEL-2")
def test_a_beginning_that_fits_several_ids_lists_them() -> None:
    by_start: dict[str, Profile] = {}
    for number in range(10_000):
        profile = on_cpu(f"p{number}", engine_args={"seed": number})
        other = by_start.setdefault(profile.id[:4], profile)
        if other is not profile:
            break
    with pytest.raises(
        ConfigError, match=rf"Several profiles .* begin with {profile.id[:4]}: .*{other.name}.*{profile.name}"
    ):
        find_profile(model(other, profile), profile.id[:4])


@pytest.mark.promise("HUB-SEL-2")
def test_only_profiles_with_the_asked_number_of_devices_are_considered() -> None:
    selection = choose(on_gpu("one"), on_gpu("two", tp=2), tensor_parallel=1)
    assert [ranking.place for ranking in selection.rankings] == [1, None]
    assert selection.rankings[1].why == "A tensor-parallel size of 1 was asked for, and it has 2."
    with pytest.raises(NoCompatibleProfileError, match="size of 16 was asked for, and it has 1"):
        choose(on_gpu("one"), tensor_parallel=16)


@pytest.mark.promise("HUB-SEL-3")
def test_when_nothing_can_run_every_reason_is_said() -> None:
    with pytest.raises(NoCompatibleProfileError) as caught:
        choose(on_gpu("one", tp=8), on_gpu("two", needs={"vendor": "amd"}))
    text = str(caught.value)
    assert text.startswith("No profile of org/model can run on the machine. ")
    assert "one: It needs 8 equal NVIDIA GPUs" in text
    assert "two: It needs an AMD GPU" in text
    assert caught.value.cause is HubCause.NO_PROFILE
    assert rank(model(on_gpu(tp=8)), H100S, Question("latency")).chosen is None


@pytest.mark.promise("HUB-SEL-3")
def test_when_the_asked_profile_cannot_run_it_is_said_which_would() -> None:
    with pytest.raises(NoCompatibleProfileError) as caught:
        choose(on_gpu("many", tp=8), on_gpu("one"), profile="many")
    assert str(caught.value).startswith(
        "The profile many of org/model cannot run on the machine. many: It needs 8 equal"
    )
    assert str(caught.value).endswith("The profile one would run instead.")


@pytest.mark.promise("HUB-SEL-4")
def test_an_explanation_has_every_rule_and_what_became_of_every_profile() -> None:
    selection = choose(on_gpu("one"), on_gpu("two", tp=2), on_gpu("many", tp=8), on_cpu())
    text = explain(selection)
    for rule in RULES:
        assert f"{rule.name}: {rule.sentence}" in text
    for expected in (
        "org/model, goal latency (test): two",
        "Chosen before one by rule devices.",
        "Lost to two by rule devices: For latency, more devices",
        "Lost to two by rule device: Profiles on a GPU come before",
        "It needs 8 equal NVIDIA GPUs",
    ):
        assert expected in text


@pytest.mark.promise("HUB-SEL-4")
def test_a_table_has_one_line_per_profile_the_chosen_one_marked() -> None:
    selection = choose(on_gpu("one"), on_gpu("many", tp=8), on_cpu())
    header, first, *others = table(selection).splitlines()
    assert header.split() == ["profile", "id", "engine", "precision", "tp", "state", "memory", "why"]
    assert first.startswith("*  one")
    assert "of 80.00 GiB" in first
    assert on_gpu("one").id[:12] in first
    assert [line.split()[0] for line in others] == ["cpu", "many"]


@pytest.mark.promise("HUB-SEL-4")
def test_a_selection_can_be_sent_as_json() -> None:
    values = json.loads(json.dumps(as_dict(choose(on_gpu("one"), on_gpu("many", tp=8)))))
    assert values["chosen"]["name"] == "one"
    assert [profile["place"] for profile in values["profiles"]] == [1, None]
    assert values["profiles"][0]["estimate"]["device_total"] > 16 * 10**9
    assert len(values["rules"]) == len(RULES)
