"""What a caller asks of an engine: a prompt with its sampling parameters."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_mxext.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A prompt as text.

    Attributes:
        text: the text to tokenize.
        add_special_tokens: let the tokenizer add its own (BOS); chat templates have already written theirs.
    """

    text: str
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class TokensPrompt:
    """A prompt as token ids.

    Attributes:
        token_ids: the ids, used as they are.
        text: the text they came from, if known; only echoed back.
    """

    token_ids: tuple[int, ...]
    text: str | None = None


Prompt = TextPrompt | TokensPrompt


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One generation request as an `EngineClient` takes it.

    Attributes:
        request_id: unique among open requests.
        prompt: text or token ids.
        params: checked sampling parameters.
        priority: lower is served first under the priority policy.
        cache_salt: requests share prefix blocks only with requests of the same salt.
    """

    request_id: str
    prompt: Prompt
    params: SamplingParams
    priority: int = 0
    cache_salt: str | None = None
