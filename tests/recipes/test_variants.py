from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import recipes
from recipes import data, metrics, variants
from recipes.config import DatasetConfig, make
from recipes.export import ExportError, check_one_file, export_onnx

if TYPE_CHECKING:
    from pathlib import Path

SMALL = {"mlp": {"width": 32}, "cnn": {"width": 8}, "vit": {"dim": 16, "depth": 1}}


@dataclass(frozen=True)
class Exported:
    model: nn.Module
    info: data.ImageInfo
    images: torch.Tensor
    onnx: Path
    expected: Any


@pytest.fixture(
    scope="module", params=["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cnn", "vit"))]
)
def exported(request, tmp_path_factory):
    torch.manual_seed(0)
    recipe, dataset = recipes.load(request.param), data.load(DatasetConfig())
    model = recipe.module.build_model(make(recipe.config_type, SMALL[request.param]), dataset.info).eval()
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, dataset.info, path, {"study": "s"})
    expected = metrics.outputs_of(model, dataset.val, dataset.info).numpy()
    return Exported(model, dataset.info, dataset.val.images, path, expected)


@pytest.mark.parametrize(("write", "tolerance"), [(variants.write_half, 0.01), (variants.write_quantised, 0.15)])
def test_converted_file_is_smaller_one_file_and_nearly_the_same(exported, tmp_path, write, tolerance):
    path = tmp_path / "made.onnx"
    write(exported.onnx, path)
    check_one_file(path)
    assert path.stat().st_size < 0.8 * exported.onnx.stat().st_size
    found = variants.answers_of(variants.opened(path), exported.images)
    difference = np.abs(found - exported.expected).max()
    assert 0 < difference < tolerance * np.abs(exported.expected).max()
    assert [file.name for file in tmp_path.iterdir()] == ["made.onnx"]


@pytest.mark.parametrize("write", [variants.write_half, variants.write_quantised])
def test_converted_file_keeps_its_names_and_takes_any_batch_and_size(exported, tmp_path, write):
    path = tmp_path / "made.onnx"
    write(exported.onnx, path)
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert told == {"study": "s", "task": "classification", "class_names": json.dumps(exported.info.class_names)}
    run = variants.opened(path)
    for shape in ((1, 8, 8, 1), (5, 20, 13, 1)):
        assert run(np.zeros(shape, np.uint8)).shape == (shape[0], 10)


def test_file_can_take_the_place_of_its_source(exported, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported.onnx.read_bytes())
    variants.write_half(path, path)
    assert path.stat().st_size < exported.onnx.stat().st_size


def test_program_of_torch_gives_what_the_model_gives(exported, tmp_path):
    path = tmp_path / "model.pt2"
    variants.write_program(exported.model, exported.info, path)
    run = variants.opened(path)
    np.testing.assert_allclose(variants.answers_of(run, exported.images), exported.expected, atol=1e-5)
    assert run(np.zeros((3, 20, 13, 1), np.uint8)).shape == (3, 10)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :10] if x.sum() > 0 else x.flatten(1)[:, -10:]


def test_model_that_torch_cannot_export_is_one_line_and_leaves_no_file(tmp_path):
    info = data.load(DatasetConfig()).info
    with pytest.raises(ExportError, match=r"^torch can't export the model: [^\n]+$"):
        variants.write_program(Branching(), info, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_latency_is_the_median_of_the_runs_after_the_warm_up(monkeypatch):
    durations = [9] * variants.NUM_WARM_UPS + [1, 3, 2] * (variants.NUM_RUNS // 3)
    ends = np.cumsum(durations).tolist()
    now = iter([moment for start, end in zip([0, *ends], ends, strict=False) for moment in (start, end)])
    monkeypatch.setattr(variants.time, "perf_counter", lambda: next(now))
    sizes = []
    images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    assert variants.latency_milliseconds(lambda pictures: sizes.append(pictures.shape), images, 7) == 2000
    assert set(sizes) == {(7, 8, 8, 1)}
