"""What MLflow's runs say of a study and its trials, as parameters and tags. Pure: rows in, text out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from orchestrator.space import describe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.mirrors import Snapshot
    from orchestrator.tables import Study


def study_params(study: Study) -> dict[str, Any]:
    """What may not change in a study; MLflow refuses another value for a parameter."""
    spec = study.spec
    return {
        "recipe": study.recipe,
        "data": study.data,
        **{f"fixed.{name}": value for name, value in spec.get("fixed", {}).items()},
        **{f"space.{name}": describe(searched) for name, searched in spec.get("space", {}).items()},
        **({"constraints": "; ".join(spec["constraints"])} if spec.get("constraints") else {}),
    }


def study_tags(study: Study, key: str) -> dict[str, str]:
    """Tags of the parent run; they may change with the study's budget."""
    spec = study.spec
    found = {
        **_common_tags(study, key),
        **spec.get("budget", {}),
        **{f"{name}_version": text for name, text in spec.get("provenance", {}).get("versions", {}).items()},
        "code_hash": spec.get("code_hash"),
        "version_of": (spec.get("version") or {}).get("of"),
    }
    return _prefixed(found)


def trial_tags(study: Study, snapshot: Snapshot, key: str, launch: Mapping[str, Any] | None) -> dict[str, str]:
    """Tags of a trial's run, as the trial is now; `launch` is what its last attempt ran with, where that is known.

    Of those that MLflow's UI shows of every run, there are its source and commit.
    """
    trial = snapshot.trial
    ran_with = launch or study.spec.get("provenance", {})
    versions = ran_with.get("versions", {})
    found = {
        **_common_tags(study, key),
        "commit": ran_with.get("commit"),
        "uncommitted": "yes" if ran_with.get("diff") else None,
        "command": ran_with.get("command"),
        "threads": trial.threads,
        "launch": snapshot.attempts[-1].launch if snapshot.attempts else None,
        "seed": trial.config.get("seed"),
        "device": snapshot.attempts[-1].device if snapshot.attempts else None,
        "orch_version": versions.get("orch"),
        "torch_version": versions.get("torch"),
        "trial": trial.number,
        "confirms": trial.confirms,
        "kept_from": _origin(study, trial.number),
        "state": trial.state.value,
        "attempts": len(snapshot.attempts),
        "worker": snapshot.attempts[-1].worker if snapshot.attempts else None,
        "reason": trial.reason.value if trial.reason else None,
        "message": trial.message,
    }
    return {**_prefixed(found), **_source(ran_with)}


def launch_files(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What a launch ran with, as texts by the names of files: for people, `pip install -r` and `git apply`."""
    files = {
        "launch.json": json.dumps({k: v for k, v in provenance.items() if k not in {"diff", "packages"}}, indent=1),
        "packages.txt": "".join(f"{name}=={version}\n" for name, version in provenance["packages"].items()),
        "uncommitted.diff": provenance["diff"],
    }
    return {name: text for name, text in files.items() if text}


def _source(ran_with: Mapping[str, Any]) -> dict[str, str]:
    command, commit = ran_with.get("command"), ran_with.get("commit")
    shown = {
        "mlflow.source.name": command,
        "mlflow.source.type": command and "LOCAL",
        "mlflow.source.git.commit": commit,
    }
    return {name: value for name, value in shown.items() if value}


def _origin(study: Study, number: int) -> str | None:
    """The trial of the version before that was taken over as this one."""
    version = study.spec.get("version") or {"kept": []}
    return f"{version['former']}/{version['kept'][number]}" if number < len(version["kept"]) else None


def _common_tags(study: Study, key: str) -> dict[str, Any]:
    provenance = study.spec.get("provenance", {})
    return {
        "study": study.name,
        "study_id": key,
        "recipe": study.recipe,
        "data": study.data,
        "split_seed": study.spec.get("split_seed"),
        "seed": study.spec.get("seed"),
        **{name: provenance.get(name) for name in ("data_fingerprint", "split_fingerprint", "commit", "machine")},
    }


def _prefixed(found: Mapping[str, Any]) -> dict[str, str]:
    return {f"orch.{name}": str(value) for name, value in found.items() if value is not None and value != ""}
