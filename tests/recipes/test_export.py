from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import recipes
from recipes import data, export, mlp
from recipes.config import DatasetConfig, make
from recipes.data import ImageInfo
from recipes.data.types import Column
from recipes.export import Deployed, ExportError, check_one_file, export_onnx, parity
from recipes.loop import Attempt
from recipes.model_file import restore_model
from tests.support.infos import info

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LIMIT = 1e-4
RGB = ImageInfo(
    channels=3,
    height=6,
    width=10,
    num_classes=2,
    class_names=("Katze", 'Hund "ü"'),
    mean=(0.2, 0.4, 0.6),
    std=(0.1, 0.2, 0.3),
)


class Linear(nn.Module):
    """One layer on all pixels."""

    def __init__(self, info: ImageInfo) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(info.channels * info.height * info.width, info.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


class FrozenBatch(Linear):
    """Asks for its batch by `len`, which torch takes for a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(len(x), -1))


class Undecided(Linear):
    """Takes a way that depends on the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)) if x.sum() > 0 else self.layer(-x.flatten(1))


def pictures(number: int, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (number, height, width, channels), dtype=np.uint8)


def run(path: Path, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip(export.OUTPUTS, session.run(list(export.OUTPUTS), {"images": images}), strict=True))


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("linear") / "model.onnx"
    export_onnx(Linear(RGB), RGB, path, {"recipe": "linear"})
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, {}) for name in recipes.BUILT_IN),
        ("resnet", {"layers": 18, "width": 8, "stochastic_depth": 0.2}),
        ("resnet", {"layers": 50, "width": 8}),
        ("vit", {"pool": "token", "stochastic_depth": 0.2}),
        ("cnn", {"growth": 1.5, "batch_norm": False, "init": "kaiming"}),
        ("mlp", {"activation": "gelu", "init": "xavier"}),
        ("mlp", {"activation": "silu"}),
        ("mlp", {"activation": "tanh"}),
    ],
)
def test_trained_recipe_answers_as_in_pytorch_for_every_batch_and_size(name, values, tmp_path):
    recipe = recipes.load(name)
    list(recipe.module.train(make(recipe.config_type, {"epochs": 1, **values}), Attempt(folder=tmp_path)))
    model, info, _ = restore_model(recipe, tmp_path / "best.safetensors")
    path = tmp_path / "model.onnx"
    export_onnx(model, info, path, {})
    images = data.load(DatasetConfig()).val.images[:40].permute(0, 2, 3, 1).numpy()
    assert parity(model, info, path, list(images)) < LIMIT

    deployed = Deployed(model, info).eval()
    for shape in [(1, 8, 8), (40, 8, 8), (2, 1, 1), (5, 3, 30), (1, 200, 100)]:
        batch = pictures(*shape, 1)
        with torch.inference_mode():
            expected = [output.numpy() for output in deployed(torch.from_numpy(batch))]
        for found, wanted in zip(run(path, batch).values(), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=LIMIT)


def test_graph_normalises_colours_and_orders_channels(linear):
    images = pictures(4, 6, 10, 3)
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (RGB.mean, RGB.std))
    with torch.inference_mode():
        logits = Linear(RGB).double()((planes - mean) / std)
    found = run(linear, images)
    np.testing.assert_allclose(found["logits"], logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(found["probabilities"], logits.softmax(1).numpy(), atol=1e-4)


def test_larger_image_is_averaged_to_the_models_size(linear):
    tile = np.full((4, 4), 255, np.uint8)
    # What is left if only the pixels next to the middle of each tile are looked at.
    tile[1:3, 1:3] = 0
    tiles = np.tile(tile[None, :, :, None], (1, 6, 10, 3))
    flat, black = (np.full((1, 6, 10, 3), value, np.uint8) for value in (255 * 12 // 16, 0))
    mixed, averaged, sampled = (run(linear, images)["logits"] for images in (tiles, flat, black))
    assert np.abs(mixed - averaged).max() < 0.2 < np.abs(mixed - sampled).max()


def test_file_describes_itself(linear):
    session = onnxruntime.InferenceSession(linear, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", "height", "width", 3])
    assert [(output.name, output.shape) for output in session.get_outputs()] == [
        ("logits", ["batch", 2]),
        ("probabilities", ["batch", 2]),
    ]
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["recipe"] == "linear"
    assert tuple(json.loads(metadata["class_names"])) == RGB.class_names
    onnx.checker.check_model(linear, full_check=True)


def test_file_says_nothing_of_the_code_it_came_from(linear):
    assert b"Deployed" not in linear.read_bytes()
    assert b"pkg.torch" not in linear.read_bytes()


def test_export_is_silent_alone_and_leaves_the_model_as_it_is(tmp_path, capfd):
    model = Linear(RGB).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, RGB, tmp_path / "model.onnx", {})
    assert capfd.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_parity_sees_other_weights(linear):
    model, images = Linear(RGB), list(pictures(3, 30, 20, 3))
    assert parity(model, RGB, linear, images) < LIMIT
    with torch.no_grad():
        model.layer.bias[1] += 0.5
    assert parity(model, RGB, linear, images) == pytest.approx(0.5, abs=1e-3)


def test_parity_of_a_model_that_answers_nan_is_nan(linear):
    model = Linear(RGB)
    nn.init.constant_(model.layer.bias, float("nan"))
    assert np.isnan(parity(model, RGB, linear, list(pictures(1, 6, 10, 3))))


def test_parity_refuses_a_frozen_batch(tmp_path):
    model, path = FrozenBatch(RGB), tmp_path / "model.onnx"
    export_onnx(model, RGB, path, {})
    with pytest.raises(ExportError, match=r"fails on images \(1, 6, 10, 3\)"):
        parity(model, RGB, path, list(pictures(1, 6, 10, 3)))


def test_model_that_torch_cannot_export_is_refused_in_a_line(tmp_path, capfd):
    with pytest.raises(ExportError, match=r"torch can.t export the model: .*data-dependent") as refused:
        export_onnx(Undecided(RGB), RGB, tmp_path / "model.onnx", {})
    assert "\n" not in str(refused.value)
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_model_too_large_for_one_file_is_refused(tmp_path):
    with torch.device("meta"):
        model = nn.Linear(2**15, 2**14)
    with pytest.raises(ExportError, match=r"2,147,549,184 bytes are more than"):
        export_onnx(model, RGB, tmp_path / "model.onnx", {})


def test_tensors_in_another_file_are_refused(tmp_path, linear):
    model: Any = onnx.load(linear)
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="tensors.bin", size_threshold=0)
    assert (tmp_path / "tensors.bin").exists()
    for check in (check_one_file, lambda path: parity(Linear(RGB), RGB, path, list(pictures(1, 6, 10, 3)))):
        with pytest.raises(ExportError, match="in another file"):
            check(path)


def test_tensor_in_another_file_is_found_in_a_subgraph(tmp_path):
    tensor = onnx.TensorProto(name="hidden", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.external_data.add(key="location", value="../secret")
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    inner = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["y"], value=tensor)], "inner", [], [output])
    condition = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    path = tmp_path / "model.onnx"
    path.write_bytes(
        onnx.helper.make_model(onnx.helper.make_graph([node], "outer", [condition], [output])).SerializeToString()
    )
    with pytest.raises(ExportError, match="keeps 'hidden' in another file"):
        check_one_file(path)


def test_whole_file_is_accepted_and_a_broken_one_is_named(tmp_path, linear):
    check_one_file(linear)
    whole = linear.read_bytes()
    for name, content in {"text": b"not a model\n", "empty": b"", "truncated": whole[: len(whole) // 2]}.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ExportError, match=f"{name} is not an ONNX file"):
            check_one_file(path)
    with pytest.raises(ExportError, match="missing is not an ONNX file"):
        check_one_file(tmp_path / "missing")


def test_numbers_leave_in_their_own_units(tmp_path):
    about = replace(RGB, task="regression", target_mean=(100.0, -5.0), target_std=(20.0, 0.5))
    model, path = Linear(about), tmp_path / "m.onnx"
    export_onnx(model, about, path, {})
    (values,) = export.Session(path)(np.zeros((1, 6, 10, 3), np.uint8))
    black = torch.tensor([(0 - m) / s for m, s in zip(about.mean, about.std, strict=True)])
    expected = model(black.view(1, 3, 1, 1).expand(1, 3, 6, 10)) * torch.tensor([20.0, 0.5]) + torch.tensor([100.0, -5])
    np.testing.assert_allclose(values, expected.detach().numpy(), rtol=1e-5)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 6, 10, 3), np.uint8)
    assert parity(model, about, path, pictures) < LIMIT


def test_labels_leave_with_a_probability_each(tmp_path):
    about, path = replace(RGB, task="multilabel"), tmp_path / "m.onnx"
    export_onnx(Linear(about), about, path, {})
    logits, probabilities = export.Session(path)(np.zeros((1, 6, 10, 3), np.uint8))
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), rtol=1e-5)


def test_table_leaves_with_its_columns_and_takes_rows_with_gaps(tmp_path):
    columns = (Column(name="x", mean=3.0, std=2.0, has_gaps=True), Column(name="c", categories=("a", "b", "c")))
    about, path = info(["no", "yes"], height=1, width=2, columns=columns), tmp_path / "m.onnx"
    model = mlp.build_model(make(mlp.Config, {"width": 8}), about).eval()
    export_onnx(model, about, path, {})
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(told["columns"]) == [
        {"name": "x", "categories": []},
        {"name": "c", "categories": ["a", "b", "c"]},
    ]
    rows = np.array([[1.0, 0.0], [np.nan, 2.0], [5.0, np.nan]], np.float32)
    assert parity(model, about, path, rows) < LIMIT
    assert len({row.tobytes() for row in export.Session(path)(rows)[0]}) == 3
