"""The progress bar of offline generation."""

from __future__ import annotations

from tqdm import tqdm

from vllm_mxext.outputs import RequestOutput


class ProgressBar:
    """A bar over finished requests with tokens per second."""

    def __init__(self, num_requests: int, is_shown: bool) -> None:
        self._bar = tqdm(total=num_requests, desc="Requests", unit="req", disable=not is_shown, dynamic_ncols=True)
        self._num_tokens = [0, 0]

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def count(self, output: RequestOutput) -> None:
        """Takes a finished request."""
        self._num_tokens[0] += len(output.prompt_token_ids)
        self._num_tokens[1] += sum(len(sample.token_ids) for sample in output.outputs)
        elapsed_s = self._bar.format_dict["elapsed"]
        if elapsed_s > 0:
            rates = (num_tokens / elapsed_s for num_tokens in self._num_tokens)
            self._bar.set_postfix_str("{:.0f} input tok/s, {:.0f} output tok/s".format(*rates), refresh=False)
        self._bar.update(1)
