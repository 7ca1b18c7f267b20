"""Requests with a grammar in the real engine core, on a model of seeded noise over bytes."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from vllm_mxext.config.engine import (
    CacheConfig,
    DeviceConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
    SpeculationConfig,
)
from vllm_mxext.config.model_spec import parse_model_spec
from vllm_mxext.constraint_params import StructuredOutputsParams
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.native.core.scheduler import Scheduler
from vllm_mxext.native.core_messages import CoreInfo
from vllm_mxext.native.engine_core import EngineCore
from vllm_mxext.native.protocol import EngineCoreOutput, EngineCoreRequest, FinishReason, TokenLogprobs
from vllm_mxext.native.structured.builds import GrammarBuilds
from vllm_mxext.native.structured.gate import GrammarGate
from vllm_mxext.native.structured.grammar import grammar_text
from vllm_mxext.native.structured.vocabulary import Vocabulary
from vllm_mxext.native.worker.input_batch import InputBatch
from vllm_mxext.native.worker.model_runner import ModelRunner
from vllm_mxext.sampling_params import SamplingParams

VALUES = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": FakeTokenizer.SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["first kind", "second kind"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 2},
    },
    "required": ["name", "kind", "sizes"],
    "additionalProperties": False,
}
JSON = {"json": SCHEMA, "disable_any_whitespace": True}
WORD = {"regex": "[a-f]{3,9}!"}
PROMPT = b"a prompt of some length"
CHOICE = {"choice": ["a long answer", "a short one"]}


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_outputs: int = 0
    last: EngineCoreOutput | None = None

    @property
    def text(self) -> str:
        return FakeTokenizer().decode(self.token_ids)


class Engine:
    """A core whose requests are served to their ends."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        num_blocks: int = 200,
        *,
        speculation: SpeculationConfig | None = None,
        **limits: Any,
    ) -> None:
        self.vocabulary = vocabulary
        model = ModelConfig(Path("noise"), Path("noise"), parse_model_spec(VALUES), "float32", 160, load_format="dummy")
        cache = CacheConfig(num_blocks_override=num_blocks)
        device = DeviceConfig(is_deterministic=True)  # drafts make other batches, of which answers must not depend
        config = EngineConfig(model, cache, SchedulerConfig(**limits), device, speculation=speculation)
        builds = GrammarBuilds(lambda: vocabulary)
        runner = ModelRunner(config, builds)
        runner.load()
        scheduler = Scheduler(
            config.scheduler,
            num_blocks=runner.num_blocks,
            block_size=16,
            enable_prefix_caching=True,
            max_model_len=160,
            clock=itertools.count().__next__,  # steps that all take the same time, so that drafts always pay
        )
        self.core = EngineCore(scheduler, runner, CoreInfo(runner.num_blocks, 16), GrammarGate(builds))
        self.num_preemptions = 0
        self.num_accepted = 0

    def add(self, name: str, constraint: dict[str, Any] | None, *, grammar: str | None = None, **params: Any) -> None:
        if constraint is not None:
            grammar = grammar_text(StructuredOutputsParams(**constraint), self.vocabulary.special_tokens)
        output_token_ids, rules = params.pop("output_token_ids", []), params.pop("rules", None)
        values = {"temperature": 1.0, "max_tokens": 120, **params}
        self.core.add_request(
            EngineCoreRequest(
                name,
                list(PROMPT),
                SamplingParams(**values),
                seed=sum(name.encode()),
                eos_token_ids=[FakeTokenizer.EOS],
                output_token_ids=list(output_token_ids),
                grammar=grammar,
                rules=rules,
            )
        )

    def run(self) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        while self.core.has_work:
            outputs = self.core.step()
            if outputs.stats is not None:
                self.num_accepted += sum(outputs.stats.num_accepted_per_position)
            for output in outputs.outputs:
                answer = answers.setdefault(output.request_id, Answer())
                answer.token_ids += output.new_token_ids
                answer.logprobs += output.logprobs or []
                answer.num_outputs += 1
                if output.finish_reason is not None:
                    answer.last = output
                    self.num_preemptions += output.num_preemptions
        return answers


@pytest.fixture(scope="module")
def engine(vocabulary: Vocabulary) -> Engine:
    return Engine(vocabulary)


def check(answer: Answer, constraint: dict[str, Any]) -> None:
    """The output of random weights fits its constraint, and ended because it was whole."""
    assert answer.last is not None
    assert answer.last.finish_reason is FinishReason.STOP
    if constraint is JSON:
        value = json.loads(answer.text)
        assert value.keys() == SCHEMA["properties"].keys()  # type: ignore[attr-defined]
        assert value["kind"] in ("first kind", "second kind")
    elif constraint is WORD:
        assert re.fullmatch("[a-f]{3,9}!", answer.text)
    else:
        assert answer.text in CHOICE["choice"]


@pytest.mark.promise("STRUCT-1")
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_random_weights_give_what_the_constraint_says(engine: Engine, temperature: float) -> None:
    constraints = {f"{name}{i}": one for i in range(4) for name, one in (("j", JSON), ("w", WORD), ("c", CHOICE))}
    for name, constraint in constraints.items():
        engine.add(name, constraint, temperature=temperature)
    engine.add("free", None, max_tokens=20, ignore_eos=True)

    answers = engine.run()

    assert len(answers.pop("free").token_ids) == 20
    for name, answer in answers.items():
        check(answer, constraints[name])


def test_forced_tokens_come_together_unless_log_probabilities_are_wanted(engine: Engine) -> None:
    engine.add("f", CHOICE)
    engine.add("f ", CHOICE, logprobs=1)

    together, one_by_one = engine.run().values()

    assert together.num_outputs < len(together.token_ids)
    assert one_by_one.num_outputs == len(one_by_one.token_ids)


def test_max_tokens_cuts_forced_tokens_too(engine: Engine) -> None:
    engine.add("m", CHOICE, max_tokens=5)
    answer = engine.run()["m"]
    assert len(answer.token_ids) == 5
    assert answer.last is not None
    assert answer.last.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("params", [{"ignore_eos": True}, {"min_tokens": 50}], ids=str)
def test_an_output_that_is_whole_ends_whatever_else_is_asked_for(engine: Engine, params: dict[str, Any]) -> None:
    engine.add("w", WORD, **params)
    engine.add("d", {"regex": "a{0,3}"}, **params)
    answers = engine.run()
    check(answers["w"], WORD)
    assert answers["d"].text == "aaa"[: len(answers["d"].text)]


@pytest.mark.promise("STRUCT-4")
@pytest.mark.parametrize("constraint", [JSON, WORD, CHOICE], ids=["json", "regex", "choice"])
def test_a_request_goes_on_identically_after_a_restart_at_any_token(engine: Engine, constraint: dict[str, Any]) -> None:
    engine.add("r", constraint)
    whole = engine.run()["r"].token_ids
    for cut in range(1, len(whole), 5):
        engine.add("r", constraint, output_token_ids=whole[:cut])
        assert whole[:cut] + engine.run()["r"].token_ids == whole


@pytest.mark.promise("STRUCT-4")
def test_preempted_requests_go_on_identically(engine: Engine, vocabulary: Vocabulary) -> None:
    names = [f"p{i}" for i in range(6)]
    tight = Engine(vocabulary, num_blocks=14, max_num_seqs=8, max_num_batched_tokens=64)
    for one in (engine, tight):
        for name in names:
            one.add(name, JSON)
    expected, answers = engine.run(), tight.run()
    assert tight.num_preemptions > 0
    assert {name: answers[name].token_ids for name in names} == {name: expected[name].token_ids for name in names}


@pytest.mark.promise("STRUCT-3")
def test_a_grammar_that_cannot_be_built_fails_its_request_only(engine: Engine) -> None:
    engine.add("bad", None, grammar="{")
    engine.add("good", WORD)
    answers = engine.run()
    check(answers["good"], WORD)
    assert answers["bad"].last is not None
    assert answers["bad"].last.finish_reason is FinishReason.ERROR
    assert "cannot be built" in str(answers["bad"].last.error)


def test_output_that_does_not_fit_its_grammar_fails_its_request_only(engine: Engine) -> None:
    engine.add("bad", WORD, output_token_ids=list(b"xyz"))
    engine.add("good", WORD)
    answers = engine.run()
    check(answers["good"], WORD)
    assert answers["bad"].last is not None
    assert "cannot go on" in str(answers["bad"].last.error)


@pytest.mark.promise("CORE-8")
def test_a_request_can_be_aborted_while_its_grammar_is_built(engine: Engine) -> None:
    engine.add("a", JSON)
    engine.core.abort(["a"])
    answers = engine.run()
    assert answers["a"].last is not None
    assert answers["a"].last.finish_reason is FinishReason.ABORT


def test_masks_behind_drafts_are_those_of_the_tokens_accepted(vocabulary: Vocabulary, matcher: Any) -> None:
    def masks(one: Any, drafts: Sequence[int]) -> list[list[int]]:
        return [row.tolist() for row in one.masks_for(drafts)]

    one, drafts = matcher(**CHOICE), list(b"a long")
    found = masks(one, drafts)
    for i, token_id in enumerate(drafts):
        assert one.mask().tolist() == found[i]
        one.accept([token_id])
    assert one.mask().tolist() == found[-1]
    assert len(masks(matcher(**CHOICE), list(b"a xyz"))) == 3


class KnowingProposer:
    """Drafts what the answers are going to be, with a mistake now and then."""

    is_catching_up = False

    def __init__(self, answers: dict[str, Answer], prompt_len: int) -> None:
        self.answers = answers
        self.prompt_len = prompt_len

    def propose(self, batch: InputBatch, num_drafts: Mapping[str, int]) -> dict[str, list[int]]:
        drafts = {}
        for name, limit in num_drafts.items():
            first = len(batch.tokens(name)) - self.prompt_len
            drafts[name] = self.answers[name].token_ids[first : first + limit]
            if first % 5 == 4 and drafts[name]:
                drafts[name][-1] = (drafts[name][-1] + 1) % FakeTokenizer.SIZE
        return {name: token_ids for name, token_ids in drafts.items() if token_ids}


@pytest.mark.promise("SPEC-1", "STRUCT-1")
@pytest.mark.parametrize("num_draft_tokens", [1, 4, 9])
def test_answers_with_drafts_are_those_without(vocabulary: Vocabulary, num_draft_tokens: int) -> None:
    """Where the grammar forces tokens, where it ends the answer, and where a parameter does."""

    def add_all(engine: Engine) -> None:
        for index, constraint in enumerate((JSON, WORD, CHOICE, None)):
            engine.add(f"greedy {index}", constraint, temperature=0.0)
            engine.add(f"drawn {index}", constraint)
            engine.add(f"asking {index}", constraint, logprobs=2)
            engine.add(f"cut {index}", constraint, max_tokens=11)
            engine.add(f"stopped {index}", constraint, stop_token_ids=[ord("e"), ord("s")], min_tokens=3)
            engine.add(f"learning {index}", constraint, mirostat=1)

    plain = Engine(vocabulary)
    add_all(plain)
    expected = plain.run()
    proposer = KnowingProposer(expected, len(PROMPT))
    with mock.patch.object(ModelRunner, "_make_proposer", return_value=proposer):
        drafting = Engine(
            vocabulary, speculation=SpeculationConfig("ngram"), num_draft_tokens=num_draft_tokens, max_num_seqs=6
        )
    add_all(drafting)
    answers = drafting.run()
    assert drafting.num_accepted > 40
    for name, answer in expected.items():
        assert (name, answers[name].token_ids) == (name, answer.token_ids)
        assert answers[name].logprobs == answer.logprobs
        assert answers[name].last is not None
        assert answer.last is not None
        ends = [(last.finish_reason, last.stop_reason, last.is_whole) for last in (answers[name].last, answer.last)]
        assert ends[0] == ends[1], name
