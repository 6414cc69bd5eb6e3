"""Weights files of every source, read as data: a path goes in, `{name in the file: array}` comes out.

What a file is, its content says, not its suffix. Nothing in a file is executed, and a file that is wrong,
damaged or hostile is refused as a whole.
"""

import io
import pathlib
import re
import reprlib
import tempfile
import zipfile
import zlib

import h5py
import numpy as np

from keras_mrcnn.weights.pickles import PLAIN, Array, Bounded, Machine, Refused, Tensor, expect, widen

CONTAINERS = ("model", "state_dict", "model_state", "blobs")  # where files keep the mapping of arrays
ROOM_BYTES, ROOM_TIMES = 64 << 20, 20  # arrays may be as large as the greater of: this, so many files
CHUNK_BYTES = 8 << 20
TORCH_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # the number that opens a legacy torch file
PICKLE = re.compile(rb"\x80[\x00-\x05]|\(?[ci][\w.]+\n[\w.]+\n|\([dl]p?\d*\n|[\]}][q(.]|\([\]}l(cU]")
DAMAGE = (  # what the readers below meet in broken files; real trouble of the disk passes through
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
SHORT = reprlib.Repr()
SHORT.maxlist, SHORT.maxstring = 8, 80


def read_weights(path):
    """The arrays of a weights file, under exactly the names they have in it.

    Reads torch `.pth` (zip and legacy), pickles of numpy arrays (detectron2, Detectron and other Caffe2
    `.pkl`), `.npz`, HDF5 (matterport and Keras 2 `.h5`, Keras `.weights.h5`), `.keras`, and TensorFlow
    checkpoints (prefix, `.index` file or directory). Nothing in the file is executed.

    Args:
        path: a file; or the prefix or directory of a TensorFlow checkpoint.

    Returns:
        `{name: array}`, in the order of the file. Arrays are read-only, may be strided and may share
        memory. float16 and bfloat16 become float32, other numbers keep their type; text is left out.
        Names are dict keys (pickles, torch, `.npz`), paths of datasets (HDF5: "conv1/conv1/kernel:0") or
        keys (TensorFlow). Where the arrays lie under "model", "state_dict", "model_state", "blobs" or, in
        HDF5, "model_weights", only those are read.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is something else, cut off, damaged, or asks to run code; the message says which.
    """
    path = pathlib.Path(path)
    try:
        arrays = _read(path)
        if not arrays:
            raise Refused("It holds no arrays. Expected a file of trained weights.")
    except Refused as error:
        raise Refused(f"Cannot read weights from {path}. {error}") from error
    except DAMAGE as error:
        what = f"It is damaged ({type(error).__name__}: {error}). Fetch it again."
        raise Refused(f"Cannot read weights from {path}. {what}") from error
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _read(path):
    checkpoint = _checkpoint_prefix(path)
    if checkpoint:
        return _read_checkpoint(checkpoint)
    if path.is_dir():
        raise Refused(
            "It is a directory without a TensorFlow checkpoint (no `.index` file in it). Give a weights file."
        )
    if not path.exists():
        raise FileNotFoundError(
            f"`path` must be a weights file, or the prefix or directory of a checkpoint. Received: {path} "
            f"(that is {path.absolute()}), where nothing is."
        )
    if not path.is_file():
        raise Refused("It is not a regular file.")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(512)
        file.seek(0)
        if head.startswith(b"PK\x03\x04"):
            return _read_zip(file, size)
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            return _read_h5(file, size)
        if TORCH_MAGIC in head[:32]:
            return _read_legacy(file, size)
        if PICKLE.match(head):
            return _read_pickle(file, size)
    raise Refused(_what(head))


def check_room(array_bytes, file_bytes):
    """Refuse arrays out of all proportion to their file (a bomb); the bound is 64 MiB or 20 files."""
    if array_bytes > max(ROOM_BYTES, ROOM_TIMES * file_bytes):
        raise Refused(
            f"Its {file_bytes} bytes unfold to {array_bytes} bytes of arrays, which no weights do: "
            "it is made to fill the memory. Do not trust where it came from."
        )


def fill(file, size):
    """The next `size` bytes of `file`, uint8 `[size]`, read once and in place."""
    data = np.empty(size, np.uint8)
    view, done = memoryview(data), 0
    while done < size:
        count = file.readinto(view[done : done + CHUNK_BYTES])
        if not count:
            raise Refused(f"It ends {size - done} bytes too early: it was cut off. Fetch it again.")
        done += count
    return data


def _what(head):
    """What a file with this beginning is, and what to do; for those that hold no weights."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "It is empty: the download failed. Fetch it again."
    if head.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer, not the file itself. Run `git lfs pull` or download the file."
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error", b"<body")):
        return "It is an HTML or XML page, a server's answer in place of the file. Check the address."
    if text.startswith((b"{", b"[")):
        return f"It is JSON text, not weights; it begins {head[:60]!r}."
    if re.match(rb'.{8}\{\s*"', head, re.DOTALL):
        return "It is a safetensors file. Save it as `.npz` or `.pth` first."
    if head.startswith(b"\x93NUMPY"):
        return "It is one numpy array without a name. Save named arrays with `numpy.savez`."
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc")) or head[257:262] == b"ustar":
        return "It is a compressed or tar archive. Unpack it and give the weights file inside."
    return (
        f"It is no weights file known here; it begins {head[:16]!r}. Expected a torch `.pth`, a `.pkl` or "
        "`.npz` of numpy arrays, `.h5`, `.keras`, or the prefix of a TensorFlow checkpoint."
    )


# --- pickles and torch


def _run(machine, file, size):
    """The next pickle of `file`; words for one that is cut off."""
    try:
        return machine.run(Bounded(file, size))
    except DAMAGE as error:
        if isinstance(error, Refused):
            raise
        if isinstance(error, UnicodeDecodeError) and error.encoding == "ascii":
            raise Refused("It is a text pickle of Python 2. Write it again with protocol 2.") from error
        if file.tell() >= size:
            raise Refused("It ends in the middle of its pickle: it was cut off. Fetch it again.") from error
        raise Refused(f"Its pickle is damaged ({error}). Fetch it again.") from error


def _mapping(tree, depth=3):
    """The dict of `tree` that holds arrays: itself or one under the usual keys; None without one."""
    if not isinstance(tree, dict) or any(isinstance(value, (Array, Tensor)) for value in tree.values()):
        return tree if isinstance(tree, dict) else None
    inside = (_mapping(tree.get(key), depth - 1) for key in CONTAINERS) if depth else ()
    return next((mapping for mapping in inside if mapping is not None), None)


def _weights_of(tree):
    """{name: Array or Tensor} of the mapping in `tree` that holds the arrays."""
    mapping = _mapping(tree)
    if mapping is None:
        received = f"a dict of {SHORT.repr(list(tree))}" if isinstance(tree, dict) else type(tree).__name__
        raise Refused(f"Expected a dict of arrays, at the top or under {CONTAINERS}. Received: {received}.")
    arrays = {}
    for name, value in mapping.items():
        inner = value.values() if isinstance(value, dict) else value
        if isinstance(value, (Array, Tensor)):
            expect(isinstance(name, str), "text as the name of an array")
            arrays[name] = value
        elif not isinstance(value, PLAIN) and not all(isinstance(item, PLAIN) for item in inner):
            what = f"{SHORT.repr(name)} is a {type(value).__name__} of more than text and numbers"
            raise Refused(f"Expected arrays side by side in one dict. Received: beside arrays, {what}.")
    return arrays


def _materialise(found, size, values_of):
    """{name: array}; `values_of(storage)`: all values of the storage's record."""
    check_room(sum(value.nbytes for value in found.values()), size)
    records = {}
    for value in found.values():
        if isinstance(value, Tensor) and value.storage.key not in records:
            records[value.storage.key] = values_of(value.storage)
    return {
        name: value.numpy(records[value.storage.key] if isinstance(value, Tensor) else None)
        for name, value in found.items()
    }


def _read_pickle(file, size):
    """A pickle of numpy arrays."""

    def nowhere(storage):
        raise Refused("It is a pickle of torch tensors without their values. Write it with `torch.save`.")

    return _materialise(_weights_of(_run(Machine(), file, size)), size, nowhere)


def _read_legacy(file, size):
    """torch's format before 1.6: magic, protocol, system, object, storage keys, then the storages."""
    machine = Machine()
    for _ in range(3):
        _run(machine, file, size)
    found = _weights_of(_run(machine, file, size))
    keys = _run(machine, file, size)
    expect(isinstance(keys, list) and all(isinstance(key, str) for key in keys), "a list of its storages")
    expect(len(keys) == len(set(keys)) and set(keys) == set(machine.storages), "each of its storages once")
    wanted = {value.storage.key for value in found.values() if isinstance(value, Tensor)}
    records = {}
    for key in keys:
        storage = machine.storages[key]
        length = storage.total * storage.itemsize
        expect(int(fill(file, 8).view("<i8")[0]) == storage.total, f"storage {key} as long as its record")
        if length > size - file.tell():
            raise Refused("It ends in the middle of its tensors: it was cut off. Fetch it again.")
        if key in wanted:
            records[key] = storage.numpy(fill(file, length))
        else:
            file.seek(length, io.SEEK_CUR)
    return _materialise(found, size, lambda storage: records[storage.key])


def _read_torch_zip(archive, members, folder, size):
    """torch's format since 1.6: `folder`/data.pkl, and each storage's memory in `folder`/data/KEY."""
    if f"{folder}/constants.pkl" in members:
        raise Refused(
            "It is a TorchScript archive, which is a program. In torch, save its arrays alone: "
            "`torch.save(torch.jit.load(path).state_dict(), new_path)`."
        )
    order = members.get(f"{folder}/byteorder")
    if order and archive.read(order) != b"little":
        raise Refused("It was written on a big-endian machine. Save it again on another.")
    program = archive.read(f"{folder}/data.pkl")
    machine = Machine()
    found = _weights_of(_run(machine, io.BytesIO(program), len(program)))

    def values_of(storage):
        member = members.get(f"{folder}/data/{storage.key}")
        expect(member is not None, f"a record for storage {storage.key}")
        length = storage.total * storage.itemsize
        expect(member.file_size == length, f"storage {storage.key} as long as its record")
        with archive.open(member) as file:
            return storage.numpy(fill(file, length))

    return _materialise(found, size, values_of)


# --- archives


def _read_zip(file, size):
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise Refused(
            f"It begins like a zip archive (torch, npz or keras) but has no end ({size} bytes are here): "
            "it was cut off. Fetch it again."
        ) from error
    with archive:
        members = {member.filename: member for member in archive.infolist()}
        for member in archive.infolist():
            expect(0 <= member.header_offset < size, "every entry of the archive")
            expect(
                member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
                "stored or deflated entries",
            )
        check_room(sum(member.file_size for member in archive.infolist()), size)
        folders = [name[: -len("/data.pkl")] for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(folders) == 1:
            return _read_torch_zip(archive, members, folders[0], size)
        if "model.weights.h5" in members:
            with tempfile.TemporaryFile() as unpacked, archive.open("model.weights.h5") as weights:
                while chunk := weights.read(CHUNK_BYTES):
                    unpacked.write(chunk)
                return _read_h5(unpacked, size)
        if members and all(name.endswith(".npy") for name in members):
            return _read_npz(archive, members)
    raise Refused(f"It is a zip archive without weights known here. It holds: {SHORT.repr(list(members))}")


def _numbers(name, array):
    """The array, widened; None for text; a refusal for anything else."""
    if array.dtype.kind in "SU":
        return None
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise Refused(f"Expected numbers. Received: {name!r} of type {array.dtype}.")
    return widen(array)


def _only_numbers(arrays):
    """{name: array} of (name, array) pairs; text is left out."""
    kept = ((name, _numbers(name, array)) for name, array in arrays)
    return {name: array for name, array in kept if array is not None}


def _read_npz(archive, members):
    def arrays():
        for name in members:
            with archive.open(name) as file:
                try:
                    yield name.removesuffix(".npy"), np.lib.format.read_array(file, allow_pickle=False)
                except MemoryError as error:
                    raise Refused(f"Its array {name} claims a size beyond this machine.") from error

    return _only_numbers(arrays())


def _read_h5(file, size):
    """Every dataset of an HDF5 file by its path; links to elsewhere are not followed."""
    datasets = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            if item.external or item.is_virtual:
                raise Refused(
                    f"Its dataset {name!r} lies in another file. Expected a file that holds its weights."
                )
            datasets[name] = item

    def values(item):
        if item.dtype.kind == "V" and item.attrs.get("dtype") == "bfloat16":  # as Keras writes it
            return (item[()].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return np.asarray(item[()])

    try:
        with h5py.File(file, "r") as h5:
            whole_model = isinstance(h5.get("model_weights", getlink=True), h5py.HardLink)
            (h5["model_weights"] if whole_model else h5).visititems(keep)
            text = {name for name, item in datasets.items() if h5py.check_string_dtype(item.dtype)}
            check_room(sum(item.nbytes for item in datasets.values()), size)
            return _only_numbers((n, values(item)) for n, item in datasets.items() if n not in text)
    except OSError as error:
        raise Refused(f"It is an HDF5 file, but cut off or damaged ({error}). Fetch it again.") from error


# --- TensorFlow checkpoints


def _checkpoint_prefix(path):
    """The prefix of the TensorFlow checkpoint that `path` means, or None."""
    if path.is_dir():
        prefixes = sorted(index.with_suffix("") for index in path.glob("*.index"))
        state = path / "checkpoint"
        text = state.read_text("utf-8", "replace") if state.is_file() else ""
        latest = re.match(r'model_checkpoint_path: "(?:[^"]*/)?([^"/]+)"', text)
        if latest and path / latest[1] in prefixes:
            return path / latest[1]
        if len(prefixes) > 1:
            names = SHORT.repr([prefix.name for prefix in prefixes])
            raise Refused(f"It holds several checkpoints; give the path of one: {names}")
        return prefixes[0] if prefixes else None
    prefix = path.with_name(re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", path.name))
    is_checkpoint = prefix.with_name(prefix.name + ".index").is_file()
    return prefix if is_checkpoint and (prefix != path or not path.exists()) else None


def _read_checkpoint(prefix):
    """Every variable of a TensorFlow checkpoint, optimizer slots included, under its key."""
    import tensorflow as tf

    parts = sorted(prefix.parent.glob(f"{prefix.name}.data-*"))
    if not parts:
        raise Refused(f"It is the index of a TensorFlow checkpoint without its values: {prefix.name}.data-*")
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        kinds, shapes = reader.get_variable_to_dtype_map(), reader.get_variable_to_shape_map()
        names = sorted(name for name, kind in kinds.items() if kind != tf.string)
        total = sum(int(np.prod(shapes[name], dtype=object)) * max(1, kinds[name].size) for name in names)
        check_room(total, sum(part.stat().st_size for part in parts))
        return _only_numbers((name, np.asarray(reader.get_tensor(name))) for name in names)
    except (tf.errors.OpError, IndexError) as error:  # IndexError: its values end too early
        raise Refused(f"It is a TensorFlow checkpoint, but damaged ({error}). Fetch it again.") from error
