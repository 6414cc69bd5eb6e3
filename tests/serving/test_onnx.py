"""ONNX and OpenVINO models of every architecture find what `model.detect` finds."""

import json
import types

import keras
import numpy as np
import pytest

from keras_mrcnn import MaskRCNN, Results, config
from keras_mrcnn.data.images import load_image, network_frame
from keras_mrcnn.data.shapes import draw_image
from keras_mrcnn.serving import onnx as serving

pytest.importorskip("tf2onnx")
SMALL = [
    "backbone.name=resnet18",
    "backbone.blocks=[1,1,1,1]",
    "backbone.norm=batch",
    "fpn.channels=8",
    "rpn.channels=8",
    "box_head.units=8",
    "mask_head.channels=8",
    "mask_head.convs=1",
    "proposals.post_nms_test=30",
    "detections.max_detections=10",
    "input.short_edge=96",
    "input.long_edge=160",
]
EVERYTHING = [*SMALL, "detections.score_threshold=0.0"]
KEYPOINTS = ["keypoint_head.enabled=true", "keypoint_head.convs=1", "keypoint_head.channels=8"]
ARCHITECTURES = {
    "fpn": [*EVERYTHING, "roi_align.sampling_ratio=0"],
    "fixed samples": EVERYTHING,
    "legacy RoIAlign, plain resize": [*EVERYTHING, "roi_align.aligned=false", "input.resize=plain"],
    "keypoints": [*EVERYTHING, *KEYPOINTS],
    "keypoints alone": [*EVERYTHING, *KEYPOINTS, "mask_head.enabled=false"],
    "mlp, softmax": [*EVERYTHING, "mask_head.kind=mlp", "mask_head.activation=softmax"],
    "C4": [*EVERYTHING, "backbone.features=c4"],
    "nothing found": [*SMALL, "detections.score_threshold=0.99"],
    "no proposals": [*EVERYTHING, "proposals.min_size=1000.0"],
}


def make(overrides):
    keras.utils.set_random_seed(1)
    points = [{"id": 5, "name": "a", "keypoints": ["left", "right"]}, {"id": 9, "name": "b"}]
    model = MaskRCNN(config.override(config.Model(), overrides), points)
    # Scores far apart, so that rounding cannot change their order.
    for layer in (model.rpn_head.objectness, model.box_head.classes, model.rpn_head.deltas):
        layer.kernel.assign(50 * layer.kernel)
    if model.keypoint_head:  # and one best place of each point
        model.keypoint_head.upsample.kernel.assign(50 * model.keypoint_head.upsample.kernel)
    return model


def pictures():
    random = np.random.default_rng(0)
    return [draw_image(size, 6, random)[0] for size in ((150, 120), (90, 200))]


def of_onnx(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs)))


def of_openvino(path):
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: {output.any_name: value for output, value in compiled(inputs).items()}


def assert_same(model, expected, run, batch_size):
    """Boxes as parts of the image, scores, masks and keypoints within 1e-3, the same classes."""
    images = pictures()
    for start in range(0, len(images), batch_size):
        sources = [load_image(image) for image in images[start : start + batch_size]]
        inputs = network_frame(sources, model.config.input)
        outputs = run(inputs)
        for row, source in enumerate(sources):
            found = Results.from_detections(
                {name: value[row] for name, value in outputs.items()},
                inputs["image_sizes"][row],
                source.shape[:2],
                model.categories,
            )
            wanted = expected[start + row]
            assert found.category_ids == wanted.category_ids
            for name in ("boxes", "scores", "mask_probabilities", "keypoints"):
                scale = max(source.shape) if name in ("boxes", "keypoints") else 1
                if getattr(wanted, name) is not None:
                    np.testing.assert_allclose(
                        getattr(found, name) / scale,
                        getattr(wanted, name) / scale,
                        atol=1e-3,
                        rtol=1e-3 * (name == "keypoints"),  # their scores have no bound
                        err_msg=name,
                    )


def slow(name):
    return pytest.param(name, marks=pytest.mark.proof)


@pytest.fixture(scope="module", params=[name if name == "fpn" else slow(name) for name in ARCHITECTURES])
def converted(request, tmp_path_factory):
    pytest.importorskip("openvino")
    model = make(ARCHITECTURES[request.param])
    expected = {batch_size: model.detect(pictures(), batch_size) for batch_size in (1, 2)}
    folder, proto = tmp_path_factory.mktemp("onnx"), serving.onnx_model(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "onnx_model", lambda _: proto)
        serving.export_onnx(model, folder / "model.onnx")
        if not model.keypoint_head:
            serving.export_openvino(model, folder / "model.xml")
    return request.param, model, expected, folder


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_detections_are_those_of_the_model(converted, runtime, batch_size):
    name, model, expected, folder = converted
    if runtime == "openvino" and model.keypoint_head:
        with pytest.raises(ValueError, match="keypoints"):
            serving.export_openvino(model, folder / "model.xml")
        return
    run = of_onnx(folder / "model.onnx") if runtime == "onnxruntime" else of_openvino(folder / "model.xml")
    assert_same(model, expected[batch_size], run, batch_size)
    assert (sum(map(len, expected[batch_size])) == 0) == (name in ("nothing found", "no proposals"))


def test_the_file_says_what_it_takes_and_finds(converted):
    _, model, _, folder = converted
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(proto)
    about = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert [category["id"] for category in about["categories"]] == [5, 9]
    assert about["input"]["short_edge"] == 96
    operations = [node.op_type for node in proto.graph.node]
    assert operations.count("NonMaxSuppression") == 2
    assert operations.count("Loop") == bool(model.keypoint_head)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "model.onnx").write_text("precious")
    with pytest.raises(FileExistsError, match="exists"):
        serving.export_onnx(None, tmp_path / "model.onnx")


def test_another_pooling_is_refused():
    settings = config.override(config.Model(), ["roi_align.operation=pool", "roi_align.reduction=maximum"])
    with pytest.raises(ValueError, match="average"):
        serving.onnx_model(types.SimpleNamespace(config=settings))


def test_an_operation_that_onnx_lacks_is_named():
    from onnx import helper

    body = helper.make_graph([helper.make_node("DecodeJpeg", ["a"], ["b"])], "body", [], [])
    graph = helper.make_graph([helper.make_node("Loop", ["n", "c"], ["b"], body=body)], "x", [], [])
    with pytest.raises(ValueError, match="DecodeJpeg"):
        serving._check(graph, [])
