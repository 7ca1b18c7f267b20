"""Log probabilities of prompt tokens are those of transformers, however the prompt was cut."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.engine_fakes import write_tiny_checkpoint
from tests.golden.comparison import make_prompts
from tests.golden.conftest import Checkpoint
from tests.golden.engine import Prompt, Schedule, kernel_sets, serve
from tests.golden.models import FAMILY_MODELS
from tests.golden.reference import reference
from vllm_mxext.native.worker import prompt_logprobs
from vllm_mxext.sampling_params import SamplingParams

pytestmark = pytest.mark.promise("SAMP-8")

MODEL = FAMILY_MODELS[0]
KERNELS = kernel_sets()[-1]
ASKING = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, prompt_logprobs=3)
SCHEDULES = [
    Schedule("whole"),
    Schedule("chunked", budget=7, max_num_seqs=4),
    Schedule("preempted", num_blocks=10, budget=64),
    Schedule("cached", enable_prefix_caching=True, runs=2, budget=40),
]


def asking(lengths: tuple[int, ...]) -> list[Prompt]:
    return [Prompt(prompt.token_ids, 40, params=ASKING.clone(max_tokens=40)) for prompt in make_prompts(lengths)]


@pytest.mark.parametrize("kernels", kernel_sets())
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_every_prompt_token_has_the_log_probability_transformers_gives_it(
    checkpoint: Checkpoint, schedule: Schedule, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_logprobs, "MAX_LOGITS_BYTES", 5 * 4 * 301)  # five rows at a time
    folder: Path = checkpoint(MODEL, "float32")
    prompts = asking((1, 2, 14, 33, 45))
    served = serve(folder, "float32", prompts, schedule, kernels=kernels)
    assert served.num_preempted > 0 or schedule.name != "preempted"
    theirs = reference(folder, torch.float32)
    for prompt, answer in zip(prompts, served.answers, strict=True):
        assert len(answer.prompt_logprobs) == len(prompt.token_ids) - 1
        if not answer.prompt_logprobs:
            continue
        expected = torch.log_softmax(theirs.logits(prompt.token_ids[:1], prompt.token_ids[1:]), dim=1)
        for row, token_id, entry in zip(expected, prompt.token_ids[1:], answer.prompt_logprobs, strict=True):
            assert entry.token_ids == [token_id, *row.topk(3).indices.tolist()]
            assert entry.logprobs == pytest.approx(row[entry.token_ids].tolist(), abs=2e-4)
            assert entry.rank == 1 + int((row > row[token_id]).sum())


@pytest.mark.parametrize("kernels", [name for name in kernel_sets() if name != "torch"])
def test_asking_for_them_changes_no_token(checkpoint: Checkpoint, kernels: str) -> None:
    folder = checkpoint(MODEL, "float32")
    plain = [Prompt(prompt.token_ids, 40) for prompt in asking((5, 31, 40))]
    told = serve(folder, "float32", asking((5, 31, 40)), SCHEDULES[1], kernels=kernels).answers
    untold = serve(folder, "float32", plain, kernels=kernels).answers
    assert [answer.token_ids for answer in told] == [answer.token_ids for answer in untold]


def test_few_requests_at_once_do_not_mean_few_rows_at_once(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    take = prompt_logprobs.PromptRows.take

    def counting(self: prompt_logprobs.PromptRows, logits: torch.Tensor) -> None:
        counts.append(len(logits))
        take(self, logits)

    monkeypatch.setattr(prompt_logprobs.PromptRows, "take", counting)
    serve(checkpoint(MODEL, "float32"), "float32", asking((45,)), Schedule("one", max_num_seqs=1), kernels=KERNELS)
    assert counts == [32, 12]


PROGRAM = """
import sys
from pathlib import Path
from vllm_mxext import LLM, SamplingParams

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

llm = LLM(sys.argv[1], load_format="dummy", max_num_batched_tokens=2048, max_num_seqs=2048, num_threads=1)
prompt = {"prompt_token_ids": [i % 250 for i in range(1500)]}
plain = SamplingParams(temperature=0, max_tokens=1)
llm.generate(prompt, plain, use_tqdm=False)
llm.reset_prefix_cache()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = memory("VmRSS")
(output,) = llm.generate(prompt, plain.clone(prompt_logprobs=1), use_tqdm=False)
print(len(output.prompt_logprobs), memory("VmHWM") - before)
"""


@pytest.mark.promise("PAIN-13")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peak memory from Linux's /proc")
def test_pain_13_a_long_prompt_in_one_step_takes_bounded_memory(tmp_path: Path) -> None:
    vocab_size = 2**16
    folder = write_tiny_checkpoint(tmp_path, vocab_size=vocab_size, hidden_size=32, max_position_embeddings=2048)
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    num_positions, growth_bytes = (int(word) for word in output.split())
    assert num_positions == 1500
    assert growth_bytes < 80 * 2**20 < num_positions * vocab_size * 4 / 4  # of all logits
