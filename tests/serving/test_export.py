"""The SavedModel: its folder, stock operations, and the model's own numbers without the package."""

import json
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_mrcnn import MaskRCNN
from keras_mrcnn.data.records import Category
from keras_mrcnn.serving import documents, export
from keras_mrcnn.serving.export import export_saved_model, foreign_operations

FRESH = """
import sys, numpy as np, tensorflow as tf
signature = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
found = signature(image_bytes=tf.constant([open(path, "rb").read() for path in sys.argv[3:]]))
np.savez(sys.argv[2], **{name: value.numpy() for name, value in found.items()})
assert not any(name.startswith("keras_mrcnn") for name in sys.modules), "not TensorFlow alone"
"""


@pytest.fixture(scope="module")
def paths(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for index, file in enumerate(files):
        (folder / f"{index}.image").write_bytes(file)
    return sorted(folder.iterdir())


def assert_equals_detect(model, paths, found):
    for row, path in enumerate(paths):
        expected = model.detect(path)
        count = found["num_detections"][row]
        assert count == len(expected) > 0
        size = np.tile([expected.width, expected.height], 2)
        boxes = found["detection_boxes_pixels"][row, :count] / size
        np.testing.assert_allclose(boxes, expected.boxes / size, atol=1e-5)
        np.testing.assert_allclose(found["detection_scores"][row, :count], expected.scores, atol=1e-5)
        assert found["detection_classes"][row, :count].tolist() == expected.category_ids
        assert [name.decode() for name in found["detection_class_names"][row, :count]] == expected.names
        np.testing.assert_array_equal(found["image_sizes"][row], [expected.height, expected.width])


def test_a_fresh_process_gives_the_numbers_of_detect(model, exported, paths, tmp_path):
    command = [sys.executable, "-c", FRESH, exported, tmp_path / "found.npz", *paths]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert_equals_detect(model, paths, np.load(tmp_path / "found.npz", allow_pickle=True))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The C program, compiled against the installed TensorFlow."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    library = pathlib.Path(tf.sysconfig.get_lib())
    if not compiler or not (library / "libtensorflow_cc.so.2").is_file():
        pytest.skip("no C compiler, or a TensorFlow without the C library")
    built = tmp_path_factory.mktemp("program") / "serve"
    source = pathlib.Path(__file__).with_name("serve.c")
    libraries = ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    command = [compiler, "-O1", "-I", tf.sysconfig.get_include(), source, "-o", built, "-L", library]
    subprocess.run([*command, *libraries, f"-Wl,-rpath,{library}"], check=True)
    return built


def serve(program, folder, paths):
    """The outputs as the C program prints them, and what it said when it failed."""
    meta = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0]
    signature = meta.signature_def["serving_default"]
    names = {info.name: name for name, info in signature.outputs.items()}
    types = {info.name: info.dtype for info in signature.outputs.values()}
    command = [program, folder, signature.inputs["image_bytes"].name, *names, "--", *paths]
    done = subprocess.run(command, capture_output=True)
    lines, found = done.stdout.split(b"\n")[:-1], {}
    while lines:
        name, *shape = lines.pop(0).decode().split(" ")
        shape = [int(size) for size in shape]
        count = int(np.prod(shape))
        kind = (
            object if types[name] == tf.string.as_datatype_enum else tf.as_dtype(types[name]).as_numpy_dtype
        )
        found[names[name]] = np.array(lines[:count], object).astype(kind).reshape(shape)
        lines = lines[count:]
    return found, done.stderr.decode(errors="replace")


@pytest.mark.skipif(sysconfig.get_platform().startswith("macosx"), reason="links as on Linux")
def test_the_c_interface_gives_the_numbers_of_detect(model, exported, program, paths, tmp_path):
    broken = tmp_path / "broken"
    broken.write_bytes(paths[1].read_bytes()[:300])
    found, said = serve(program, exported, [*paths, broken])
    assert found, said
    assert_equals_detect(model, paths, found)
    for row, path in enumerate(paths):
        rles = [rle["counts"].encode() for rle in model.detect(path).rles()]
        assert found["detection_masks"][row, : len(rles)].tolist() == rles
    assert found["num_detections"][-1] == 0 and b"PNG data end too early" in found["error"][-1]
    assert set(found["error"][:-1]) == {b""}


def test_what_stands_in_the_folder(exported):
    assert exported.name == "7" and [path.name for path in exported.parent.iterdir()] == ["7"]
    assert foreign_operations(exported) == []
    assets = exported / "assets"
    assert json.loads((assets / "categories.json").read_text()) == [
        {"id": 5, "name": "a"},
        {"id": 9, "name": "b"},
    ]
    assert (
        assets / "label_map.pbtxt"
    ).read_text() == 'item {\n  id: 5\n  name: "a"\n}\nitem {\n  id: 9\n  name: "b"\n}\n'
    text = (assets / "README.md").read_text()
    signatures = tf.saved_model.load(exported).signatures
    assert set(signatures) == {"serving_default", "image_tensor", "tf_example"}
    for signature in signatures.values():
        for name, spec in signature.structured_outputs.items():
            assert f"| `{name}` | {spec.dtype.name} |" in text
            assert spec.shape[0] is None and spec.dtype in (tf.float32, tf.int32, tf.int64, tf.string)
    assert "500000 pixels" in text


def test_ids_that_are_no_integers():
    assert documents.category_ids([Category(7, "a"), Category(3, "b")]) == [7, 3]
    assert documents.category_ids([Category("x", "a"), Category(3, "b")]) == [1, 2]


def test_the_lint_finds_a_foreign_operation(tmp_path):
    module = tf.Module()
    module.call = tf.function(lambda x: x + 1, input_signature=[tf.TensorSpec([2])])
    tf.saved_model.save(module, tmp_path / "saved")
    assert foreign_operations(tmp_path / "saved") == []
    path = tmp_path / "saved" / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    saved.meta_graphs[0].graph_def.library.function[0].node_def.add(name="own", op="KerasMrcnn>RoiAlign")
    path.write_bytes(saved.SerializeToString())
    assert foreign_operations(tmp_path / "saved") == ["KerasMrcnn>RoiAlign"]


def test_a_model_of_mixed_precision_is_served_in_float32(model):
    mixed = MaskRCNN(model.config, model.categories, dtype="mixed_bfloat16")
    mixed.set_weights(model.get_weights())
    twin = export.in_float32(mixed)
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    np.testing.assert_allclose(twin.detect(image).scores, model.detect(image).scores, rtol=1e-5)
    assert export.in_float32(model) is model


def test_a_model_of_mixed_precision_keeps_its_own_backbone(model):
    image = keras.Input((None, None, 3))
    stages, hidden = [], keras.layers.AveragePooling2D(2)(image)
    for channels in (4, 8, 16, 32):
        hidden = keras.layers.Conv2D(channels, 3, 2, "same", activation="relu")(hidden)
        stages.append(hidden)
    mixed = MaskRCNN(
        model.config, model.categories, dtype="mixed_bfloat16", backbone=keras.Model(image, stages)
    )
    twin = export.in_float32(mixed)
    assert twin.box_head.compute_dtype == "float32"
    for ours, theirs in zip(twin.weights, mixed.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"version": 7}, "next free version is 13"),
        ({"version": 0}, "`version`"),
        ({"masks": "polygons"}, "`masks` is one of rle, box, png, none"),
        ({"max_pixels": 1.5}, "`max_pixels`"),
        ({"on_error": "ignore"}, "`on_error`"),
        ({"operations": "own"}, "`operations`"),
    ],
)
def test_what_is_refused(model, tmp_path, options, says):
    for name in ("7", "12", "notes"):
        (tmp_path / "served" / name).mkdir(parents=True)
    with pytest.raises((FileExistsError, ValueError), match=says):
        export_saved_model(model, tmp_path / "served", **options)
    assert len(list((tmp_path / "served").iterdir())) == 3


def test_a_failed_export_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="full"):
        export_saved_model(model, tmp_path / "served")
    assert not list(tmp_path.rglob("*partial*"))
