"""Imports point one way, and heavy libraries are imported only where the design says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "recipes").rglob("*.py"), *(ROOT / "orchestrator").rglob("*.py")])

# Whoever imports a module of a layer lies in the same layer or in one above it.
LAYERS = [
    {"cli", "notebook"},
    {
        "cli.running",
        "cli.controlling",
        "cli.records",
        "cli.comparing",
        "cli.models",
        "cli.catalogues",
        "cli.housekeeping",
    },
    {"cli.shared"},
    {"doctor"},
    {"reports.report"},
    {"reports.page"},
    {"reports.sections", "reports.charts", "reports.parallel", "reports.timeline"},
    {"reports.markup", "reports.retyped"},
    {"reports.parts"},
    {"reports.findings", "reports"},
    {"live", "render", "dashboards", "views", "logs", "serving", "bundles", "demo"},
    {"serving.app", "serving.listening"},
    {"serving.batching", "serving.following", "serving.measures", "serving.payloads"},
    {"serving.names", "serving.waking"},
    {"serving.api", "serving.options"},
    {"exports", "plan", "garbage"},
    {
        "coordinator",
        "control",
        "recorded",
        "versions",
        "importing",
        "mirror",
        "promote",
        "evaluate",
        "check",
        "reproduce",
    },
    {"card"},
    {"examination"},
    {
        "mirrors.mlflow_files",
        "mirrors.mlflow_runs",
        "mirrors.mlflow_tabs",
        "mirrors.mlflow_tags",
        "mirrors.optuna_storage",
        "mirrors.tensorboard_events",
    },
    {"predictions"},
    {"backlog"},
    {"leaders", "limits", "standing", "company", "retention", "attempt_files"},
    {"rungs"},
    {"models", "mirror_process", "packing", "probe"},
    {"monitor"},
    {"carrier"},
    {"columns"},
    {
        "registry",
        "ledger",
        "gates",
        "inference",
        "compare",
        "importances",
        "contrasts",
        "search",
        "samplers",
        "recent",
        "provenance",
        "worker",
    },
    {"names"},
    {"mirrors", "mirrors.mlflow_store"},
    {
        "executors",
        "executors.inline",
        "executors.local",
        "executors.ray_cluster",
        "executors.ray_worker",
        "executors.start",
    },
    {"study_catalogue"},
    {"study"},
    {"compatibility"},
    {"fields"},
    {"catalogue", "feasible", "starts", "budget", "pace", "objectives"},
    {"study_files", "overrides", "pruning", "points", "roster", "confirm", "pareto", "depot"},
    {"filters"},
    {"leases", "store", "database", "space", "constraints", "curves", "forkserver", "signals"},
    {"tables", "settings", "processes", "engines", "standalone", "system_metrics", "intervals"},
    {"errors"},
]
ALLOWED_UPWARDS = {
    ("executors.inline", "worker"),  # the inline executor runs a worker's code in its own thread
    ("executors.ray_worker", "worker"),  # a worker's code as an actor
    ("executors.ray_worker", "carrier"),
    ("database", "leases"),  # for types only
}
THIRD_PARTY = {
    "mlflow": {
        "mirrors.mlflow_files",
        "mirrors.mlflow_runs",
        "mirrors.mlflow_store",
        "mirrors.mlflow_tabs",
        "registry",
    },
    "optuna": {"search", "samplers", "recent", "importing", "importances", "mirrors.optuna_storage"},
    "plotly": {"reports.charts"},
    "cmaes": {"samplers"},
    "optuna_dashboard": {"dashboards"},
    "onnxruntime": {"inference", "standalone"},  # a script that goes along with an exported model
    "fastapi": {"serving.app", "demo"},
    "gradio": {"demo"},
    "uvicorn": {"serving.listening"},
    "prometheus_client": {"serving.measures"},
    "orjson": {"serving.payloads"},
    "hydra": {"overrides"},
    "ruamel": {"study_files"},
    "ray": {"executors.ray_cluster"},
    "fsspec": {"depot"},
    "pynvml": {"system_metrics"},
    "rich": {"live", "render"},
    "typer": {
        "cli.running",
        "cli.controlling",
        "cli.records",
        "cli.comparing",
        "cli.models",
        "cli.housekeeping",
        "cli.catalogues",
        "cli.shared",
    },
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Full names of what a file imports; with `top_only`, only what importing the file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def layer(module: str) -> int:
    (found,) = [number for number, names in enumerate(LAYERS) if module in names]
    return found


MODULES = {module_of(path): path for path in SOURCES if path.is_relative_to(ROOT / "orchestrator") and module_of(path)}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_orchestrator_imports_point_one_way(module):
    names = {
        name.removeprefix("orchestrator.") for name in imports(MODULES[module]) if name.startswith("orchestrator.")
    }
    for imported in names & MODULES.keys():
        assert layer(module) <= layer(imported) or (module, imported) in ALLOWED_UPWARDS, f"{module} -> {imported}"


def test_recipes_know_nothing_of_the_orchestrator():
    for path in (ROOT / "recipes").rglob("*.py"):
        roots = {name.partition(".")[0] for name in imports(path)}
        assert not roots & {"orchestrator", "optuna", "mlflow", "typer", "sqlalchemy"}, path.name


@pytest.mark.parametrize("package", sorted(THIRD_PARTY))
def test_third_party_service_is_imported_in_its_own_files_only(package):
    importers = {
        module for module, path in MODULES.items() if package in {name.partition(".")[0] for name in imports(path)}
    }
    assert importers == THIRD_PARTY[package]


def test_command_line_imports_nothing_heavy_at_its_top():
    seen, waiting = set(), ["cli"]
    while waiting:
        module = waiting.pop()
        seen.add(module)
        names = imports(MODULES[module], top_only=True)
        heavy = {name.partition(".")[0] for name in names} - {"__future__", "typer", "orchestrator"}
        assert not heavy & {"torch", "mlflow", "optuna", "sklearn", "sqlalchemy", "pydantic", "rich", "recipes"}, module
        below = {name.removeprefix("orchestrator.") for name in names} & MODULES.keys()
        waiting += below - seen
    assert seen == {"cli", *(name for name in MODULES if name.startswith("cli.")), "errors"}


@pytest.mark.slow
def test_worker_imports_neither_the_searcher_nor_the_trackers():
    code = "import sys, orchestrator.worker, recipes.cnn; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "torch" in modules
    assert not modules & {"optuna", "mlflow", "tensorboard", "typer", "rich", "sklearn", "onnx", "onnxruntime"}
