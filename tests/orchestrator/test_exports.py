from __future__ import annotations

import pytest

from orchestrator import exports
from orchestrator.errors import UnknownNameError, UsageError
from orchestrator.inference import Model


@pytest.mark.parametrize(
    ("name", "precision", "difference"),
    [
        ("m.onnx", "fp32", 1e-5),
        pytest.param("m.onnx", "fp16", 0.01, marks=pytest.mark.slow),
        ("m.onnx", "int8", 0.2),
        pytest.param("m.pt2", "fp32", 1e-5, marks=pytest.mark.slow),
    ],
)
def test_file_is_measured_beside_pytorch(two_trials, tmp_path, name, precision, difference):
    path = tmp_path / name
    found = exports.export(two_trials, "cnn-digits", None, path, precision)
    assert (found["study"], found["trial"], found["file"]) == ("cnn-digits", 1, str(path))
    assert found["bytes"] == path.stat().st_size
    assert found["val_accuracy_of_pytorch"] > 0.9
    assert found["val_accuracy"] == pytest.approx(found["val_accuracy_of_pytorch"], abs=0.03)
    assert found["max_difference"] < difference
    assert 0 < found["milliseconds_of_1"] < found["milliseconds_of_64"]
    if name.endswith(".onnx"):
        assert Model(path).class_names == tuple("0123456789")


def test_trial_is_taken_by_its_number(two_trials, tmp_path):
    assert exports.export(two_trials, "cnn-digits", 0, tmp_path / "m.onnx")["val_accuracy"] < 0.5


@pytest.mark.parametrize(
    ("name", "precision", "message"),
    [
        ("m.txt", "fp32", r"\.onnx or \.pt2, found '\.txt'"),
        ("m.onnx", "fp8", "precision 'fp8' of a .onnx file is none of fp32, fp16, int8"),
        ("m.pt2", "int8", "precision 'int8' of a .pt2 file is none of fp32"),
        ("there.onnx", "fp32", "is there already"),
        ("no/m.onnx", "fp32", "is no folder"),
    ],
)
def test_file_that_cannot_be_written_is_refused_before_the_work(two_trials, tmp_path, name, precision, message):
    (tmp_path / "there.onnx").write_text("precious")
    with pytest.raises(UsageError, match=message):
        exports.export(two_trials, "cnn-digits", None, tmp_path / name, precision)
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]
    assert (tmp_path / "there.onnx").read_text() == "precious"


def test_unknown_study_writes_nothing(two_trials, tmp_path):
    with pytest.raises(UnknownNameError):
        exports.export(two_trials, "cnn-digit", None, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
