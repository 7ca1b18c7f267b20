"""Reads archives of `torch.save` without torch: finds the tensors and runs nothing that the file says.

Such an archive is a zip of stored members: `<name>/data.pkl`, a pickle that names tensors and their storages, and
`<name>/data/<key>`, the storages. The pickle is interpreted by a machine that knows the few operations of a dictionary
of tensors; anything else is refused.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from vllm_mxext.lora.files import ITEM_BYTES, StoredDType, StoredTensor
from vllm_mxext.lora.opening import MAX_HEADER_BYTES, BoundedFile, open_part, parsing, refusal, stored_tensor

_STORAGES: dict[str, StoredDType] = {
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
}
_FUNCTIONS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
_ZIP_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<26xHH")
_MAX_STACK = 50_000
_MARK = object()


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: StoredDType
    key: str
    num_elements: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]


def read_torch_zip(path: Path, start: int = 0, size: int | None = None) -> dict[str, StoredTensor]:
    """Reads which tensors an archive holds.

    Args:
        path: the file.
        start: where the archive begins in it.
        size: bytes of the archive; all that follow by default.

    Raises:
        AdapterError: it is broken, or holds anything but a dictionary of tensors.
    """
    with parsing(path):
        view = open_part(path, start, size)
        if view.read(4) != _ZIP_MAGIC:
            raise refusal(f"{path} was not saved by torch.save of torch 1.6 or later; save the adapter as safetensors.")
        with zipfile.ZipFile(cast("IO[bytes]", view)) as archive:
            members = {info.filename: info for info in archive.infolist()}
        return _tensors(path, start, view, members)


def _tensors(
    path: Path, start: int, view: BoundedFile, members: Mapping[str, zipfile.ZipInfo]
) -> dict[str, StoredTensor]:
    folder = next(name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl"))

    def place(name: str) -> tuple[int, int]:
        info = members[folder + name]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise refusal(f"{path} holds {name[:200]!r} compressed; torch.save does not do that.")
        view.seek(info.header_offset)
        name_bytes, extra_bytes = _LOCAL_HEADER.unpack(view.read(_LOCAL_HEADER.size))
        return info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes, info.file_size

    def content(name: str) -> bytes:
        begin, num_bytes = place(name)
        view.seek(begin)
        return view.read(num_bytes)

    if folder + "byteorder" in members and content("byteorder").strip() != b"little":
        raise refusal(f"{path} was saved on a big-endian machine; save the adapter as safetensors.")
    values = _Machine().run(content("data.pkl"))
    if not isinstance(values, dict):
        raise refusal(f"{path} does not hold a dictionary of tensors; it is not an adapter.")
    tensors = {}
    for name, tensor in values.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise refusal(f"{path} holds something else than tensors under {str(name)[:200]!r}; it is not an adapter.")
        begin, num_bytes = place(f"data/{tensor.storage.key}")
        item_bytes = ITEM_BYTES[tensor.storage.dtype]
        found = stored_tensor(path, start + begin + tensor.offset * item_bytes, tensor.shape, tensor.storage.dtype)
        if tensor.offset < 0 or tensor.offset * item_bytes + found.num_bytes > num_bytes:
            raise ValueError(f"the tensor {name[:200]!r} lies outside of its storage")
        tensors[name] = found
    return tensors


class _Machine:
    """Interprets a pickle without running anything."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> object:
        """Returns what the pickle builds."""
        if len(program) > MAX_HEADER_BYTES:
            raise ValueError("its pickle is too long")
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                return self._stack.pop()
            handler = _OPERATIONS.get(opcode.name)
            if handler is None:
                raise refusal(
                    f"The pickle does {opcode.name}, which no adapter needs; save the adapter as safetensors."
                )
            handler(self, argument)
            if len(self._stack) > _MAX_STACK:
                raise ValueError("its pickle piles up values")
        raise ValueError("its pickle has no end")

    def push(self, value: object) -> None:
        """Puts a value on the stack."""
        self._stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        """Takes all values that were put there after the last mark."""
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("its pickle has no mark")
        values = self._stack[place + 1 :]
        del self._stack[place:]
        return values

    def pop(self, count: int) -> tuple[Any, ...]:
        """Takes some values."""
        if count > len(self._stack):
            raise ValueError("its pickle takes more than there is")
        values = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        return values

    def memoize(self, index: int | None) -> None:
        """Keeps the last value for later."""
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def recall(self, index: int) -> None:
        """Puts a kept value on the stack."""
        self._stack.append(self._memo[index])

    def find_global(self, name: str) -> None:
        """Names one of the few functions and types that are known."""
        if name not in _STORAGES and name not in _FUNCTIONS:
            raise refusal(f"The pickle calls {name[:200]!r}, which no adapter needs; save the adapter as safetensors.")
        self._stack.append(_Global(name))

    def set_items(self, pairs: list[Any]) -> None:
        """Fills the dictionary on top of the stack."""
        target = self._stack[-1]
        if not isinstance(target, dict) or not all(isinstance(key, str) for key in pairs[::2]):
            raise ValueError("its pickle fills something else than a dictionary with names")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def set_state(self) -> None:
        """Drops the attributes of an object (`_metadata` of torch's dictionaries)."""
        target, _state = self.pop(2)
        self._stack.append(target)

    def load_storage(self) -> None:
        """Names the storage that a persistent id stands for."""
        ((kind, storage_type, key, _device, num_elements),) = self.pop(1)
        if kind != "storage" or not isinstance(key, str) or "/" in key or type(num_elements) is not int:
            raise ValueError("its pickle refers to something else than a storage")
        self._stack.append(_Storage(_STORAGES[storage_type.name], key, num_elements))

    def call(self) -> None:
        """Makes a tensor or a dictionary."""
        function, arguments = self.pop(2)
        if function.name == "collections OrderedDict" and arguments == ():
            self._stack.append({})
        elif function.name == "torch._utils _rebuild_parameter" and isinstance(arguments[0], _Tensor):
            self._stack.append(arguments[0])
        elif function.name == "torch._utils _rebuild_tensor_v2" and isinstance(arguments[0], _Storage):
            self._stack.append(_rebuild(*arguments[:4]))
        else:
            raise ValueError(f"its pickle calls {function.name}")


def _rebuild(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> _Tensor:
    if type(offset) is not int or any(type(size) is not int or size < 0 for size in (*shape, *strides)):
        raise ValueError("its pickle gives a tensor no proper shape")
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if stride != expected and size != 1:
            raise refusal("A tensor of the archive is not contiguous; save the adapter as safetensors.")
        expected *= size
    return _Tensor(storage, offset, shape)


_Handler = Callable[[_Machine, Any], None]
_PUSHED = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_OPERATIONS: dict[str, _Handler] = {
    **dict.fromkeys(sorted(_PUSHED), _Machine.push),
    "PROTO": lambda _machine, _: None,
    "FRAME": lambda _machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.push(_MARK),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.push(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.pop(3)),
    "SETITEM": lambda machine, _: machine.set_items(list(machine.pop(2))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "BINPUT": _Machine.memoize,
    "LONG_BINPUT": _Machine.memoize,
    "MEMOIZE": lambda machine, _: machine.memoize(None),
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": _Machine.find_global,
    "STACK_GLOBAL": lambda machine, _: machine.find_global(" ".join(machine.pop(2))),
    "BINPERSID": lambda machine, _: machine.load_storage(),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.set_state(),
}
