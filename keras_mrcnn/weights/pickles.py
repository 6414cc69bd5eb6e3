"""Pickles and torch files read as data: no code of theirs runs, nothing but arrays comes out.

A pickle is a small program that may call any function it names. The reader here walks its opcodes itself
and knows a closed list: plain containers, numpy arrays, and the descriptions of torch tensors. Every other
name is refused, and every size in the file is held against the bytes that are there.
"""

import dataclasses
import math
import pickletools
import re
import sys

import numpy as np

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
PLAIN = (str, bytes, bytearray, int, float, type(None))
LITERALS = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Refused(ValueError):
    """A file that is not read; its words are sentences for the user, beginning with what the file is."""


def expect(condition, what):
    """Refuse what no honest writer makes."""
    if not condition:
        raise Refused(f"Expected {what} in it. It is damaged or made to do harm: fetch it again.")


def widen(array):
    """The array in the machine's byte order, float16 and bfloat16 as float32."""
    if array.dtype.name in ("float16", "bfloat16"):
        return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def whole(value):
    """Is it an integer of Python's, not a bool, not negative?"""
    return type(value) is int and value >= 0


def wholes(values):
    """Is it a tuple or list of at most 32 such integers, as a shape is?"""
    return isinstance(values, (tuple, list)) and len(values) <= 32 and all(map(whole, values))


# --- what stands in the tree for numpy's and torch's objects


class Dtype:
    """A numpy dtype of numbers: its code comes first, its byte order later, as its state."""

    def __init__(self, code, *_):
        expect(isinstance(code, str), "the code of a dtype")
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", code):
            what = "Python objects" if code.startswith("O") else f"type {code[:20]!r}"
            raise Refused(f"It holds an array of {what}; expected real numbers. Nothing was executed.")
        self.dtype = np.dtype(code)

    def set_state(self, state):
        plain = isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)
        expect(plain and state[1] in ("<", ">", "|", "="), "the state of a dtype of numbers")
        self.dtype = self.dtype.newbyteorder(state[1])


class Array:
    """A numpy array: made empty, then given its state. Text in place of bytes is latin-1 (Python 2)."""

    data = None

    def set_state(self, state):
        expect(self.data is None and isinstance(state, tuple) and len(state) == 5, "the state of one array")
        self.set(*state[1:])

    def set(self, shape, dtype, fortran, data):
        expect(wholes(shape) and isinstance(dtype, Dtype), "the shape and dtype of an array")
        expect(isinstance(data, (bytes, bytearray, str)), "the bytes of an array")
        self.shape, self.dtype, self.order = tuple(shape), dtype.dtype, "F" if fortran else "C"
        self.nbytes = math.prod(shape) * self.dtype.itemsize
        expect(len(data) == self.nbytes, f"{self.nbytes} bytes for an array of shape {self.shape}")
        self.data = data

    def numpy(self, _):
        data = self.data.encode("latin-1") if isinstance(self.data, str) else self.data
        self.data = data
        return widen(np.frombuffer(data, self.dtype).reshape(self.shape, order=self.order))


@dataclasses.dataclass(frozen=True)
class Storage:
    """The flat memory of one or more tensors: `count` values from `start` on of the record named `key`."""

    dtype: str
    key: str
    total: int
    start: int
    count: int

    @property
    def itemsize(self):
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize

    def numpy(self, data):
        """The values of the whole record from its bytes (uint8, little-endian), half precision widened."""
        if self.dtype == "bfloat16":
            return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "bool":
            return data != 0
        return widen(data.view(np.dtype(self.dtype).newbyteorder("<")))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; `offset` and `stride` count values."""

    storage: Storage
    offset: int
    size: tuple
    stride: tuple

    def __post_init__(self):
        good = isinstance(self.storage, Storage) and whole(self.offset)
        good = good and wholes(self.size) and wholes(self.stride) and len(self.size) == len(self.stride)
        expect(good, "storage, offset, size and stride of a tensor")
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.size, self.stride))
        expect(0 in self.size or last < self.storage.count, "a tensor that lies inside its storage")

    @property
    def nbytes(self):
        return math.prod(self.size) * max(4, self.storage.itemsize)

    def numpy(self, values):
        """`values`: the whole record of the storage. Shape `size`, a view."""
        if 0 in self.size:
            return np.empty(self.size, values.dtype)
        strides = [stride * values.itemsize for stride in self.stride]
        start = values[self.storage.start + self.offset :]
        return np.lib.stride_tricks.as_strided(start, self.size, strides)


def storage_of(identifier):
    """The storage a persistent id describes: ("storage", type, key, device, count[, view])."""
    form = isinstance(identifier, tuple) and len(identifier) in (5, 6) and identifier[0] == "storage"
    expect(form, "the persistent id of a torch storage")
    _, kind, key, _, total, *view = identifier
    expect(isinstance(kind, Global) and kind.name in STORAGES, "the type of a torch storage")
    expect(isinstance(key, str) and whole(total), "key and size of a torch storage")
    start, count = 0, total
    if view and view[0] is not None:
        expect(isinstance(view[0], tuple) and len(view[0]) == 3, "key, start and size of a storage's view")
        _, start, count = view[0]
        expect(whole(start) and whole(count) and start + count <= total, "a view inside its storage")
    return Storage(STORAGES[kind.name], key, total, start, count)


# --- the names a pickle may ask for, and what they make


def _ordered_dict(pairs=()):
    expect(isinstance(pairs, (list, tuple)), "pairs of a dict")
    expect(all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs), "pairs of a dict")
    return put({}, [value for pair in pairs for value in pair])


def _reconstruct(kind, *_):
    expect(isinstance(kind, Global) and kind.name == "ndarray", "numpy.ndarray as the type of an array")
    return Array()


def _from_buffer(data, dtype, shape, order):
    array = Array()
    array.set(shape, dtype, order == "F", data)
    return array


def _scalar(dtype, data):
    return _from_buffer(data, dtype, (), "C")


def _encoded(text, codec):
    expect(isinstance(text, str) and codec in ("latin1", "latin-1"), "bytes written as latin-1 text")
    return text  # stays text until an array is made of it, so that the bytes exist once


def _no_bytes():
    return b""


def _tensor(storage, offset, size, stride, *_):
    return Tensor(storage, offset, size, stride)


def _parameter(data, *_):
    expect(isinstance(data, Tensor), "a tensor inside a parameter")
    return data


@dataclasses.dataclass(frozen=True)
class Global:
    """A name a pickle may ask for; `make` is called with the arguments the pickle gives, if it may be."""

    name: str
    make: object = None


NUMPY = [f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")]
GLOBALS = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("_codecs", "encode"): _encoded,
    ("builtins", "bytes"): _no_bytes,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): Dtype,
    **{(module, "_reconstruct"): _reconstruct for module in NUMPY},
    **{(module, "scalar"): _scalar for module in NUMPY},
    **{(module, "_frombuffer"): _from_buffer for module in NUMPY},
    **{("torch", name): None for name in STORAGES},
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
}


def find(module, name):
    """The admitted global, or a refusal that names what was asked for."""
    expect(isinstance(module, str) and isinstance(name, str), "text as the name of a global")
    if (module, name) in GLOBALS:
        return Global(name, GLOBALS[module, name])
    asked = f"`{ascii(f'{module[:100]}.{name[:100]}')[1:-1]}`"
    of_python = module.split(".")[0] in sys.stdlib_module_names
    save = "save the arrays alone: `torch.save(model.state_dict(), path)`"
    if (module, name) == ("torch.storage", "_load_from_bytes"):
        raise Refused(
            f"It holds torch tensors written by plain pickle ({asked}), which only torch can undo. "
            "Load it there and write it with `torch.save(state_dict, path)`, or pickle numpy arrays."
        )
    if module in ("torch", "torch._utils", "torch._tensor"):
        raise Refused(f"It holds {asked}, which is no dense tensor of real numbers. In torch, {save}.")
    if not of_python and name.rpartition(".")[2][:1].isupper():
        raise Refused(
            f"It is a pickle that holds an object of class {asked}, probably a whole model or the settings "
            f"of a training; expected arrays only. Nothing was executed. Where that class is at home, {save}."
        )
    raise Refused(
        f"It is a pickle that asks to run {asked}; weights need arrays only. Nothing was executed. If you "
        f"did not expect code in this file, do not open it with anything else; otherwise {save}."
    )


# --- the machine


def put(mapping, keys_and_values):
    """Set items; keys are text or numbers, whose hash runs no code and is not deep."""
    expect(isinstance(mapping, dict) and len(keys_and_values) % 2 == 0, "a dict with a value to each key")
    keys = keys_and_values[::2]
    expect(all(isinstance(key, PLAIN) and not isinstance(key, bytearray) for key in keys), "names as keys")
    mapping.update(zip(keys, keys_and_values[1::2]))
    return mapping


class Bounded:
    """A file that refuses at once to read more than it has left, whatever length a pickle claims."""

    def __init__(self, file, size):
        self.file, self.size = file, size
        self.readline, self.tell = file.readline, file.tell

    def read(self, count):
        if count > self.size - self.file.tell():
            raise Refused("It ends in the middle of its pickle: it was cut off. Fetch it again.")
        return self.file.read(count)


class Machine:
    """Runs pickles on a stack of plain objects; `storages` holds those that were described, by key."""

    def __init__(self):
        self.storages = {}

    def run(self, stream):
        """The object of the pickle that starts here in `stream`, which then stands behind it."""
        self.stack, self.marks, self.memo = [], [], {}
        for opcode, argument, _ in pickletools.genops(stream):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in LITERALS:
                self.stack.append(argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in EMPTY:
                self.stack.append(EMPTY[name]())
            elif name in TUPLES:
                self.stack.append(tuple(self.pop(TUPLES[name])))
            elif name in OPERATIONS:
                OPERATIONS[name](self, argument)
            elif name not in ("PROTO", "FRAME"):
                raise Refused(f"Its pickle uses {name}, which weights do not need. Nothing was executed.")

    def pop(self, count):
        items = self.stack[-count:]
        expect(len(items) == count, "more on the stack")
        del self.stack[-count:]
        return items

    def since_mark(self):
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def set_items(self, _):
        items = self.since_mark()
        put(self.stack[-1], items)

    def extend(self, items):
        expect(isinstance(self.stack[-1], list), "a list to append to")
        self.stack[-1].extend(items)

    def call(self, _):
        function, arguments = self.pop(2)
        expect(isinstance(function, Global) and function.make, "something that makes an array")
        expect(isinstance(arguments, tuple), "a tuple of arguments")
        self.stack.append(function.make(*arguments))

    def build(self, _):
        (state,), target = self.pop(1), self.stack[-1]
        if isinstance(target, (Array, Dtype)):
            target.set_state(state)
        else:  # the state of a state_dict is its versions, that of a parameter its flags: no values
            known = isinstance(target, dict) or isinstance(target, Tensor) and len(state) == 3
            expect(known, "an object whose state is known")

    def storage(self, _):
        storage = storage_of(*self.pop(1))
        known = self.storages.setdefault(storage.key, storage)
        expect((known.dtype, known.total) == (storage.dtype, storage.total), "one description per storage")
        self.stack.append(storage)

    def drop(self, _):
        stack = self.marks if self.marks and self.marks[-1] == len(self.stack) else self.stack
        stack.pop()

    def memoize(self, index):
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]


OPERATIONS = {
    "MARK": lambda self, _: self.marks.append(len(self.stack)),
    "POP": Machine.drop,
    "POP_MARK": lambda self, _: self.since_mark(),
    "DUP": lambda self, _: self.stack.append(self.stack[-1]),
    "TUPLE": lambda self, _: self.stack.append(tuple(self.since_mark())),
    "LIST": lambda self, _: self.stack.append(self.since_mark()),
    "DICT": lambda self, _: self.stack.append(put({}, self.since_mark())),
    "APPEND": lambda self, _: self.extend(self.pop(1)),
    "APPENDS": lambda self, _: self.extend(self.since_mark()),
    "SETITEM": lambda self, _: put(self.stack[-3], self.pop(2)),
    "SETITEMS": Machine.set_items,
    "GLOBAL": lambda self, names: self.stack.append(find(*names.split(" ", 1))),
    "STACK_GLOBAL": lambda self, _: self.stack.append(find(*self.pop(2))),
    "REDUCE": Machine.call,
    "NEWOBJ": Machine.call,
    "BUILD": Machine.build,
    "BINPERSID": Machine.storage,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.memoize),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"), lambda self, index: self.stack.append(self.memo[index])
    ),
}
