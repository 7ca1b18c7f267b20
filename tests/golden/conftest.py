"""Fixtures of the golden tests: checkpoints, made once per session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers

from tests.golden.comparison import DTYPES
from tests.golden.models import TinyModel

Checkpoint = Callable[[TinyModel, str], Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Folder of a tiny model in a dtype."""
    base = tmp_path_factory.mktemp("golden")
    transformers.utils.logging.disable_progress_bar()

    def make(model: TinyModel, dtype: str) -> Path:
        folder = base / f"{model.name}-{dtype}"
        if not folder.exists():
            model.save(folder, DTYPES[dtype])
        return folder

    return make


@pytest.fixture(autouse=True)
def _keep_thread_count() -> Iterator[None]:
    """The runner sets torch's thread count for its process; other tests should not notice."""
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)
