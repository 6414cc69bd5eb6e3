"""Pickles: numpy arrays come out as they went in; everything that is not an array is refused by name.

Hostile pickles are written opcode by opcode with the small functions below.
"""

import collections
import io
import pickle
import time
import tracemalloc

import numpy as np
import pytest

from keras_mrcnn.weights.pickles import Bounded, Global, Machine, Refused, Tensor, storage_of, widen

REAL_DTYPES = ["float64", "float32", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "bool"]


def value(plain):
    """The opcodes that put plain Python data on the stack."""
    return pickle.dumps(plain, protocol=2)[2:-1]


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def call(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


def program(*opcodes):
    return b"\x80\x04" + b"".join(opcodes) + b"."


def storage(kind="FloatStorage", key="0", count=6):
    """The opcodes of a persistent id, as torch writes it."""
    return b"(" + value("storage") + name("torch", kind) + value(key) + value("cpu") + value(count) + b"tQ"


def tensor(memory, offset, size, stride):
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    hooks = call(name("collections", "OrderedDict"))
    return call(rebuild, memory, value(offset), value(size), value(stride), value(False), hooks)


def dtype(code, state=(3, "<", None, None, None, -1, -1, 0)):
    return call(name("numpy", "dtype"), value(code), value(False), value(True)) + value(state) + b"b"


def array(shape, kind, data, module="numpy.core.multiarray"):
    empty = call(name(module, "_reconstruct"), name("numpy", "ndarray"), value((0,)), value("b"))
    return empty + b"(" + value(1) + value(shape) + kind + value(False) + value(data) + b"tb"


def run(data):
    return Machine().run(Bounded(io.BytesIO(data), len(data)))


def arrays(data):
    return {key: item.numpy(None) for key, item in run(data).items()}


class TestNumpy:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_every_protocol(self, protocol):
        given = {kind: (np.arange(12).reshape(3, 4) % 5).astype(kind) for kind in REAL_DTYPES}
        given["fortran"] = np.asfortranarray(np.arange(12.0).reshape(3, 4))
        given["big_endian"] = np.arange(3, dtype=">i4")
        given["scalar"] = np.float32(2.5)
        given["zero_axes"] = np.array(7)
        given["empty"] = np.zeros((0, 3), np.float32)
        got = arrays(pickle.dumps(given, protocol=protocol))
        for key, item in given.items():
            assert got[key].dtype == np.asarray(item).dtype.newbyteorder("=")
            np.testing.assert_array_equal(got[key], item)

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_half_becomes_single(self, protocol):
        got = arrays(pickle.dumps({"a": np.arange(5, dtype=np.float16) / 8}, protocol=protocol))["a"]
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, np.arange(5) / 8)

    @pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
    def test_state_written_by_python_2(self, module):
        # Python 2 writes bytes as BINSTRING, which Python 3 reads as text; 1.0 is 00 00 80 3f
        data = np.array([1, -2], "<f4").tobytes()
        text = b"U" + bytes([len(data)]) + data
        opcodes = array((2,), dtype("f4"), None, module).replace(b"Ntb", text + b"tb")
        np.testing.assert_array_equal(arrays(program(b"}U\x01a", opcodes, b"s"))["a"], [1, -2])

    def test_shared_array_comes_out_under_both_names(self):
        shared = np.arange(4)
        got = arrays(pickle.dumps({"a": shared, "b": shared}))
        assert got["a"].tolist() == got["b"].tolist() == [0, 1, 2, 3]

    def test_ordered_dict_of_lists_and_dicts(self):
        plain = collections.OrderedDict(a=[1, (2.5, None)], b={"c": b"x", 3: True})
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            got = run(pickle.dumps(plain, protocol=protocol))
            assert got["a"] == [1, (2.5, None)] and got["b"][3] is True

    def test_widen(self):
        assert widen(np.array([1], np.int16)).dtype == np.int16
        assert widen(np.array([1], ">f8")).dtype == np.dtype("=f8")


class TestTensors:
    def test_view_of_a_storage(self):
        # memory 0..5; offset 1, rows 2 apart, columns 1 apart: [[1, 2], [3, 4]]
        got = run(program(tensor(storage(), 1, (2, 2), (2, 1))))
        np.testing.assert_array_equal(got.numpy(np.arange(6.0)), [[1, 2], [3, 4]])

    def test_view_of_a_part_of_a_storage(self):
        # legacy files before 2017: the part of three values from the second on; of it the last two
        got = storage_of(("storage", Global("LongStorage"), "7", "cpu", 6, ("8", 2, 3)))
        assert (got.start, got.count, got.total) == (2, 3, 6)
        np.testing.assert_array_equal(Tensor(got, 1, (2,), (1,)).numpy(np.arange(6)), [3, 4])
        with pytest.raises(Refused, match="inside its storage"):
            Tensor(got, 2, (2,), (1,))
        with pytest.raises(Refused, match="view inside its storage"):
            storage_of(("storage", Global("LongStorage"), "7", "cpu", 6, ("8", 2, 5)))

    @pytest.mark.parametrize(
        "offset, size, stride",
        [
            (0, (7,), (1,)),
            (1, (6,), (1,)),
            (6, (1,), (1,)),
            (6, (), ()),
            (0, (2, 2), (5, 1)),
            (-1, (2,), (1,)),
            (0, (2,), (-1,)),
            (0, (-2,), (1,)),
            (0, (2,), (1, 1)),
            (0, (2.0,), (1,)),
            (0, (True,), (1,)),
            (0, (10**12,), (1,)),
            (0, (1,) * 40, (0,) * 40),
            (0, "ab", (1, 1)),
            (None, (2,), (1,)),
        ],
    )
    def test_tensor_outside_of_its_storage(self, offset, size, stride):
        with pytest.raises(Refused, match="Expected .*(inside its storage|size and stride)"):
            run(program(tensor(storage(), offset, size, stride)))

    def test_last_value_of_the_storage_is_inside(self):
        assert run(program(tensor(storage(), 1, (2, 2), (3, 1)))).numpy(np.arange(6)).tolist() == [
            [1, 2],
            [4, 5],
        ]

    @pytest.mark.parametrize(
        "identifier",
        [
            value("storage"),
            value(("storage",)),
            value(("storage", "FloatStorage", "0", "cpu", 6)),
            value(("module", "a", "b", "c", 1)),
            value(7),
            b"("
            + value("storage")
            + name("collections", "OrderedDict")
            + value("0")
            + value("cpu")
            + b"K\x06t",
            b"(" + value("storage") + name("torch", "FloatStorage") + value(0) + value("cpu") + b"K\x06t",
            b"("
            + value("storage")
            + name("torch", "FloatStorage")
            + value("0")
            + value("cpu")
            + value(-6)
            + b"t",
            b"("
            + value("storage")
            + name("torch", "FloatStorage")
            + value("0")
            + value("cpu")
            + value(6.0)
            + b"t",
        ],
    )
    def test_unexpected_persistent_id(self, identifier):
        with pytest.raises(Refused, match="Expected .*torch storage"):
            run(program(identifier, b"Q"))

    def test_text_persistent_id(self):
        with pytest.raises(Refused, match="PERSID"):
            run(b"Pstorage\n.")

    def test_one_key_two_sizes(self):
        with pytest.raises(Refused, match="one description per storage"):
            run(program(b"(", storage(count=6), storage(count=10**12), b"t"))

    def test_no_tensor_in_a_parameter(self):
        with pytest.raises(Refused, match="inside a parameter"):
            run(program(call(name("torch._utils", "_rebuild_parameter"), value("x"), value(True), value({}))))


FORBIDDEN = [
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "bytearray"),
    ("__builtin__", "eval"),
    ("functools", "partial"),
    ("operator", "attrgetter"),
    ("copyreg", "_reconstructor"),
    ("numpy", "load"),
    ("numpy.testing._private.utils", "runstring"),
    ("torch.hub", "load"),
    ("torch.serialization", "load"),
    ("collections", "OrderedDict.fromkeys"),
    ("collections", "OrderedDict.__init__.__globals__"),
    ("numpy", "ndarray.tofile"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("keras_mrcnn.weights.pickles", "find"),
]


class TestCode:
    @pytest.mark.parametrize("module, attribute", FORBIDDEN)
    @pytest.mark.parametrize("opcode", ["GLOBAL", "STACK_GLOBAL"])
    def test_refused_by_name(self, module, attribute, opcode):
        opcodes = (
            name(module, attribute) if opcode == "GLOBAL" else value(module) + value(attribute) + b"\x93"
        )
        with pytest.raises(Refused) as refusal:
            run(program(call(opcodes, value("echo"))))
        assert f"`{module}.{attribute}`" in str(refusal.value)

    def test_command_is_not_run(self, tmp_path):
        mark = tmp_path / "mark"
        hostile = b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
        with pytest.raises(Refused, match=r"asks to run `os\.system`.*Nothing was executed"):
            run(hostile)
        assert not mark.exists()
        pickle.loads(hostile)
        assert mark.exists(), "the test itself must be able to fail"

    @pytest.mark.parametrize(
        "opcodes", [b"(ios\nsystem\n", b"(" + name("os", "system") + b"o", b"\x82\x01", b"\x97"]
    )
    def test_other_ways_to_a_call(self, opcodes):
        with pytest.raises(Refused, match="INST|os.system|EXT1|NEXT_BUFFER"):
            run(program(opcodes))

    def test_whole_model_names_its_class(self):
        with pytest.raises(Refused, match=r"class `zoo\.Net`, probably a whole model.*state_dict"):
            run(program(name("zoo", "Net"), b")\x81"))

    def test_popen_is_called_code_not_a_model(self):
        with pytest.raises(Refused, match=r"asks to run `subprocess\.Popen`"):
            run(program(name("subprocess", "Popen")))

    def test_name_that_is_no_text(self):
        nested = []
        for _ in range(60):
            nested = [nested, nested]
        with pytest.raises(Refused, match="name of a global"):
            run(program(value(nested), value("system"), b"\x93"))


OBJECTS = [
    dtype("O8", (3, "|", None, None, None, -1, -1, 63)),
    dtype("O"),
    dtype("V8", (3, "|", None, ("a",), {"a": 1}, 8, 1, 16)),
    dtype("U5"),
    dtype("f4,O"),
    dtype("object"),
    dtype("c8"),
]
TWO_FLOATS = value(b"\0" * 8)
F4 = dtype("f4")


class TestHostileState:
    @pytest.mark.parametrize("kind", OBJECTS)
    def test_array_of_no_numbers(self, kind):
        with pytest.raises(Refused, match="expected real numbers"):
            run(program(array((2,), kind, [1, 2])))

    @pytest.mark.parametrize(
        "opcodes",
        [
            dtype("f4", (3, "<", None, ("a",), {"a": 1}, -1, -1, 0)),
            dtype("f4", (3, "<", ("O", (2,)), None, None, -1, -1, 0)),
            dtype("f4", (3, "x", None, None, None, -1, -1, 0)),
            dtype("f4", "state"),
            dtype("f4", None),
            call(name("numpy", "dtype"), value(8)),
            array((3,), F4, b"\0" * 8),
            array((10**12,), F4, b"\0" * 8),
            array((-2, -1), F4, b"\0" * 8),
            array((2,), F4, ["a", "b"]),
            array(2, F4, b"\0" * 8),
            array((2,), value("f4"), b"\0" * 8),
            call(name("numpy.core.multiarray", "_reconstruct"), name("collections", "OrderedDict")),
            call(name("numpy.core.multiarray", "_reconstruct"), value("ndarray")),
            call(name("numpy.core.multiarray", "scalar"), F4, value(b"\0" * 3)),
            call(name("_codecs", "encode"), value("a"), value("rot13")),
            call(name("_codecs", "encode"), value(1), value("latin1")),
            call(name("collections", "OrderedDict"), value(7)),
            call(name("collections", "OrderedDict"), value([(1, 2, 3)])),
            call(name("numpy", "ndarray"), value((10**6, 10**6))),
            call(name("torch", "FloatStorage"), value(10**12)),
            call(value("text"), value(1)),
            name("collections", "OrderedDict") + value(7) + b"R",
            name("collections", "OrderedDict") + value({"__call__": 1}) + b"b",
            value([1]) + value({"a": 1}) + b"b",
            value(({"a": (1, (2, 3))}, 5)) + b"u",
            value((1, 2)) + b"K\x01a",
            value({}) + value((1, (2,))) + b"K\x01s",
            b"}(K\x01u",
        ],
    )
    def test_refused(self, opcodes):
        with pytest.raises((Refused, IndexError)):
            run(program(opcodes))

    def test_arguments_do_not_make_memory(self):
        with pytest.raises(TypeError):
            run(program(call(name("builtins", "bytes"), value(10**12))))

    def test_state_is_set_once(self):
        state = b"(" + value(1) + value((2,)) + F4 + value(False) + TWO_FLOATS + b"tb"
        with pytest.raises(Refused, match="state of one array"):
            run(program(array((2,), F4, b"\0" * 8), state))

    def test_dtype_changed_afterwards_changes_no_array(self):
        # memo 9 holds the dtype; a second state, big-endian, after the array was made
        kind = F4 + b"q\x09"
        second = b"h\x09" + value((3, ">", None, None, None, -1, -1, 0)) + b"b0"
        got = run(program(array((2,), kind, np.array([1, 2], "<f4").tobytes()), second))
        np.testing.assert_array_equal(got.numpy(None), [1, 2])

    def test_state_of_a_state_dict_is_left_alone(self):
        opcodes = call(name("collections", "OrderedDict")) + value({"_metadata": 1, "items": 2}) + b"b"
        assert run(program(opcodes)) == {}


class TestBombs:
    @pytest.mark.parametrize(
        "opcodes",
        [
            b"B" + (2**31).to_bytes(4, "little"),
            b"\x8e" + (10**12).to_bytes(8, "little"),
            b"\x96" + (10**12).to_bytes(8, "little"),
            b"\x8d" + (10**12).to_bytes(8, "little"),
            b"X" + (2**31).to_bytes(4, "little"),
            b"\x8b" + (2**31 - 1).to_bytes(4, "little"),
            b"Nr\xff\xff\xff\xff0" + value("ok") + b"0X\xff\xff\xff\x7f",
        ],
    )
    def test_claimed_length(self, opcodes):
        tracemalloc.start()
        with pytest.raises(Refused, match="cut off"):
            run(program(opcodes))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20

    def test_huge_memo_index(self):
        tracemalloc.start()
        assert run(program(b"Nr\xff\xff\xff\xff")) is None
        assert run(b"Np99999999999999\n.") is None
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20

    @pytest.mark.parametrize("opcode", [b"\x85", b"]\x86"])
    def test_deep_tuple_as_a_key(self, opcode):
        # hashing a tuple in a tuple in a tuple ... would overflow the C stack
        with pytest.raises(Refused, match="names as keys|on the stack"):
            run(program(b"}N", opcode * 200_000, b"Ns"))

    def test_nested_doubling(self):
        # 200 lists, each holds the one before twice: 2**200 paths, which nobody may walk
        start = time.process_time()
        doubled = b"]q\x00" + b"".join(b"]q\x01(h\x00h\x00e0h\x01q\x000" for _ in range(200)) + b"h\x00"
        assert isinstance(run(program(b"]q\x00", doubled)), list)
        assert time.process_time() - start < 5

    @pytest.mark.parametrize("cut", [1, 40, 100])
    def test_cut_off(self, cut):
        data = pickle.dumps({"a": np.arange(50)}, protocol=4)
        with pytest.raises(ValueError):
            run(data[:-cut])

    @pytest.mark.parametrize("data", [b"", b".", b"\x80\x04.", b"\x80\x04h\x00.", b"\x80\x04e.", b"\xff"])
    def test_nonsense(self, data):
        with pytest.raises((ValueError, LookupError)):
            run(data)
