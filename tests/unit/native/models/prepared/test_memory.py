"""Getting a file's data into memory, mapped or read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vllm_mxext.native.models.prepared import memory


def test_a_reader_with_several_threads_reads_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_READ_BYTES", 1000)
    content = torch.randint(0, 256, (12_345,), dtype=torch.uint8)
    file = tmp_path / "data"
    file.write_bytes(b"start" + content.numpy().tobytes())
    with file.open("rb") as opened:
        assert torch.equal(memory.read_data(opened.fileno(), 5, 12_345, 3), content)
        with pytest.raises(ValueError, match="it is cut off"):
            memory.read_data(opened.fileno(), 5, 12_346, 3)


def test_large_pages_of_a_mapping_are_counted(tmp_path: Path) -> None:
    smaps = tmp_path / "smaps"
    smaps.write_text(
        "1000-3000 r--p 00000000 00:00 0 /a\nRss: 8 kB\nFilePmdMapped: 4 kB\n"
        "3000-9000 r--p 00000000 00:00 0 /b\nRss: 8 kB\nFilePmdMapped: 12 kB\n"
    )
    assert memory.large_page_bytes(0x3000, smaps) == 12 * 1024
    assert memory.large_page_bytes(0x2FFF, smaps) == 4 * 1024
    assert memory.large_page_bytes(0x9000, smaps) == 0
    assert memory.large_page_bytes(0x3000, tmp_path / "missing") == 0


def test_a_mapping_without_large_pages_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(range(256)) * 16 * 1024)
    with file.open("rb") as opened:
        monkeypatch.setattr(memory, "large_page_bytes", lambda _address: 0)
        assert memory.map_data(opened.fileno(), 2**21, 2**21) is None
        monkeypatch.setattr(memory, "large_page_bytes", lambda _address: 2**21)
        data = memory.map_data(opened.fileno(), 2**21, 2**21)
    assert data is None or data.numpy().tobytes() == file.read_bytes()[2**21 :]
