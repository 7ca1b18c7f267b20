"""Stand-ins for the parts below and around an engine: a runner without a model, and cores that die on command."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tests.adapter_fakes import FakeCoreAdapters
from vllm_mxext.config.engine import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from vllm_mxext.config.model_spec import ModelSpec, RopeSpec
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.native import core_messages as messages
from vllm_mxext.native.core.scheduler import Scheduler
from vllm_mxext.native.core_client import CoreExit, CoreListener
from vllm_mxext.native.engine_core import EngineCore
from vllm_mxext.native.protocol import (
    AdapterKey,
    EngineCoreRequest,
    ModelRunnerOutput,
    SchedulerOutput,
    TokenLogprobs,
)
from vllm_mxext.sampling_params import SamplingParams

BLOCK_SIZE = 4
MAX_MODEL_LEN = 256


def engine_config(max_model_len: int = MAX_MODEL_LEN, **scheduler: Any) -> EngineConfig:
    """An engine for `FakeTokenizer` whose model does not exist."""
    spec = ModelSpec(
        architecture="LlamaForCausalLM",
        vocab_size=FakeTokenizer.SIZE,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        max_position_embeddings=max_model_len,
        rms_norm_eps=1e-6,
        rope=RopeSpec(),
        has_tied_embeddings=True,
        has_qkv_bias=False,
        has_o_bias=False,
        has_mlp_bias=False,
        has_qk_norm=False,
        sliding_windows=(None,),
        checkpoint_dtype="float32",
        eos_token_ids=(FakeTokenizer.EOS,),
    )
    model = ModelConfig(Path("/no/model"), Path("/no/tokenizer"), spec, "float32", max_model_len)
    limits = {"max_num_batched_tokens": 32, "max_num_seqs": 8, **scheduler}
    return EngineConfig(model, CacheConfig(block_size=BLOCK_SIZE), SchedulerConfig(**limits))


def next_token(token_ids: Sequence[int], seed: int) -> int:
    """The token a request samples after these: a byte of a few letters, sometimes half of a character, rarely EOS."""
    text = ",".join(map(str, token_ids)) + f";{seed}"
    draw = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
    if draw % 199 == 0:
        return FakeTokenizer.EOS
    return b"abcdefghij \xc3\xa9"[draw % 13]


def logprobs_of(token_ids: Sequence[int], token_id: int, num_logprobs: int) -> TokenLogprobs:
    """Made-up log probabilities that depend on all tokens so far."""
    value = -((sum(token_ids) + token_id) % 97) / 7
    return TokenLogprobs([token_id, *range(num_logprobs)], [value, *(-1.0 * i for i in range(num_logprobs))], 1)


def undisturbed(request: EngineCoreRequest) -> list[int]:
    """The output tokens of a request that nothing stops but `max_tokens` and end-of-text."""
    assert request.params.max_tokens is not None
    token_ids = list(request.prompt_token_ids)
    for _ in range(request.params.max_tokens):
        token_ids.append(next_token(token_ids, request.seed))
        if token_ids[-1] in request.eos_token_ids and not request.params.ignore_eos:
            break
    return token_ids[len(request.prompt_token_ids) :]


def name_of(core_request_id: str) -> str:
    """The id a caller gave, with the index of the sample if there are several: `r#7/0` -> `r/0`."""
    return re.sub(r"#\d+", "", core_request_id)


class CoreKilledError(Exception):
    """A fake core met a request that kills it."""


@dataclass
class HashRunner:
    """Executes steps without a model; a token is a hash of the tokens before it and the seed.

    Where there is room for drafts, zero to three of them are right.

    Attributes:
        nan_ids: names of requests whose logits are unusable.
        lethal: whether a step with requests of these names ends the core.
        num_steps: steps so far.
    """

    nan_ids: set[str] = field(default_factory=set)
    lethal: Callable[[Sequence[str]], bool] = lambda request_ids: False
    num_steps: int = 0

    def __post_init__(self) -> None:
        self._rows: dict[str, tuple[list[int], int, SamplingParams]] = {}
        self._prompts: dict[str, tuple[int, int]] = {}
        self._num_computed: dict[str, int] = {}

    def execute(self, scheduled: SchedulerOutput) -> ModelRunnerOutput:
        self.num_steps += 1
        if self.lethal([name_of(request_id) for request_id in scheduled.num_scheduled_tokens]):
            raise CoreKilledError("killed by a request")
        for request_id in scheduled.finished_request_ids:
            self._rows.pop(request_id, None)
        for new in scheduled.new_requests:
            self._rows[new.request_id] = (list(new.token_ids), new.seed, new.params)
            self._num_computed[new.request_id] = new.num_computed_tokens
            self._prompts[new.request_id] = (new.num_prompt_tokens, new.num_prompt_logprobs)
        result = ModelRunnerOutput({})
        for request_id, num_tokens in scheduled.num_scheduled_tokens.items():
            token_ids, seed, params = self._rows[request_id]
            self._add_prompt_logprobs(result, request_id, num_tokens)
            self._num_computed[request_id] += num_tokens
            if self._num_computed[request_id] < len(token_ids):
                continue
            if name_of(request_id) in self.nan_ids:
                result.sampled_token_ids[request_id] = [-1]
                continue
            num_drafts = scheduled.num_draft_tokens.get(request_id, 0)
            num_right = min(num_drafts, len(token_ids) % 4)
            result.sampled_token_ids[request_id] = sampled = []
            for _ in range(1 + num_right):
                sampled.append(next_token(token_ids, seed))
                if params.logprobs is not None:
                    logprobs = logprobs_of(token_ids, sampled[-1], params.logprobs)
                    result.logprobs.setdefault(request_id, []).append(logprobs)
                token_ids.append(sampled[-1])
            self._num_computed[request_id] += num_right
            if num_drafts:
                result.num_draft_tokens[request_id] = num_drafts
                result.num_accepted_tokens[request_id] = num_right
        return result

    def _add_prompt_logprobs(self, result: ModelRunnerOutput, request_id: str, num_tokens: int) -> None:
        token_ids, _, params = self._rows[request_id]
        num_prompt_tokens, num_told = self._prompts[request_id]
        first = max(self._num_computed[request_id], num_told)
        end = min(self._num_computed[request_id] + num_tokens, num_prompt_tokens - 1)
        if params.prompt_logprobs is not None and first < end:
            result.prompt_logprobs[request_id] = [
                logprobs_of(token_ids[: i + 1], token_ids[i + 1], params.prompt_logprobs) for i in range(first, end)
            ]


def make_core(config: EngineConfig | None = None, runner: HashRunner | None = None) -> EngineCore:
    """An engine core on a `HashRunner`, with memory for one request of the greatest length."""
    config = config or engine_config()
    scheduler = Scheduler(
        config.scheduler,
        num_blocks=1 + config.model.max_model_len // config.cache.block_size,
        block_size=config.cache.block_size,
        enable_prefix_caching=config.cache.enable_prefix_caching,
        max_model_len=config.model.max_model_len,
    )
    info = messages.CoreInfo(scheduler.num_usable_blocks, config.cache.block_size, "hash")
    return EngineCore(scheduler, runner or HashRunner(), info)


class LoopCore:
    """A core on the event loop of its test, one step per turn of the loop; everything it says goes through msgpack.

    Args:
        core: what does the work.
        start_failure: fail to start like this.
        load_errors: names of adapters that cannot be read -> why.
    """

    def __init__(
        self, core: EngineCore, start_failure: CoreExit | None = None, load_errors: dict[str, str] | None = None
    ) -> None:
        self.core = core
        self.adapters = FakeCoreAdapters(self._say, {} if load_errors is None else load_errors)
        self.received: list[EngineCoreRequest] = []
        self.aborted: list[str] = []
        self.is_frozen = False
        self.is_at_work = False
        self.is_alive = False
        self.num_steps = 0
        self._start_failure = start_failure
        self._is_step_due = False

    def start(self, listener: CoreListener) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self.is_alive = True
        if self._start_failure is not None:
            self._loop.call_soon(self.die, self._start_failure)
            return
        self._loop.call_soon(self._load)

    def add_requests(self, requests: Sequence[EngineCoreRequest]) -> None:
        data = msgspec.msgpack.encode(messages.AddRequests(list(requests)))
        requests = msgspec.msgpack.decode(data, type=messages.AddRequests).requests
        self.received += requests
        for request in requests:
            self.adapters.begin(request)
            self.core.add_request(request)
        self._wake()

    def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted += map(name_of, request_ids)
        self.core.abort(request_ids)
        self.adapters.end(request_ids)
        self._wake()

    async def reset_prefix_cache(self) -> bool:
        return self.core.reset_prefix_cache()

    def add_adapter(self, spec: messages.AdapterSpec, *, reads_now: bool) -> None:
        self.adapters.add(spec, reads_now)

    async def load_adapter(self, spec: messages.AdapterSpec) -> bool:
        return self.is_alive and await self.adapters.load(spec)

    async def drop_adapter(self, key: AdapterKey) -> None:
        self.adapters.drop(key)

    async def stop(self) -> None:
        self.is_alive = False

    def freeze(self) -> None:
        """Stops working without dying."""
        self.is_frozen = True

    def thaw(self) -> None:
        """Goes on, and says so as a core without work does now and then."""
        self.is_frozen = False
        self._say(messages.Alive())
        self._wake()

    def die(self, exit_: CoreExit | None = None) -> None:
        """Ends at once, as by SIGKILL."""
        if self.is_alive:
            self.is_alive = False
            self._listener.on_core_exit(exit_ or CoreExit("The engine process was killed by SIGKILL."))
            self.adapters.die()

    def _load(self) -> None:
        self._say(messages.Progress("loading", 0.5))
        self._loop.call_soon(self._say, messages.Ready(self.core.info))

    def _say(self, message: messages.FromCore) -> None:
        if self.is_alive:
            data = msgspec.msgpack.encode(message)
            self._listener.on_core_message(msgspec.msgpack.decode(data, type=messages.FromCore))

    def _wake(self) -> None:
        if not self._is_step_due:
            self._is_step_due = True
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        self._is_step_due = False
        if not self.is_alive or self.is_frozen or not self.core.has_work:
            return
        try:
            outputs = self.core.step()
            self.num_steps += 1
        except CoreKilledError:
            self.die()
            return
        self.adapters.end(output.request_id for output in outputs.outputs if output.finish_reason is not None)
        if outputs.stats is not None:
            outputs.stats.adapters = self.adapters.uses()
        self._say(messages.StepOutputs(outputs))
        self._wake()


@dataclass
class LoopCores:
    """Makes one `LoopCore` after the other, as a supervisor asks for them.

    Attributes:
        config: the engine's.
        lethal: whether a step with these requests kills a core.
        nan_ids: requests whose logits are unusable.
        start_failures: how the next cores fail to start; None = they do not.
        load_errors: names of adapters that cannot be read -> why.
        cores: all made so far.
    """

    config: EngineConfig = field(default_factory=engine_config)
    lethal: Callable[[Sequence[str]], bool] = lambda request_ids: False
    nan_ids: set[str] = field(default_factory=set)
    start_failures: list[CoreExit | None] = field(default_factory=list)
    load_errors: dict[str, str] = field(default_factory=dict)
    cores: list[LoopCore] = field(default_factory=list)

    def spawn(self) -> LoopCore:
        failure = self.start_failures.pop(0) if self.start_failures else None
        runner = HashRunner(self.nan_ids, self._is_lethal)
        self.cores.append(LoopCore(make_core(self.config, runner), failure, self.load_errors))
        return self.cores[-1]

    @property
    def current(self) -> LoopCore:
        return self.cores[-1]

    def _is_lethal(self, request_ids: Sequence[str]) -> bool:
        return self.lethal(request_ids)  # as it is now, not as it was when the core was made


def write_tiny_checkpoint(folder: Path, **changes: Any) -> Path:
    """Writes a checkpoint folder without weights (for `load_format="dummy"`) and with a tokenizer of bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
    files = {
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template},
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 128,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "eos_token_id": tokenizer.token_to_id("</s>"),
            **changes,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder
