"""What files of strangers may be called: a table of hostile paths, kinds of files, and folders with links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_mxext.errors import HubCause, UnsafeFileError
from vllm_mxext.hub.safety import MAX_FILES, check_file_kind, check_path, check_paths, check_tree

ABSOLUTE, PARTS, UNSEEN = "its path is absolute", r"empty parts, `\.` or `\.\.`", "characters that cannot be seen"
DEVICE, EDGES = "stands for a device", "ends with a dot or has spaces around it"


@pytest.mark.promise("HUB-SAFE-1")
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "it has no name"),
        ("/etc/passwd", ABSOLUTE),
        ("//server/share", ABSOLUTE),
        ("C:/x", ABSOLUTE),
        ("c:x", ABSOLUTE),
        ("..", PARTS),
        ("../x", PARTS),
        ("a/../../x", PARTS),
        ("a/..", PARTS),
        ("./a", PARTS),
        ("a/./b", PARTS),
        ("a//b", PARTS),
        ("a/", PARTS),
        ("a\\..\\b", "backslash"),
        ("..\\x", "backslash"),
        ("\\\\server\\share", "backslash"),
        ("a\0b", UNSEEN),
        ("a\nb", UNSEEN),
        ("a\x1b[2Jb", UNSEEN),
        ("a\x7f", UNSEEN),
        ("a\x85b", UNSEEN),
        ("a\udcffb", UNSEEN),
        ("model\u202esrotcenetefas.py", UNSEEN),
        ("a\u2028b", UNSEEN),
        ("\ufeffconfig.json", UNSEEN),
        ("x" * 513, "longer than 512 characters"),
        ("x" * 201, "longer than 200 bytes"),
        ("a/" + "ü" * 101, "longer than 200 bytes"),
        ("con", DEVICE),
        ("a/NUL.txt", DEVICE),
        ("com1.safetensors", DEVICE),
        ("lpt¹", DEVICE),
        ("aux .json", DEVICE),
        ("a/d:x", DEVICE),
        ("config.json.", EDGES),
        ("config.json ", EDGES),
        ("...", EDGES),
        (" a", EDGES),
    ],
    ids=ascii,
)
def test_hostile_paths_are_refused_with_the_reason(path: str, reason: str) -> None:
    with pytest.raises(UnsafeFileError, match=reason) as caught:
        check_path(path)
    assert caught.value.cause is HubCause.UNSAFE
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "path",
    [
        "config.json",
        "a/b/c.safetensors",
        ".gitattributes",
        "..a",
        "a..b",
        "x" * 200,
        "模型/权重.gguf",
        "a b",
        "~",
        "con1",
    ],
)
def test_ordinary_paths_are_paths(path: str) -> None:
    assert str(check_path(path)) == path


@pytest.mark.promise("HUB-SAFE-1")
def test_paths_that_cannot_be_beside_each_other_are_refused() -> None:
    check_paths(["a", "A", "b/c", "B/C"], ignores_case=False)
    for paths, ignores_case in (
        (["a", "a"], False),
        (["a", "a/b"], False),
        (["a/b", "a"], False),
        (["caf\u00e9", "cafe\u0301"], False),
        (["a", "A"], True),
        (["straße", "STRASSE"], True),
        (["Weights/x", "weights"], True),
    ):
        with pytest.raises(UnsafeFileError, match="cannot be in one folder here"):
            check_paths(paths, ignores_case=ignores_case)
    with pytest.raises(UnsafeFileError, match=f"more than {MAX_FILES} files"):
        check_paths((str(number) for number in range(MAX_FILES + 1)), ignores_case=False)


@pytest.mark.promise("HUB-SAFE-2")
def test_pickles_and_programs_are_refused_by_name_unless_allowed() -> None:
    pickles = ("pytorch_model.bin", "a/consolidated.00.PTH", "x.pt", "x.ckpt", "x.pkl", "x.bin.index", "m.nemo", "m.h5")
    programs = ("modeling_x.py", "a.ipynb", "libx.so", "libx.so.1", "run.sh", "setup.exe", "x.PY")
    for path in pickles:
        with pytest.raises(
            UnsafeFileError, match=r"--manifest-allow-unsafe \(MIM_MANIFEST_ALLOW_UNSAFE=1\).*allow_pickle"
        ):
            check_file_kind(path, allows_pickle=False, allows_code=True)
        check_file_kind(path, allows_pickle=True, allows_code=False)
    for path in programs:
        with pytest.raises(UnsafeFileError, match=r"it is a program.*trust_remote_code: true"):
            check_file_kind(path, allows_pickle=True, allows_code=False)
        check_file_kind(path, allows_pickle=False, allows_code=True)
    for path in ("config.json", "model.safetensors", "m.q4_k_m.gguf", "tokenizer.model", "README.md", "bin", "py"):
        check_file_kind(path, allows_pickle=False, allows_code=False)


@pytest.mark.promise("HUB-SAFE-1")
def test_links_that_leave_a_folder_are_refused(tmp_path: Path) -> None:
    folder, blobs = tmp_path / "model", tmp_path / "blobs"
    (folder / "sub").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "x").write_bytes(b"x")
    (folder / "sub" / "own").write_bytes(b"x")
    (folder / "inside").symlink_to("sub/own")
    check_tree(folder)
    (folder / "blob").symlink_to("../blobs/x")
    check_tree(folder, also=[blobs])
    with pytest.raises(UnsafeFileError, match="is a link that leaves the model's folder"):
        check_tree(folder)
    (folder / "blob").unlink()
    for target in (tmp_path, Path("/etc"), Path("../../missing")):
        (folder / "sub" / "link").symlink_to(target)
        with pytest.raises(UnsafeFileError, match="is a link that leaves the model's folder"):
            check_tree(folder, also=[blobs])
        (folder / "sub" / "link").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(UnsafeFileError, match="is no regular file"):
        check_tree(folder)
