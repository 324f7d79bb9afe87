"""From the best trial to `@champion`: the way through the gates, the move of the alias, and the way back.

A move is four steps: the ledger is told that it begins, `@champion` moves, `@previous` moves, the ledger is told that
it is done. A kill between any two leaves `@champion` at the old or the new version, never at none, and the next
promotion or rollback does the rest.
"""

from __future__ import annotations

import re
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator import card, compare, ledger, names
from orchestrator.budget import GATES
from orchestrator.errors import HeldError, RefusedError, UnavailableError, UsageError
from orchestrator.examination import SEEN, TRAINED_ON, Examination, trained_on_of
from orchestrator.executors import Exported, ExportSpec
from orchestrator.executors.inline import done
from orchestrator.leases import Holding, study_lease
from orchestrator.models import accepted_attempt, check_hash, file_of
from orchestrator.objectives import of_spec
from orchestrator.recorded import check_trained_here, from_record
from orchestrator.registry import Registry
from orchestrator.store import Record
from orchestrator.study import change_budget
from orchestrator.tables import Export, Promotion, State
from recipes.config import objective_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from orchestrator.budget import Budget
    from orchestrator.examination import Findings
    from orchestrator.leases import Lease
    from orchestrator.settings import Settings
    from orchestrator.tables import Study, Trial

CHAMPION, PREVIOUS = "champion", "previous"
SHOWN = ("name", "figure", "limit", "passed", "difference")  # of a gate in the ledger


@dataclass(frozen=True, kw_only=True)
class Promoted:
    """Where an alias is now, and on what figures; `already` if it was there before.

    There is no `version` where nothing was to be moved.
    """

    model: str
    version: str | None
    previous: str | None
    metric: str  # such as test_accuracy
    score: float
    gates: tuple[dict[str, Any], ...]
    already: bool = False
    alias: str = CHAMPION
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "model": self.model,
            "version": self.version,
            "alias": self.alias,
            "previous": self.previous,
            self.metric: self.score,
            "gates": list(self.gates),
            "already": self.already,
            "reason": self.reason,
        }


def promote(
    settings: Settings,
    study: str | None = None,
    trial: int | None = None,
    *,
    alias: str = CHAMPION,
    limits: Sequence[str] = (),
    dry_run: bool = False,
    force: str = "",
) -> Promoted:
    """Make a trial, or the best complete one of a study, what `alias` names of the model, if it passes every gate.

    `limits` as in `max_size_mb=5` count in place of the study's own. With `dry_run` nothing is registered or moved. A
    reason given as `force` lets it through the gates but for those that say that the files are what was trained.

    Raises:
        UsageError: no such study, several and none named, no complete trial, a limit or an alias that is not possible.
        RefusedError: a gate said no.
        HeldError: another process moves this model's aliases.
        UnavailableError: MLflow cannot be reached, or the alias was moved by another meanwhile.
    """
    check_alias(alias)
    with closing(Record.open(settings.record_url)) as record:
        row = choose(record, study)
        check_trained_here(row)
        budget = change_budget(from_record(row), _checked(limits)).budget
        with _moving(record, names.family(row)) as lease:
            candidate = _Promotion(settings, record, lease, row, trial, alias=alias, limits=budget, reason=force)
            return candidate.try_out() if dry_run else candidate.run()


def rollback(settings: Settings, model: str, *, to: str | None = None, alias: str = CHAMPION) -> Promoted:
    """Let an alias name a version that it named before: `to`, or else the one of `@previous`, which is swapped with it.

    Raises:
        UnknownNameError: nothing was promoted under that name.
        UsageError: there is no such version, or its file is not what was promoted.
        HeldError: another process moves this model's aliases.
        UnavailableError: MLflow cannot be reached.
    """
    check_alias(alias)
    with closing(Record.open(settings.record_url)) as record:
        ledger.entries(record, model)
        with _moving(record, model) as lease:
            registry = Registry(settings)
            finished = _finish_killed_move(record, lease, registry, model, alias)
            if finished is not None and finished.kind == "rollback" and to in {None, finished.to_version}:
                return _promoted(finished, finished.from_version)
            aliases = registry.aliases(model)
            present, former = aliases.get(alias), to or aliases.get(previous_of(alias))
            if former is None:
                raise UsageError(f"model {model!r} has no former version to go back to")
            if former == present:
                raise UsageError(f"version {former} of model {model!r} is @{alias} already")
            entry = ledger.entry(record, model, former)
            file_of(settings, registry, entry)
            changes = {"kind": "rollback", "alias": alias, "from_version": present, "who": ledger.user()}
            entry = ledger.copied(entry, **changes, reason=None)
            _move(record, lease, registry, entry)
            return _promoted(entry, present)


def history(record: Record, model: str) -> list[dict[str, Any]]:
    """All moves of a model's aliases as the ledger has them, the oldest first; one that was killed is `promoting`.

    Raises:
        UnknownNameError: nothing was promoted under that name.
    """
    return [
        {
            "when": entry.recorded_at,
            "who": entry.who,
            "kind": entry.kind,
            "alias": entry.alias,
            "from": entry.from_version,
            "to": entry.to_version,
            "study": entry.study,
            "trial": entry.trial,
            "run_id": entry.run_id,
            "sha256": entry.sha256,
            "score": entry.test_score,
            "metric": _metric(trained_on_of(entry)[0]),
            "figures": entry.figures,
            "gates": _shown(entry),
            "reason": entry.reason,
        }
        for entry in ledger.moves(record, model)
    ]


# -- names and leases


def check_alias(alias: str) -> None:
    """See that an alias is one to promote to.

    Raises:
        UsageError: MLflow refuses it, or it is one that promotions set by themselves.
    """
    if not re.fullmatch(r"[\w-]{1,200}", alias, re.ASCII):
        raise UsageError(f"alias {alias!r} has other characters than letters, digits, - and _")
    if alias.lower() == "latest" or re.fullmatch(r"v\d+", alias, re.IGNORECASE):
        raise UsageError(f"alias {alias!r} is reserved: MLflow takes it for a version")
    if alias == PREVIOUS or alias.endswith(f"-{PREVIOUS}"):
        raise UsageError(f"alias {alias!r} is reserved for what `orch rollback` goes back to")


def previous_of(alias: str) -> str:
    """The alias of the version that another named before."""
    return PREVIOUS if alias == CHAMPION else f"{alias}-{PREVIOUS}"


def _checked(limits: Sequence[str]) -> list[str]:
    for limit in limits:
        if limit.partition("=")[0] not in GATES:
            raise UsageError(f"{limit}: promotion takes {', '.join(GATES)}")
    return list(limits)


@contextmanager
def _moving(record: Record, model: str) -> Iterator[Lease]:
    """Hold the right to move a model's champion."""
    try:
        holding = Holding(record, f"model:{model}")
    except HeldError as error:
        raise HeldError(f"{error}, which is about to move @{CHAMPION} or another alias; look again then") from error
    with holding as lease:
        yield lease


def choose(record: Record, name: str | None) -> Study:
    """The study of that name, or the only one.

    Raises:
        UsageError: there is none, or several and none named.
    """
    if name is not None:
        return names.named(record, name)
    studies = [study for study in record.studies() if names.is_newest(record, study) and not study.is_archived]
    if len(studies) == 1:
        return studies[0]
    known = ", ".join(study.name for study in studies)
    raise UsageError(f"there are {len(studies)} studies, name one of them: {known}" if known else "there is no study")


# -- moving the alias


def _move(record: Record, lease: Lease, registry: Registry, entry: Promotion) -> None:
    """Do what `entry` says; a kill in between leaves its alias where it was or where it is to be."""
    now = registry.aliases(entry.model).get(entry.alias)
    if now != entry.from_version:
        raise UnavailableError(f"@{entry.alias} of {entry.model!r} was moved to version {now} meanwhile; start again")
    ledger.begin(record, lease, entry)
    registry.point(entry.model, entry.alias, entry.to_version)
    _end_move(record, lease, registry, entry)


def _end_move(record: Record, lease: Lease, registry: Registry, entry: Promotion) -> None:
    if entry.from_version is not None:
        registry.point(entry.model, previous_of(entry.alias), entry.from_version)
    ledger.end(record, lease, entry)


def _finish_killed_move(record: Record, lease: Lease, registry: Registry, model: str, alias: str) -> Promotion | None:
    """Where a move was killed after the alias moved, do the rest of it and return its entry."""
    entry = ledger.unfinished(record, model, alias)
    if entry is None or registry.aliases(model).get(alias) != entry.to_version:
        return None
    _end_move(record, lease, registry, entry)
    return entry


def _promoted(entry: Promotion, previous: str | None, *, already: bool = False) -> Promoted:
    return Promoted(
        model=entry.model,
        version=entry.to_version,
        previous=previous,
        metric=_metric(trained_on_of(entry)[0]),
        score=entry.test_score,
        gates=tuple(_shown(entry)),
        already=already,
        alias=entry.alias,
        reason=entry.reason,
    )


def _shown(entry: Promotion) -> list[dict[str, Any]]:
    return [{key: gate[key] for key in SHOWN if key in gate} for gate in entry.gates]


# -- a candidate


class _Promotion:
    """One promotion under its lease."""

    def __init__(
        self,
        settings: Settings,
        record: Record,
        lease: Lease,
        study: Study,
        number: int | None,
        *,
        alias: str,
        limits: Budget,
        reason: str,
    ) -> None:
        self._settings, self._record, self._lease, self._study = settings, record, lease, study
        self._alias, self._limits, self._reason = alias, limits, reason
        self._model = names.family(study)  # versions of a study are measured against the same champion
        self._trial = self._best_trial() if number is None else self._named_trial(number)
        if "data" not in self._trial.config:
            raise UsageError(f"recipe {study.recipe} brings its own data: there are no test images to judge it on")
        self._attempt = accepted_attempt(record, self._trial)
        self._folder = settings.attempt_folder(study.name, self._trial.number, self._attempt.number)
        self._registry = Registry(settings)

    def run(self) -> Promoted:
        """Go through the gates and move the alias."""
        _finish_killed_move(self._record, self._lease, self._registry, self._model, self._alias)
        aliases = self._registry.aliases(self._model)
        champion = self._champion(aliases.get(self._alias))
        export = self._record.exports(self._study.id).get(self._trial.number)
        if champion and export and champion.sha256 == export.sha256:
            return _promoted(champion, aliases.get(previous_of(self._alias)), already=True)
        export, found = self._examine(champion)
        entry = self._entry(export, found, champion)
        entry.run_id = self._run_id()
        entry.to_version = self._known_version(export) or self._register(export, found, entry)
        _move(self._record, self._lease, self._registry, entry)
        return _promoted(entry, entry.from_version)

    def try_out(self) -> Promoted:
        """Go through the gates, and say what would be."""
        aliases = self._registry.aliases(self._model)
        champion = self._champion(aliases.get(self._alias))
        export, found = self._examine(champion)
        return replace(_promoted(self._entry(export, found, champion), aliases.get(self._alias)), version=None)

    # -- the candidate

    def _best_trial(self) -> Trial:
        study = self._study
        if ":" in study.name:
            raise UsageError(f"MLflow registers no model with a colon in its name: {study.name!r}")
        trials, epochs = self._record.trials(study.id), self._record.epochs(study.id)
        leaders = compare.ranked(trials, epochs, of_spec(study.spec))
        if not leaders:
            raise UsageError(f"study {study.name!r} has no complete trial yet")
        return leaders[0]

    def _named_trial(self, number: int) -> Trial:
        trial = self._record.trial(self._study.id, number)
        if trial is None or trial.state is not State.COMPLETE:
            state = trial.state.value if trial else "not there"
            raise UsageError(f"trial {number} of {self._study.name!r} is {state}; only a complete one is promoted")
        return trial

    def _examine(self, champion: Promotion | None) -> tuple[Export, Findings]:
        for name, expected in (self._attempt.manifest or {}).items():
            check_hash(self._folder / name, expected, RefusedError)
        export = self._record.exports(self._study.id).get(self._trial.number) or self._export()
        check_hash(self._settings.home / export.file, export.sha256, RefusedError)
        examination = Examination(
            self._settings, self._study, self._trial, export=export, folder=self._folder, limits=self._limits
        )
        return export, examination.run(self._registry, champion, insist=not self._reason)

    def _export(self) -> Export:
        """Write the ONNX file that the sweep did not write."""
        with Holding(self._record, study_lease(self._study.name)) as lease:
            spec = ExportSpec(
                study=self._study.name,
                trial=self._trial.number,
                attempt=self._attempt.number,
                recipe=self._study.recipe,
                config=self._trial.config,
                folder=str(self._folder),
            )
            (event,) = done(spec)
            assert isinstance(event, Exported), "an export ends with its one event"
            if event.error:
                raise RefusedError(f"trial {self._trial.number} cannot be exported: {event.error}")
            export = Export(
                trial_id=self._trial.id,
                file=str((self._folder / event.file).relative_to(self._settings.home)),
                sha256=event.sha256,
                size_bytes=event.size_bytes,
                max_difference=event.max_difference,
                error=None,
                recorded_at=time.time(),
            )
            self._record.add_export(lease, self._trial, export)
            return export

    def _run_id(self) -> str:
        """The MLflow run of the trial; the mirrors are brought up to date if it is not there yet."""
        from orchestrator import mirror

        if self._trial.number not in self._record.run_ids(self._study.id):
            with suppress(UnavailableError):  # it may be another mirror than MLflow
                mirror.sync(self._settings, self._study.name)
        run_id = self._record.run_ids(self._study.id).get(self._trial.number)
        if run_id is None:
            name = self._study.name
            raise UnavailableError(f"MLflow has no run of trial {self._trial.number}; `orch sync {name}` says why")
        return run_id

    # -- the champion

    def _champion(self, version: str | None) -> Promotion | None:
        """The ledger's entry on what the alias names now, if it names anything."""
        entry = ledger.find(self._record, self._model, version) if version else None
        if version and entry is None:
            raise RefusedError(
                f"@{self._alias} of {self._model!r} is version {version}, which `orch promote` did not make; "
                "delete or move the alias in MLflow first"
            )
        return entry

    # -- the version

    def _known_version(self, export: Export) -> str | None:
        """The version that has this very file, if it was promoted before and is whole."""
        former = ledger.find_file(self._record, self._model, export.sha256)
        if former is None:
            return None
        with suppress(UsageError, UnavailableError):  # it was deleted or damaged
            file_of(self._settings, self._registry, former)
            return former.to_version
        return None

    def _entry(self, export: Export, found: Findings, champion: Promotion | None) -> Promotion:
        """The ledger's entry for when the alias names the candidate; its run and its version are yet to come."""
        gates = [
            {**gate.to_json(), **({TRAINED_ON: found.trained_on} if gate.name == SEEN else {})} for gate in found.gates
        ]
        is_forced = not all(gate.passed for gate in found.gates)
        return Promotion(
            model=self._model,
            kind="promote",
            from_version=champion.to_version if champion else None,
            to_version="",
            study=self._study.name,
            trial=self._trial.number,
            run_id="",
            sha256=export.sha256,
            test_score=found.score,
            gates=gates,
            who=ledger.user(),
            alias=self._alias,
            reason=self._reason if is_forced else None,
            figures=found.figures(),
            recorded_at=time.time(),
        )

    def _register(self, export: Export, found: Findings, entry: Promotion) -> str:
        """Make the file a version, to which no alias points yet."""
        tags = {
            "orch.study": self._study.name,
            "orch.trial": self._trial.number,
            f"orch.{_metric(self._trial.config)}": found.score,
        }
        text = card.write(card.Subject.of(self._record, self._study, self._trial, self._attempt), found, entry)
        file = self._settings.home / export.file
        return self._registry.register(self._model, entry.run_id, file, tags, card=text, example=found.example)


def _metric(config: Mapping[str, Any]) -> str:
    """What the objective of a configuration is called on the test split."""
    return objective_of(config).replace("val_", "test_")
