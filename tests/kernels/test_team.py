"""The threads that share kernels: every task is done once, whoever calls, however many there are."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from vllm_mxext.native.kernels.compiled import CompiledKernels
from vllm_mxext.native.kernels.library import load_library

ROWS, HIDDEN = 64, 512


@pytest.fixture
def library(isa):
    library = load_library(isa)
    yield library
    library.set_num_threads(1)


class Doubling:
    """Adds rows to themselves, in enough elements to be shared: a task left out or done twice shows."""

    def __init__(self, library):
        self.kernels = CompiledKernels(library, torch.float32)
        self.weight, self.normed = torch.ones(HIDDEN), torch.empty(ROWS, HIDDEN)
        self.one = torch.arange(ROWS, dtype=torch.float32)[:, None].expand(ROWS, HIDDEN).contiguous()
        self.residual = torch.zeros(ROWS, HIDDEN)

    def run(self, rows):
        self.kernels.add_rms_norm(self.one[:rows], self.residual[:rows], self.weight, 1e-6, self.normed[:rows])


@pytest.mark.promise("KERN-2")
@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
def test_every_task_is_done_once(library, num_threads):
    library.set_num_threads(num_threads)
    doubling, expected = Doubling(library), torch.zeros(ROWS, HIDDEN)
    for turn in range(400):
        rows = 17 + turn % (ROWS - 16)
        doubling.run(rows)
        expected[:rows] += doubling.one[:rows]
    assert torch.equal(doubling.residual, expected)


def test_the_number_of_threads_may_change_between_calls(library):
    doubling = Doubling(library)
    for turn in range(60):
        library.set_num_threads(1 + turn % 5)
        doubling.run(ROWS)
    assert torch.equal(doubling.residual, 60 * doubling.one)


def test_several_callers_take_turns(library):
    library.set_num_threads(3)
    doublings = [Doubling(library) for _ in range(4)]

    def call(doubling):
        for _ in range(200):
            doubling.run(ROWS)

    callers = [threading.Thread(target=call, args=(doubling,)) for doubling in doublings]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for doubling in doublings:
        assert torch.equal(doubling.residual, 200 * doubling.one)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_computes_without_the_workers_of_its_parent(library):
    library.set_num_threads(3)
    doubling = Doubling(library)
    doubling.run(ROWS)
    child = os.fork()
    if child == 0:
        doubling.run(ROWS)
        os._exit(0 if torch.equal(doubling.residual, 2 * doubling.one) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
