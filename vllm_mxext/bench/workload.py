"""`Workload`: how many requests of which lengths, and the prompts themselves."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_mxext.errors import ConfigError

_FORM = re.compile(r"(\d+)x\((?:(\d+)\+)?(\d+)->(\d+)\)\Z")


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of equal lengths.

    Attributes:
        num_requests: requests in all.
        input_len: prompt tokens of each.
        output_len: output tokens of each; end-of-text is ignored.
        shared_len: of the prompt tokens, those at the beginning that all requests have in common.
    """

    num_requests: int
    input_len: int
    output_len: int
    shared_len: int = 0

    def __str__(self) -> str:
        prompt = f"{self.shared_len}+{self.input_len - self.shared_len}" if self.shared_len else str(self.input_len)
        return f"{self.num_requests}x({prompt}->{self.output_len})"

    @property
    def num_positions(self) -> int:
        """Token positions whose keys and values are kept at the end; a shared beginning counts once."""
        return self.shared_len + self.num_requests * (self.input_len + self.output_len - self.shared_len)

    @classmethod
    def parse(cls, text: str) -> Workload:
        """Reads `8x(128->64)`, or `32x(1500+50->64)` for prompts of which the first 1500 tokens are the same.

        Raises:
            ConfigError: another form, or a number below 1.
        """
        match = _FORM.match(text.replace(" ", ""))
        if match is None or any(int(group) < 1 for group in match.groups() if group is not None):
            raise ConfigError(
                f"A workload is written 8x(128->64): requests, prompt tokens, output tokens; or 32x(1500+50->64), if "
                f"the first 1500 prompt tokens are shared; got '{text}'."
            )
        shared_len = int(match[2] or 0)
        return cls(int(match[1]), shared_len + int(match[3]), int(match[4]), shared_len)

    def prompts(self, alphabet: Sequence[int], seed: int) -> list[list[int]]:
        """Returns random prompts of ids from `alphabet`; equal seeds give equal prompts."""
        generator = random.Random(seed)
        shared = generator.choices(alphabet, k=self.shared_len)
        own_len = self.input_len - self.shared_len
        return [shared + generator.choices(alphabet, k=own_len) for _ in range(self.num_requests)]
