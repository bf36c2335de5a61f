"""A pickle is a program for a small stack machine. This module is that machine with only the instructions for tensors.

Python's own ``pickle`` imports and calls whatever a file names, so opening an untrusted file runs its code. Here
nothing is imported and no foreign code is called: a global name is looked up in a table of a dozen objects of this
module, and an instruction or name that is not in its table is an error.

torch writes protocol 2 (https://docs.python.org/3/library/pickletools.html describes every instruction).
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt._common.wording import listed, shown
from refgpt.numbers.dtypes import BFLOAT16

#: The program of a 6B model takes some 60 kB and 15,000 instructions.
LARGEST_PROGRAM = 1 << 20
MOST_INSTRUCTIONS = 1 << 16


@dataclass(frozen=True)
class Storage:
    """The numbers that a tensor views: the member ``data/<key>`` of the archive."""

    key: str
    dtype: np.dtype
    n_items: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage. Offset, shape and strides count elements; they are as stated in the file, not yet
    checked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Maker:
    """The function of this module that replaces a named callable. It gets the arguments on the stack."""

    make: Callable[[tuple], Any]


class BadArguments(Exception):
    """The arguments on the stack are not those that torch writes."""


def _make_dict(args: tuple) -> dict:
    if args:
        raise BadArguments
    return {}


def _make_tensor(args: tuple) -> Tensor:
    """torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks[, metadata])"""
    if not 6 <= len(args) <= 7 or args[6:] not in ((), ({},)):  # metadata could say that the values are negated
        raise BadArguments
    storage, offset, shape, strides = args[:4]
    if not isinstance(storage, Storage) or not _counts((offset,)) or not _counts(shape) or not _counts(strides):
        raise BadArguments
    return Tensor(storage, offset, shape, strides)


def _make_parameter(args: tuple) -> Tensor:
    """torch._utils._rebuild_parameter(tensor, requires_grad, hooks)"""
    if len(args) != 3 or not isinstance(args[0], Tensor):
        raise BadArguments
    return args[0]


def _counts(values: object) -> bool:
    return isinstance(values, tuple) and all(type(n) is int and n >= 0 for n in values)


STORAGES = {
    "Float": np.dtype("<f4"),
    "Half": np.dtype("<f2"),
    "BFloat16": BFLOAT16,
    "Double": np.dtype("<f8"),
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
}

#: All names that a file may use.
GLOBALS: dict[str, object] = {
    "collections.OrderedDict": Maker(_make_dict),
    "torch._utils._rebuild_tensor_v2": Maker(_make_tensor),
    "torch._utils._rebuild_parameter": Maker(_make_parameter),
    **{f"torch.{name}Storage": dtype for name, dtype in STORAGES.items()},
}


class Machine:
    """Runs one program.

    Parameters
    ----------
    program : bytes
        The pickle.
    path : Path
        The file it came from, for errors.
    """

    def __init__(self, program: bytes, path: Path) -> None:
        self.program, self.path = program, path
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> object:
        """The object that the program builds: dicts, tuples, strings, whole numbers, truth values, None and ``Tensor``.

        Raises
        ------
        CheckpointError
            At the first instruction or name that is invalid or not needed for tensors.
        """
        if len(self.program) > LARGEST_PROGRAM:
            self.refuse("the list of tensors is absurdly long", f"{len(self.program)} bytes")
        for _ in range(MOST_INSTRUCTIONS):
            if (code := self.read(1)) == b".":
                return self.finish()
            instruction = INSTRUCTIONS.get(code)
            if instruction is None:
                known = [op.name for op in pickletools.opcodes if op.code == code.decode("latin-1")]
                self.refuse("the file asks for more than tensors", f"the instruction {listed(known) or shown(code)}")
            instruction(self)
        self.refuse("the list of tensors is absurdly long", f"more than {MOST_INSTRUCTIONS} instructions")

    def finish(self) -> object:
        """Return the single value that must remain at the end."""
        if self.at != len(self.program):
            self.refuse("there is data after the end of the list of tensors")
        result = self.pop()
        if self.stack or self.marks:
            self.refuse("the list of tensors is damaged")
        return result

    def refuse(self, what: str, got: str | None = None) -> NoReturn:
        raise CheckpointError(
            what,
            where=f"{self.path}, data.pkl at byte {self.at}",
            got=got,
            wanted="what torch.save(model.state_dict(), path) writes",
            fix="do not trust a file that asks for other things; otherwise save it anew, or convert it to safetensors",
        )

    def read(self, n_bytes: int) -> bytes:
        self.at += n_bytes
        if self.at > len(self.program):
            self.refuse("the list of tensors is cut short")
        return self.program[self.at - n_bytes : self.at]

    def number(self, layout: str) -> int:
        return int(struct.unpack(layout, self.read(struct.calcsize(layout)))[0])

    def line(self) -> str:
        stop = self.program.find(b"\n", self.at)
        raw = self.read(max(stop - self.at, 0) + 1)
        return self.text(raw[:-1])

    def check_protocol(self) -> None:
        if (version := self.number("<B")) != 2:
            self.refuse("the pickle protocol is not the one that torch writes", str(version))

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("a name is not UTF-8", shown(raw))

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.refuse("the list of tensors is damaged")
        return self.stack.pop()

    def pop_to_mark(self) -> tuple:
        if not self.marks:
            self.refuse("the list of tensors is damaged")
        mark = self.marks.pop()
        values = tuple(self.stack[mark:])
        del self.stack[mark:]
        return values

    def push_tuple(self, n_values: int) -> None:
        self.push(tuple([self.pop() for _ in range(n_values)][::-1]))

    def put(self, index: int) -> None:
        self.push(value := self.pop())
        self.memo[index] = value

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.refuse("the list of tensors is damaged", f"memo {index} before it was set")
        self.push(self.memo[index])

    def push_global(self) -> None:
        name = f"{self.line()}.{self.line()}"
        if name not in GLOBALS:
            self.refuse("the file asks for more than tensors", shown(name))
        self.push(GLOBALS[name])

    def reduce(self) -> None:
        args, maker = self.pop(), self.pop()
        try:
            if not isinstance(maker, Maker) or not isinstance(args, tuple):
                raise BadArguments
            self.push(maker.make(args))
        except BadArguments:
            self.refuse("a tensor is described in a way that is not understood", shown(args))

    def push_storage(self) -> None:
        saved = self.pop()
        if not isinstance(saved, tuple) or len(saved) != 5:
            self.refuse("a storage is described in a way that is not understood", shown(saved))
        word, dtype, key, _, n_items = saved  # the fourth is the device it came from
        if word != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str) or not _counts((n_items,)):
            self.refuse("a storage is described in a way that is not understood", shown(saved))
        self.push(Storage(key, dtype, n_items))

    def set_items(self, items: tuple) -> None:
        target = self.pop()
        if not isinstance(target, dict) or len(items) % 2:
            self.refuse("the list of tensors is damaged")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) or key in target:
                self.refuse("a key is given twice" if isinstance(key, str) else "a key is not a name", shown(key))
            target[key] = value
        self.push(target)

    def build(self) -> None:
        """Drop the attributes of a state dict (version numbers of modules): tensors do not need them."""
        state, target = self.pop(), self.pop()
        if not isinstance(target, dict) or not isinstance(state, dict):
            self.refuse("the file asks for more than tensors", "attributes of an object")
        self.push(target)


INSTRUCTIONS: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": lambda m: m.check_protocol(),
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"J": lambda m: m.push(m.number("<i")),
    b"\x8a": lambda m: m.push(int.from_bytes(m.read(m.number("<B")), "little", signed=True)),
    b"X": lambda m: m.push(m.text(m.read(m.number("<L")))),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.push_tuple(1),
    b"\x86": lambda m: m.push_tuple(2),
    b"\x87": lambda m: m.push_tuple(3),
    b"t": lambda m: m.push(m.pop_to_mark()),
    b"}": lambda m: m.push({}),
    b"s": lambda m: m.set_items((m.pop(), m.pop())[::-1]),
    b"u": lambda m: m.set_items(m.pop_to_mark()),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<L")),
    b"h": lambda m: m.get(m.number("<B")),
    b"j": lambda m: m.get(m.number("<L")),
    b"c": lambda m: m.push_global(),
    b"R": lambda m: m.reduce(),
    b"Q": lambda m: m.push_storage(),
    b"b": lambda m: m.build(),
}
