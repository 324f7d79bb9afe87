"""MLflow's tabs of data sets and models, filled from the record."""

from __future__ import annotations

import json

import mlflow.onnx
import numpy as np
import pytest
from mlflow.artifacts import download_artifacts
from mlflow.pyfunc import load_model
from onnx import TensorProto, helper

from orchestrator import mirror
from orchestrator.mirror import sync
from orchestrator.mirrors import mlflow_runs, mlflow_tabs
from orchestrator.tables import State
from tests.support.sweeps import in_mlflow, runs_of, value_of

DIGEST = f"{'d' * 16}-{'e' * 16}"


def double():
    """An ONNX file that doubles what it gets."""
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("rows", "logits")]
    node = helper.make_node("Add", ["rows", "rows"], ["logits"])
    graph = helper.make_graph([node], "double", shapes[:1], shapes[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()


def models_of(settings):
    client, runs = runs_of(settings)
    experiment = runs[-1].info.experiment_id
    return client, runs, client.search_logged_models([experiment])


@pytest.fixture
def exported(sweep):
    """A complete trial with its ONNX file, and one without, in MLflow."""
    trial = sweep.run()
    sweep.run(State.PRUNED, num_epochs=1)
    sweep.export(trial, double())
    sync(sweep.settings)
    return sweep


def test_every_run_says_what_data_it_is_trained_on_and_once(exported):
    exported.extend(trials=5)
    for _ in range(2):
        sync(exported.settings)
    _, runs = runs_of(exported.settings)
    assert runs.keys() == {-1, 0, 1}
    for run in runs.values():
        (given,) = run.inputs.dataset_inputs
        assert (given.dataset.name, given.dataset.digest) == ("digits", DIGEST)
        told = {"uri": "digits", "split_seed": 0, "data_fingerprint": "d" * 64, "split_fingerprint": "e" * 64}
        assert json.loads(given.dataset.source) == told
        assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training, validation")]


def test_run_that_lacks_its_data_gets_them(sweep, monkeypatch):
    """As one of a mirror that was killed in between, or that knew nothing of data sets."""
    sweep.run()
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_runs, "dataset_of", lambda _: None)
        sync(sweep.settings)
    assert [len(run.inputs.dataset_inputs) for run in runs_of(sweep.settings)[1].values()] == [0, 0]
    sync(sweep.settings)
    assert [len(run.inputs.dataset_inputs) for run in runs_of(sweep.settings)[1].values()] == [1, 1]


def test_study_of_unknown_data_has_none(sweep):
    spec = {key: value for key, value in sweep.study.spec.items() if key != "provenance"}
    sweep.record.update_study(sweep.lease, sweep.study.id, spec)
    sweep.run()
    sync(sweep.settings)
    assert [run.inputs.dataset_inputs for run in runs_of(sweep.settings)[1].values()] == [[], []]


def test_exported_trial_is_a_model_with_the_figures_of_its_epoch(exported):
    _, runs, (model,) = models_of(exported.settings)
    assert (model.name, str(model.status), model.source_run_id) == ("trial-0", "READY", runs[0].info.run_id)
    assert model.params == {"lr": "0.001", "width": "32", "optimizer": "sgd"}
    assert {(metric.key, metric.step, metric.value) for metric in model.metrics} == {
        (name, 3, value_of(0, 3, name)) for name in ("train_loss", "val_loss", "val_accuracy")
    }
    assert {(metric.dataset_name, metric.dataset_digest) for metric in model.metrics} == {("digits", DIGEST)}
    assert runs[0].data.tags["orch.model_id"] == model.model_id
    assert runs[0].outputs.model_outputs == [], "which is what was promoted"
    assert in_mlflow(exported.settings)[0] == [(at, value_of(0, at, "val_loss")) for at in (1, 2, 3)], "each once"


def test_model_is_one_that_mlflow_reads(exported):
    client, _, (model,) = models_of(exported.settings)
    mlflow.set_tracking_uri(client.tracking_uri)
    folder = download_artifacts(artifact_uri=model.artifact_location, tracking_uri=client.tracking_uri)
    (answer,) = load_model(folder).predict(np.ones((2, 3), np.float32)).values()
    assert answer.tolist() == [[2.0] * 3] * 2
    assert mlflow.onnx.load_model(folder).graph.name == "double"


@pytest.mark.parametrize(("step", "status"), [("lay_out", "PENDING"), ("_metrics", "READY")])
def test_model_that_a_kill_left_half_made_is_finished(sweep, monkeypatch, step, status):
    trial = sweep.run()
    sweep.export(trial, double())

    class KilledError(BaseException):
        pass

    def kill(*_, **__):
        raise KilledError

    monkeypatch.setattr(mlflow_tabs, step, kill)
    place = mirror.Place(
        settings=sweep.settings, record=sweep.record, lease=sweep.lease, study=sweep.record.study(sweep.name)
    )
    follower = mirror.Follower("mlflow", place)
    with pytest.raises(KilledError):
        follower.step()
    assert [str(model.status) for model in models_of(sweep.settings)[2]] == [status]
    monkeypatch.undo()
    for _ in range(2):
        sync(sweep.settings)
    _, _, (model,) = models_of(sweep.settings)
    assert str(model.status) == "READY"
    assert {metric.key for metric in model.metrics} == {"train_loss", "val_loss", "val_accuracy"}


def test_export_that_is_no_onnx_model_is_a_warning_and_all_else_arrives(sweep, caplog):
    trial = sweep.run()
    sweep.export(trial)
    sync(sweep.settings)
    assert "is no ONNX model; MLflow lists no model of trial 0 of s" in caplog.text
    _, runs, _ = models_of(sweep.settings)
    assert runs[0].data.tags["orch.state"] == "complete"
    assert "orch.model_id" not in runs[0].data.tags


def test_models_go_with_their_study(exported):
    client, _, (model,) = models_of(exported.settings)
    exported.close()
    mirror.remove(exported.settings, "s")
    assert client.search_logged_models([model.experiment_id]) == []
