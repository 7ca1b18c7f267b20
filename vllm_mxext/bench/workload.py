"""`Workload`: how many requests of which lengths, and the prompts themselves."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_mxext.errors import ConfigError

_FORM = re.compile(r"(\d+)x\((\d+)->(\d+)\)\Z")


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of equal lengths.

    Attributes:
        num_requests: requests in all.
        input_len: prompt tokens of each.
        output_len: output tokens of each; end-of-text is ignored.
    """

    num_requests: int
    input_len: int
    output_len: int

    def __str__(self) -> str:
        return f"{self.num_requests}x({self.input_len}->{self.output_len})"

    @classmethod
    def parse(cls, text: str) -> Workload:
        """Reads `8x(128->64)`.

        Raises:
            ConfigError: another form, or a number below 1.
        """
        match = _FORM.match(text.replace(" ", ""))
        numbers = [int(group) for group in match.groups()] if match else []
        if not numbers or min(numbers) < 1:
            raise ConfigError(
                f"A workload is written 8x(128->64): requests, prompt tokens, output tokens; got '{text}'."
            )
        return cls(*numbers)

    def prompts(self, alphabet: Sequence[int], seed: int) -> list[list[int]]:
        """Returns random prompts of ids from `alphabet`; equal seeds give equal prompts."""
        generator = random.Random(seed)
        return [generator.choices(alphabet, k=self.input_len) for _ in range(self.num_requests)]
