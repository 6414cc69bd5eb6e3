"""The files beside an exported model."""

import pytest
import yaml
from click.testing import CliRunner

from keras_mrcnn import cli
from keras_mrcnn.serving import layout


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nuclei" / "1").mkdir(parents=True)
    return tmp_path / "nuclei"


def test_all_beside_the_model_and_nothing_inside(folder):
    written, kept = layout.write(folder)
    names = ["Dockerfile", "batching.config", "docker-compose.gpu.yml", "docker-compose.yml", "models.config"]
    assert [path.name for path in written] == names and not kept
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([*names, "nuclei"])
    assert [path.name for path in folder.iterdir()] == ["1"]
    assert not any("MODEL_NAME" in path.read_text() for path in written)


def test_the_server_reads_the_list_of_models(folder):
    config = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    from google.protobuf import text_format

    layout.write(folder)
    text = (folder.parent / "models.config").read_text()
    (model,) = text_format.Parse(text, config.ModelServerConfig()).model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("nuclei", "/models/nuclei", "tensorflow")


def test_compose_files_join(folder):
    layout.write(folder)
    plain, gpu = (
        yaml.safe_load((folder.parent / name).read_text())["services"]["serving"]
        for name in ("docker-compose.yml", "docker-compose.gpu.yml")
    )
    assert plain["ports"] == ["8500:8500", "8501:8501"] and plain["volumes"] == ["./:/models:ro"]
    for argument in plain["command"]:
        assert (folder.parent / argument.split("=/models/")[1]).exists()
    assert gpu["image"].startswith("${TF_SERVING_IMAGE:-tensorflow/serving:") and "-gpu" in gpu["image"]


def test_what_the_dockerfile_copies_is_there(folder):
    layout.write(folder)
    for line in (folder.parent / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            for name in line.split()[1:-1]:
                assert (folder.parent / name).exists(), name


def test_what_is_there_stays(folder):
    (folder.parent / "models.config").write_text("mine")
    written, kept = layout.write(folder)
    assert kept == [folder.parent / "models.config"] and len(written) == 4
    assert kept[0].read_text() == "mine"


def test_a_name_that_no_address_can_hold(tmp_path):
    with pytest.raises(ValueError, match="my model"):
        layout.write(tmp_path / "my model")


@pytest.fixture
def command(folder, monkeypatch):
    """Runs `mrcnn export` without a model: what writes the files notes how it was called."""
    from keras_mrcnn.serving import export, onnx

    calls = []
    monkeypatch.setattr(cli, "load_model", lambda path: "model")
    for module, name in ((export, "export_saved_model"), (onnx, "export_onnx"), (onnx, "export_openvino")):
        monkeypatch.setattr(
            module, name, lambda *given, _name=name, **options: calls.append((_name, given, options))
        )
    (folder.parent / "m.keras").touch()

    def run(*arguments):
        result = CliRunner().invoke(
            cli.main, ["export", str(folder.parent / "m.keras"), *map(str, arguments)]
        )
        return result, calls

    return run


def test_deploy_of_the_command_line(command, folder):
    result, calls = command(folder, "--deploy", "--version", 3, "--warmup", folder.parent / "m.keras")
    assert result.exit_code == 0, result.output
    ((name, given, options),) = calls
    assert (name, given) == ("export_saved_model", ("model", str(folder)))
    assert options["version"] == 3 and options["pictures"] == (str(folder.parent / "m.keras"),)
    assert "docker-compose.yml" in result.output and (folder.parent / "docker-compose.yml").exists()
    again, _ = command(folder, "--deploy", "--version", 4)
    assert again.output.count("left as it was") == 5


def test_formats_of_the_command_line(command, folder):
    for kind in ("onnx", "openvino"):
        result, calls = command(folder.parent / "out", "--format", kind)
        assert result.exit_code == 0, result.output
        assert calls[-1] == (f"export_{kind}", ("model", str(folder.parent / "out")), {})
    result, _ = command(folder.parent / "out", "--format", "onnx", "--masks", "png")
    assert result.exit_code != 0 and "masks: only of a SavedModel" in result.output
