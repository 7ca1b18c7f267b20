"""Adapters come, change and go while requests run; nothing stale is ever said and memory comes back."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest

from tests.golden.adapters import ATTENTION, MLP, AdaptedEngine, AdaptedPrompt, TinyAdapter
from tests.golden.comparison import make_prompts
from tests.golden.conftest import Checkpoint
from tests.golden.engine import kernel_sets
from tests.golden.models import FAMILY_MODELS, TinyModel
from tests.process_memory import anonymous_bytes, counts_memory
from vllm_mxext.config.engine import LoRAConfig
from vllm_mxext.errors import AdapterError
from vllm_mxext.native.protocol import AdapterTier

LLAMA = FAMILY_MODELS[0]
FIRST = TinyAdapter("first", 8, (*ATTENTION, *MLP), seed=1)
SECOND = replace(FIRST, name="second", seed=2)
PROMPT = make_prompts((40,))[0].token_ids
"""Long enough for full KV blocks, which a stale prefix would be found in."""

pytestmark = pytest.mark.parametrize("kernels", kernel_sets()[-1:])


@pytest.fixture
def engine(kernels: str, checkpoint: Checkpoint, tmp_path: Path) -> AdaptedEngine:
    """An engine with the adapter `own`, in the folder `own`."""
    base = checkpoint(LLAMA, "float32")
    folder = FIRST.write(base, tmp_path / "own")
    lora = LoRAConfig(max_loras=2, max_lora_rank=8, max_cpu_loras=2)
    return AdaptedEngine(base, {"own": folder}, kernels=kernels, lora=lora)


def say(engine: AdaptedEngine, adapter: str | None = "own") -> list[int]:
    """What an adapter says."""
    (tokens,) = engine.serve([AdaptedPrompt(PROMPT, adapter)])
    return tokens


@pytest.mark.promise("LORA-5", "PAIN-7")
def test_pain_7_an_adapter_loaded_again_under_its_name_never_finds_blocks_of_the_old_one(
    engine: AdaptedEngine, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    base = checkpoint(LLAMA, "float32")
    before, without = say(engine), say(engine, None)
    engine.load("own", SECOND.write(base, tmp_path / "second"))
    after = say(engine)
    assert before != after != without
    engine.load("own", FIRST.write(base, tmp_path / "first again"))
    assert say(engine) == before


@pytest.mark.promise("LORA-5")
def test_an_open_request_goes_on_with_the_weights_that_it_began_with(
    engine: AdaptedEngine, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    old, base = say(engine), checkpoint(LLAMA, "float32")
    engine.core.reset_prefix_cache()
    engine.add("open", AdaptedPrompt(PROMPT, "own"))
    tokens: dict[str, list[int]] = {"open": [], "later": []}

    def step() -> None:
        for output in engine.core.step().outputs:
            assert output.error is None
            tokens[output.request_id] += output.new_token_ids

    for _ in range(4):
        step()
    for file in (tmp_path / "own").iterdir():  # nothing of the old adapter is left on disk
        file.unlink()
    (tmp_path / "own").rmdir()
    engine.load("own", SECOND.write(base, tmp_path / "own"))
    engine.add("later", AdaptedPrompt(PROMPT, "own"))
    while engine.core.has_work:
        step()
    assert tokens["open"] == old
    assert tokens["later"] == say(engine) != old


@pytest.mark.promise("LORA-4")
def test_files_that_were_written_since_are_not_taken_for_the_adapter_that_was_loaded(
    engine: AdaptedEngine, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    base = checkpoint(LLAMA, "float32")
    for name in ("a", "b"):  # host memory has two places
        engine.load(name, replace(FIRST, seed=ord(name)).write(base, tmp_path / name))
        say(engine, name)
    weights = tmp_path / "own" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes())
    engine.add("late", AdaptedPrompt(PROMPT, "own"))
    errors = []
    while engine.core.has_work:
        errors += [output.error for output in engine.core.step().outputs]
    assert len(errors) == 1
    assert "have changed since it was loaded" in str(errors[0])


def test_an_adapter_with_numbers_that_are_not_finite_is_refused_with_the_module(
    engine: AdaptedEngine, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    class Broken(TinyAdapter):
        def scaling(self, rank: int) -> float:
            return 1e-45 if rank else 0.0  # weights beyond all bounds

    broken = Broken("broken", 4, ("v_proj",))
    folder = broken.write(checkpoint(LLAMA, "float32"), tmp_path / "broken")
    with pytest.raises(AdapterError, match="weights for v_proj of layer 0 that are NaN, infinite"):
        engine.load("broken", folder)
    assert say(engine)


@counts_memory
@pytest.mark.promise("LORA-4", "PAIN-7")
def test_pain_7_unloading_gives_the_memory_back(kernels: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    wide = TinyModel("llama_wide", "Llama", {"intermediate_size": 24_000, "num_hidden_layers": 2, "vocab_size": 320})
    base = checkpoint(wide, "float32")
    adapters = {
        f"{index}": TinyAdapter(f"{index}", 64, MLP, seed=index).write(base, tmp_path / f"{index}")
        for index in range(3)
    }
    lora = LoRAConfig(max_loras=2, max_lora_rank=64, max_cpu_loras=4)
    engine = AdaptedEngine(base, {}, kernels=kernels, lora=lora)
    say(engine, None)

    def cycle() -> int:
        for name, folder in adapters.items():
            engine.load(name, folder)
            say(engine, name)
        loaded = anonymous_bytes()
        for name in adapters:
            engine.drop(name)
        return loaded

    cycle()
    gc.collect()
    before = anonymous_bytes()
    loaded = [cycle() for _ in range(6)]
    after = anonymous_bytes()
    adapter_bytes = 2 * 64 * 3 * (64 + 24_000) * 4  # layers, rank, modules, widths, float32
    assert min(loaded) - before > 2.5 * adapter_bytes
    assert after - before < adapter_bytes  # of 18: the C library keeps now more, now less of what was read


@pytest.mark.promise("LORA-6")
def test_where_an_adapter_is_can_be_seen(engine: AdaptedEngine, checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = checkpoint(LLAMA, "float32")
    for name in ("a", "b"):
        engine.load(name, replace(FIRST, seed=ord(name)).write(base, tmp_path / name))
    say(engine, "a")
    uses = engine.core.load_adapter(engine.spec("a"), reads_now=False)
    tiers = {use.adapter_id: use.tier for use in uses}
    assert list(tiers.values()) == [AdapterTier.DISK, AdapterTier.SLOT, AdapterTier.HOST]
    assert [use.num_bytes > 0 for use in uses] == [False, True, True]


@pytest.mark.promise("LORA-6")
def test_an_adapter_that_goes_while_it_is_read_leaves_the_engine_idle_and_no_memory(
    engine: AdaptedEngine, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    engine.load("late", SECOND.write(checkpoint(LLAMA, "float32"), tmp_path / "late"), reads_now=False)
    engine.add("a", AdaptedPrompt(PROMPT, "late"))
    engine.core.step()
    engine.core.abort(["a"])
    late = engine.spec("late")
    engine.drop("late")
    for _ in range(1000):
        if not engine.core.has_work:
            break
        engine.core.step()
    assert not engine.core.has_work
    assert (late.adapter_id, late.generation) not in engine.store._held
    assert engine.store._results.empty()


def test_a_slot_that_could_not_be_filled_is_empty_for_the_next_adapter(
    kernels: str, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = checkpoint(LLAMA, "float32")
    small = TinyAdapter("small", 8, ("q_proj",), seed=3)
    folders = {one.name: one.write(base, tmp_path / one.name) for one in (FIRST, small)}
    lora = LoRAConfig(max_loras=1, max_lora_rank=8, max_cpu_loras=2)
    engine = AdaptedEngine(base, folders, kernels=kernels, lora=lora)
    expected = say(engine, "small")
    last_layer = type(engine.store._layers[-1])
    num_set = 0

    def fail(self: object, slot: int, adapter: object) -> None:
        nonlocal num_set
        num_set += adapter is not None
        if num_set == 3:
            raise MemoryError("The device is full.")
        original(self, slot, adapter)

    original = last_layer.set
    with monkeypatch.context() as patch:
        patch.setattr(last_layer, "set", fail)
        engine.add("a", AdaptedPrompt(PROMPT, "first"))
        with pytest.raises(MemoryError):
            engine.serve([])
    engine.core.step()
    assert say(engine, "small") == expected
