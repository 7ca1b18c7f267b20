"""Each state of a profile on a machine, with sentences that carry the numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.hub.machines import GIB, QWEN_8B, QWEN_SMALL, gpu, model, on_cpu, on_gpu, server
from vllm_mxext.config.machine import Memory
from vllm_mxext.config.memory_plan import plan_memory
from vllm_mxext.hub.hardware import Device, Hardware
from vllm_mxext.hub.judgement import State
from vllm_mxext.hub.manifest.model import AdapterEntry, Artifact, DeviceNeeds, FileEntry, HostNeeds, Profile, Tags
from vllm_mxext.hub.native_plan import native_config
from vllm_mxext.hub.states import judge


def state(profile: Profile, hardware: Hardware, **fields: Any) -> State:
    return judge(model(profile, **fields), profile, hardware).state


@pytest.mark.promise("HUB-STATE-1")
def test_a_profile_with_room_is_runnable_and_says_what_takes_how_much() -> None:
    profile = on_gpu()
    found = judge(model(profile), profile, server(64 * GIB, gpu()))
    assert found.state is State.RUNNABLE
    assert found.device_indexes == (0,)
    assert found.estimate is not None
    assert found.estimate.weights / 1e9 == pytest.approx(16.38, 0.01)
    assert found.estimate.kv_cache == 40_960 * 36 * 2 * 8 * 128 * 2
    assert "weights 15.26 GiB, KV cache for 1 x 40,960 tokens 5.62 GiB" in found.reasons[0]
    assert found.suggested == {}


@pytest.mark.promise("HUB-STATE-1")
def test_a_profile_without_room_for_the_whole_context_is_reduced_to_the_largest_that_fits() -> None:
    profile = on_gpu()
    entry, machine = model(profile), server(64 * GIB, gpu(22 * GIB, name="NVIDIA L4", arch="sm_89"))
    found = judge(entry, profile, machine)
    assert found.state is State.REDUCED
    length = found.suggested["max-model-len"]
    assert 1024 <= length < 40_960
    assert f"--max-model-len {length}" in found.reasons[0]
    assert found.share_of_context == length / 40_960
    following = replace(profile, engine_args=found.suggested)
    assert judge(entry, following, machine).state is State.RUNNABLE
    longer = replace(profile, engine_args={"max-model-len": length + 16})
    assert judge(entry, longer, machine).state is State.REDUCED


@pytest.mark.promise("HUB-STATE-1")
def test_a_device_that_others_use_is_busy() -> None:
    profile = on_gpu()
    found = judge(model(profile), profile, server(64 * GIB, gpu(available=3 * GIB)))
    assert found.state is State.BUSY
    assert "3.00 GiB of 80.00 GiB are available" in found.reasons[0]


@pytest.mark.promise("HUB-STATE-1")
def test_a_device_that_is_too_small_is_insufficient() -> None:
    profile = on_gpu()
    found = judge(model(profile), profile, server(64 * GIB, gpu(12 * GIB)))
    assert found.state is State.INSUFFICIENT
    assert "which is 12.00 GiB in all" in found.reasons[0]


@pytest.mark.promise("HUB-STATE-1")
def test_a_device_with_too_little_beside_what_others_keep_says_how_much_may_be_taken() -> None:
    profile = on_gpu()
    found = judge(model(profile), profile, server(64 * GIB, gpu(18 * GIB)))
    assert found.state is State.INSUFFICIENT
    assert "of which it may take 92% of 18.00 GiB." in found.reasons[0]


T4 = gpu(15 * GIB, name="Tesla T4", arch="sm_75")
MI300X = Device("amd", "AMD Instinct MI300X", arch="gfx942", memory_bytes=192 * GIB, memory_available_bytes=192 * GIB)


@pytest.mark.promise("HUB-STATE-1")
@pytest.mark.parametrize(
    ("profile", "machine", "reason"),
    [
        (on_gpu(), server(engines=("native",)), "It needs the engine vllm; the machine can start: native."),
        (on_gpu(), server(), "It needs an NVIDIA GPU, and the machine has no GPU."),
        (on_gpu(tp=2), server(GIB, gpu()), "It needs 2 equal NVIDIA GPUs, and the machine has 1 such: NVIDIA H100"),
        (on_gpu(tp=2), server(GIB, gpu(), T4), "needs 2 equal NVIDIA GPUs"),
        (on_gpu(), server(GIB, MI300X), "It needs an NVIDIA GPU, and the machine has: AMD Instinct MI300X."),
        (on_gpu(needs={"arch": (">=sm_90",)}), server(GIB, T4), "an NVIDIA GPU of at least sm_90"),
        (on_gpu(needs={"ids": ("10de:1eb8", "L40S")}), server(GIB, gpu()), "named 10de:1eb8 or L40S"),
        (on_gpu(), server(GIB, T4), "Its precision bf16 needs sm_80 or later, and the machine has Tesla T4."),
        (on_gpu(tp=2), server(GIB, *[gpu(is_mig=True)] * 2), "slices of a GPU (MIG) cannot work together"),
        (on_gpu(tp=3), server(GIB, *[gpu()] * 3), "32 attention heads cannot be divided among 3 devices"),
        (on_cpu(host=HostNeeds(isa=("avx2", "amx_bf16"))), server(), "It needs the instruction set amx_bf16 of the"),
        (
            Profile("n", tags=Tags(tp=2), device=DeviceNeeds("gpu")),
            server(GIB, gpu(), gpu()),
            "The native engine runs on one device in this version, and the profile wants 2.",
        ),
        (on_cpu(engine_args={"max-model-len": 99_999}), server(), "more than the checkpoint's limit of 40960 tokens"),
        (
            on_cpu(engine_args={"max-modle-len": 9}),
            server(),
            "unknown name 'max_modle_len'; did you mean max_model_len?",
        ),
    ],
)
def test_what_can_never_run_is_incompatible_and_says_why(profile: Profile, machine: Hardware, reason: str) -> None:
    found = judge(model(profile), profile, machine)
    assert found.state is State.INCOMPATIBLE
    assert reason in " ".join(found.reasons)


@pytest.mark.promise("HUB-STATE-1")
def test_the_native_engine_does_not_run_every_architecture() -> None:
    config = {**QWEN_8B, "architectures": ["GptOssForCausalLM"]}
    found = judge(model(config=config), on_cpu(), server())
    assert found.state is State.INCOMPATIBLE
    assert "GptOssForCausalLM is not supported" in found.reasons[0]


def test_all_obstacles_are_listed() -> None:
    profile = on_gpu(tp=5)
    assert len(judge(model(profile), profile, server(engines=("native",))).reasons) == 3


def test_memory_that_a_profile_asks_for_is_nominal() -> None:
    def with_need(size: int) -> Profile:
        return on_gpu(needs={"min_memory": size})

    card = gpu(81_559 * 2**20)
    assert state(with_need(80 * GIB), server(GIB, card)) is not State.INCOMPATIBLE
    found = judge(model(), with_need(94 * GIB), server(64 * GIB, card))
    assert found.state is State.INSUFFICIENT
    assert "It is meant for 94.00 GiB of memory of NVIDIA H100" in found.reasons[0]
    assert state(on_cpu(host=HostNeeds(memory=65 * GIB)), server(64 * GIB)) is State.RUNNABLE
    assert state(on_cpu(host=HostNeeds(memory=96 * GIB)), server(64 * GIB)) is State.INSUFFICIENT


def test_free_devices_are_taken_first() -> None:
    profile = on_gpu(tp=2)
    machine = server(64 * GIB, gpu(available=20 * GIB), gpu(available=70 * GIB), gpu(available=60 * GIB))
    found = judge(model(profile), profile, machine)
    assert found.device_indexes == (1, 2)
    assert found.available_bytes == 60 * GIB


def test_of_unequal_devices_those_that_fit_are_taken() -> None:
    profile = on_gpu()
    machine = server(64 * GIB, gpu(24 * GIB, name="A10", arch="sm_86"), gpu(80 * GIB, 30 * GIB))
    assert judge(model(profile), profile, machine).device_indexes == (1,)


def test_vllm_is_told_to_take_less_where_others_are_on_the_device() -> None:
    profile = on_gpu()
    found = judge(model(profile), profile, server(64 * GIB, gpu(available=60 * GIB)))
    assert (found.state, found.suggested) == (State.RUNNABLE, {"gpu-memory-utilization": 0.75})


def test_disk_space_counts_unless_the_files_are_here() -> None:
    profile = on_cpu()
    machine = server(64 * GIB)
    machine = replace(machine, host=replace(machine.host, disk_available_bytes=GIB))
    entry = model(profile, num_parameters=8_190_735_360)
    found = judge(entry, profile, machine)
    assert found.state is State.INSUFFICIENT
    assert "Its files take 15.26 GiB, and 1.00 GiB of disk are free for models; free some," in found.reasons[0]
    assert judge(entry, profile, machine, is_stored=True).state is State.RUNNABLE


def test_listed_files_count_as_they_are() -> None:
    files = (FileEntry("model.safetensors", 5 * GIB), FileEntry("config.json", 1000))
    profile = on_gpu(precision="awq")
    entry = model(profile, artifacts=(Artifact("awq", files=files),), num_parameters=8_190_735_360)
    found = judge(entry, profile, server(64 * GIB, gpu())).estimate
    assert found is not None
    assert (found.weights, found.disk) == (5 * GIB, 5 * GIB + 1000)


def test_devices_that_share_a_model_hold_its_parts() -> None:
    alone, halves, stages = (
        judge(model(), profile, server(64 * GIB, gpu(), gpu())).estimate
        for profile in (on_gpu(), on_gpu(tp=2), on_gpu(pp=2))
    )
    assert alone is not None
    assert halves is not None
    assert stages is not None
    assert halves.weights == pytest.approx(alone.weights / 2)
    assert halves.kv_cache == stages.kv_cache == alone.kv_cache // 2
    assert alone.weights / 2 < stages.weights < 0.6 * alone.weights


def test_a_model_of_unknown_shape_is_judged_by_its_parameters() -> None:
    profile = on_gpu()
    found = judge(model(profile, config={}, num_parameters=8 * 10**9), profile, server(64 * GIB, gpu()))
    assert found.state is State.RUNNABLE
    assert "The KV cache is not counted" in found.reasons[0]
    assert state(profile, server(64 * GIB, gpu(12 * GIB)), config={}, num_parameters=8 * 10**9) is State.INSUFFICIENT
    assert "Nothing is known of its size" in judge(model(config={}), profile, server(64 * GIB, gpu())).reasons[0]


@pytest.mark.promise("HUB-EST-2")
@pytest.mark.parametrize("memory", [3 * GIB, 5 * GIB, 64 * GIB])
@pytest.mark.parametrize("flags", [{}, {"quantization": "int8", "kv-cache-dtype": "int8", "max-num-seqs": 4}])
def test_the_native_engine_is_estimated_by_its_own_memory_plan(memory: int, flags: dict[str, Any]) -> None:
    profile = on_cpu(engine_args=flags)
    entry, machine = model(profile, config=QWEN_SMALL), server(memory)
    found = judge(entry, profile, machine)
    config = native_config(entry, replace(profile, engine_args={**flags, **found.suggested}), machine)
    assert found.estimate is not None
    left = memory - found.estimate.overhead - found.estimate.host
    plan = plan_memory(config, Memory(memory, left))
    assert found.estimate.weights == plan.weights_bytes
    assert found.estimate.kv_cache == plan.kv_cache_bytes
    assert found.estimate.activations == plan.activation_bytes


def test_adapters_take_memory_where_they_are_served() -> None:
    plain, asked = on_cpu(tags=Tags(feat_lora=True)), on_cpu(engine_args={"enable-lora": True, "max-loras": 2})
    own = model(plain, adapters=(AdapterEntry("a", "b"),))
    estimates = [
        judge(entry, profile, server()).estimate
        for entry, profile in ((model(), plain), (model(), asked), (own, plain), (model(), on_gpu(tp=1)))
    ]
    assert [bool(found and found.adapters) for found in estimates] == [False, True, True, False]


def test_a_checkpoint_of_few_bits_is_planned_as_one() -> None:
    plain, few = (
        judge(model(), profile, server()).estimate for profile in (on_cpu(), on_cpu(tags=Tags(precision="awq")))
    )
    assert plain is not None
    assert few is not None
    assert few.weights < 0.45 * plain.weights


@pytest.mark.promise("HUB-STATE-2")
def test_what_the_user_has_set_counts_instead_of_the_profile() -> None:
    profile = on_gpu(needs={})
    entry, machine = model(profile), server(64 * GIB, gpu(22 * GIB, name="NVIDIA L4", arch="sm_89"))
    short = judge(entry, profile, machine, overrides={"max_model_len": 4096})
    assert (short.state, short.profile) == (State.RUNNABLE, profile)
    long = judge(entry, profile, machine, overrides={"max_model_len": 40_960})
    assert long.state is State.INSUFFICIENT
    assert "With 40,960 tokens of context it takes" in long.reasons[0]
    assert judge(entry, profile, machine, overrides={"max_model_len": -1}).state is State.REDUCED
    assert judge(entry, on_cpu(), server(20 * GIB), overrides={"quantization": "int8"}).state is State.RUNNABLE
