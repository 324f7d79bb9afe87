"""The coordinator: asks the search for parameters, sends trials to slots, records what comes back, and decides.

There is one a study, by its lease. Everything it knows is in the record, so that another can take its place at any
moment: an epoch counts once it is recorded, a trial once its manifest is.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

from orchestrator import (
    compare,
    control,
    depot,
    names,
    packing,
    provenance,
    pruning,
    recorded,
    tables,
    versions,
)
from orchestrator.attempt_files import AttemptFiles
from orchestrator.backlog import Backlog
from orchestrator.company import Company
from orchestrator.errors import UnavailableError, UsageError
from orchestrator.executors import (
    EpochEnded,
    Event,
    Executor,
    Exported,
    SystemSampled,
    TrialEnded,
    TrialFailed,
    TrialPaused,
    TrialSpec,
)
from orchestrator.executors.start import device_of, placed, start_executor
from orchestrator.leaders import Leaders
from orchestrator.leases import Holding, Lease, mark_paused, study_lease
from orchestrator.mirror_process import MirrorProcess
from orchestrator.monitor import Outcome
from orchestrator.pruning import AshaPause, NoPruner
from orchestrator.retention import Retention
from orchestrator.search import Search
from orchestrator.signals import Signals
from orchestrator.standing import Standing
from orchestrator.store import Record
from orchestrator.study import Study, change_budget
from orchestrator.tables import Reason, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from orchestrator.executors import Decision, Slot
    from orchestrator.forkserver import ForkServer
    from orchestrator.mirror_process import MakeMirror, Mirror
    from orchestrator.monitor import Monitor
    from orchestrator.settings import Settings

POLL_SECONDS = 0.5
MIRROR_SECONDS = 60.0  # how long the end of a sweep waits for MLflow before it says "later"


def run(
    study: Study,
    settings: Settings,
    monitor: Monitor,
    server: ForkServer | None = None,
    *,
    resume: bool = False,
    new_version: bool = False,
    executor: Executor | None = None,
    make_mirror: MakeMirror = MirrorProcess,
) -> Outcome:
    """Bring a study to its number of trials, whatever an earlier process left of it.

    With `new_version`, a study that differs from what is on record under its name becomes the next version of that.
    Local workers are forked from `server`; without one each is a new process that imports torch. An `executor` that is
    given takes their place, and is closed at the end.

    Raises:
        UsageError: the study exists with another identity, or has a later version.
        HeldError: another process runs it.
        FencedError: another process took it over while this one slept.
        UnavailableError: disk full, or workers that do not start.
        StoppedError: a signal; all that is finished is saved.
    """
    record = Record.open(settings.record_url, create=not (resume or study.warm_start or new_version))
    try:
        if not resume:
            study = versions.meant(record, study)
        if new_version:
            study = versions.begin(record, settings, study, monitor.note)
        row = record.find_study(study.name)
        if row is not None:
            names.check_open(record, row)
        recorded.check_identity(row, study)
        if row is None and study.warm_start:
            study = recorded.with_known(record, study, monitor.note)
        with Holding(record, study_lease(study.name)) as lease, Signals() as signals:
            row = recorded.write(record, lease, study)
            read = recorded.from_record(row)
            parts = (record, lease, monitor, signals, server, executor, make_mirror)
            return _Coordinator(read, row, settings, *parts).run()
    finally:
        record.close()


class _Coordinator:
    """One run of a study under its lease."""

    def __init__(
        self,
        study: Study,
        row: tables.Study,
        settings: Settings,
        record: Record,
        lease: Lease,
        monitor: Monitor,
        signals: Signals,
        server: ForkServer | None,
        executor: Executor | None,
        make_mirror: MakeMirror,
    ) -> None:
        self._row, self._settings = row, settings
        self._record, self._lease, self._monitor, self._signals = record, lease, monitor, signals
        self._server, self._executor, self._make_mirror = server, executor, make_mirror
        self._unhandled: dict[tuple[int, int], tables.Epoch] = {}  # trial and number -> on record, not yet judged
        self._decision_epochs: dict[int, tuple[int, ...]] = {}  # trial -> where its worker waits for a decision
        self._started_at = time.monotonic()
        self._wants: Literal["go on", "pause", "begin anew"] = "go on"  # what commands make of this run
        self._looked_at = 0.0  # when commands were last looked for
        self._take_up()
        self._set_out(study)

    def _set_out(self, study: Study) -> None:
        """Take a study as it is from now on, and its trials as they are on record."""
        self._study = study
        self._leaders = Leaders(study, self._row, self._settings, self._record, self._lease, self._monitor)
        folder = self._settings.study_folder(study.name)
        self._depot = depot.of_study(study.budget.checkpoints, study.name, self._row.created_at, folder)
        self._files = AttemptFiles(self._settings, study.name, self._depot)
        self._retention = Retention(study.budget, self._row, self._settings, self._record, self._lease, self._files)
        self._pruner = pruning.make(study.budget.pruner)
        pauses = isinstance(self._pruner, AshaPause)
        self._standing = Standing(self._record, self._row.id, study.objective, study.objectives, pauses=pauses)
        self._search = Search.of(study)
        self._search.restore(
            [self._standing.trials[number] for number in self._standing.drawn()], self._standing.epochs
        )
        parts = (self._standing, self._search, self._pruner)
        self._backlog = Backlog(study, self._row, self._record, self._lease, self._monitor, *parts)
        freed = self._retention.ended(list(self._standing.trials.values()), self._standing.epochs)
        self._free(freed)
        if freed:
            self._monitor.note(f"{len(freed)} trial(s) keep no weights, by keep={study.budget.keep}")

    def run(self) -> Outcome:
        """Train what is missing, export the leaders, and let the mirrors catch up."""
        if self._backlog.has_ended and not self._missing_exports():
            return self._outcome(was_complete=True, lag=0)
        self._launch = self._record.add_launch(self._lease, self._row.id, provenance.collect_launch(self._study)).id
        with self._make_mirror(self._study.name, self._settings, self._monitor) as mirror:
            while not self._did_all(mirror):
                self._signals.at_second = [mirror.kill]
                self._standing.read_trials()
                if self._wants == "pause":
                    self._wait(mirror)
                self._wants = "go on"
            return self._outcome(was_complete=False, lag=mirror.finish(MIRROR_SECONDS))

    def _did_all(self, mirror: Mirror) -> bool:
        """Train and export on new workers; whether that came to an end, or a command wants it otherwise."""
        with ExitStack() as stack:
            stack.callback(self._let_go)
            executor = self._start_executor()
            stack.callback(executor.close)
            self._signals.at_second = [mirror.kill, executor.close]
            self._monitor.started(self._study, executor.slots, list(self._standing.trials.values()))
            self._company = Company(self._record.ran_out(self._row.id))
            self._train(executor, mirror)
            if self._wants == "go on" and self._backlog.has_ended:
                if few := self._backlog.why_few():
                    self._monitor.note(few)
                self._leaders.export(self._missing_exports(), executor, lambda: self._events(executor, mirror))
            return self._wants == "go on"

    def _wait(self, mirror: Mirror) -> None:
        """Hold the lease and nothing else until a command says otherwise."""
        self._monitor.note(f"paused; `orch resume {self._study.name}` lets it go on, and nothing is lost meanwhile")
        mark_paused(self._record, self._lease, paused=True)
        while self._wants == "pause":
            time.sleep(POLL_SECONDS)
            self._look_around(mirror)
        mark_paused(self._record, self._lease, paused=False)

    # -- what there is

    def _take_up(self) -> None:
        left = self._record.requeue_running(self._lease, self._row.id)
        if left:
            self._monitor.note(f"{left} trial(s) of an earlier run go on from their last checkpoint")

    def _let_go(self) -> None:
        """At the end of a run that was cut short, say of its running trials that they wait."""
        with contextlib.suppress(UnavailableError):  # if it cannot be written now, the next run does it
            self._record.requeue_running(self._lease, self._row.id)

    def _missing_exports(self) -> list[tables.Trial]:
        return self._leaders.missing(self._standing.trials.values(), self._standing.epochs)

    def _outcome(self, *, was_complete: bool, lag: int) -> Outcome:
        limit = None if self._backlog.has_all_trials else self._backlog.limit()
        return Outcome(
            study=self._row,
            was_complete=was_complete,
            used_up=self._search.used_up,
            limit=limit.reason if limit else "",
            timed_out=not self._backlog.has_ended,
            mirror_lag=lag,
        )

    def _start_executor(self) -> Executor:
        num_further = math.prod(self._study.budget.confirmations)
        num_left = self._study.budget.trials + num_further - self._standing.trials.num_finished
        if self._executor:
            return self._executor
        study = packing.settled(self._study, num_left, self._server, self._monitor.note)
        num_useful = max(1, num_left)  # an export may be left to do
        return start_executor(study, num_useful, self._settings, self._server, self._depot)

    # -- training

    def _train(self, executor: Executor, mirror: Mirror) -> None:
        while not self._backlog.is_complete:
            seconds = self._study.budget.timeout_seconds
            if seconds and time.monotonic() - self._started_at >= seconds:
                self._monitor.note("time is up; what is not finished waits for the next run")
                return
            if (limit := self._backlog.limit()) and limit.stops:
                self._monitor.note(f"{limit.reason}; what is not finished waits")
                return
            self._fill(executor)
            # With nothing running, a free slot that got nothing says that there is nothing to send.
            if not self._standing.trials.count(State.RUNNING) and executor.free_slots():
                if not self._prune_paused():
                    return
                continue
            events = self._allowed(self._events(executor, mirror))
            self._record_epochs(events)
            self._record_samples(events)
            for event in events:
                self._handle(event, executor)
            if self._wants != "go on":
                return

    def _events(self, executor: Executor, mirror: Mirror) -> list[Event]:
        """The next events; a signal or a command to stop ends the run here, between two transactions."""
        events = executor.events(POLL_SECONDS)
        self._look_around(mirror)
        return events

    def _allowed(self, events: list[Event]) -> list[Event]:
        """The events before an epoch that is one too many; it is in its checkpoint, for a larger budget."""
        most = self._study.budget.max_epochs_total
        left = most - self._standing.num_epochs() if most else len(events)
        for index, event in enumerate(events):
            if isinstance(event, EpochEnded) and event.number > len(self._standing.epochs.get(event.trial, [])):
                left -= 1
                if left < 0:
                    return events[:index]
        return events

    def _look_around(self, mirror: Mirror) -> None:
        """See to all that is not training: commands, signals, the mirror, the display."""
        if time.monotonic() - self._looked_at >= POLL_SECONDS:
            self._looked_at = time.monotonic()
            for command in self._record.commands(self._row.id):
                self._record.answer_command(self._lease, command.id, self._obey(command))
        self._signals.check(self._study.name)
        mirror.keep_alive()
        self._monitor.tick()

    # -- commands of other terminals

    def _obey(self, command: tables.Command) -> str:
        """Do what a command says, or see to its being done soon; return what to tell who gave it."""
        match command.kind:
            case "stop":
                self._signals.stop()
                return f"stopped; `orch resume {self._study.name}` goes on with it"
            case "pause":
                self._wants = "pause"
                return f"paused; `orch resume {self._study.name}` lets it go on"
            case "resume":
                self._wants = "begin anew"
                return "it goes on"
            case "set":
                return self._change(command.arguments["keys"])
            case "retry":
                numbers = self._record.retry_failed(self._lease, self._row.id, command.arguments["numbers"])
                for number in numbers:
                    self._standing.refresh(number)
                self._begin_anew_if_idle()
                return control.told_retried(numbers)
        raise AssertionError(f"no such command: {command.kind}")

    def _begin_anew_if_idle(self) -> None:
        """Train again if what a command brought came while the leaders were exported."""
        if self._wants == "go on" and not self._standing.trials.count(State.RUNNING):
            self._wants = "begin anew"

    def _change(self, keys: Sequence[str]) -> str:
        """Go on with another budget; if that concerns the workers, on new ones."""
        former = self._study.budget
        try:
            study = change_budget(self._study, keys)
        except UsageError as error:  # between who asked and now it has changed otherwise
            return str(error)
        self._row = recorded.write(self._record, self._lease, study)
        self._set_out(study)
        if self._wants == "go on" and study.budget.where != former.where:
            self._wants = "begin anew"
        self._begin_anew_if_idle()
        told = control.told_changed(study.budget, keys)
        self._monitor.note(told)
        return told

    def _fill(self, executor: Executor) -> None:
        """Send trials to free slots."""
        for slot in self._fill_alone(executor):
            if (trial := self._backlog.next_begun(but=self._company.victims)) is not None:
                self._submit(trial, slot, executor)
            elif self._backlog.wants_more:
                self._submit_new(slot, executor)
            elif (trial := self._backlog.next_when_all_are_drawn()) is not None:
                self._submit(trial, slot, executor)
            else:
                return

    def _fill_alone(self, executor: Executor) -> list[Slot]:
        """Send trials that must be alone to devices where nothing runs, and return the free slots for all others.

        One device at a time is kept from others for a trial that waits until those that are there have ended.
        """
        free = self._company.open(executor.free_slots())
        for trial in self._victims():
            if not free:
                break
            slot, is_empty = self._company.emptiest(free)
            if not is_empty:
                return self._company.open(free, but=slot)
            self._submit(trial, slot, executor, alone=True)
            free = self._company.open(free)
        return free

    def _victims(self) -> list[tables.Trial]:
        """The trials that wait for a device of their own."""
        trials = [self._standing.trials[number] for number in sorted(self._company.victims)]
        return [trial for trial in trials if trial.state is State.WAITING]

    def _submit_new(self, slot: Slot, executor: Executor) -> None:
        """Draw a trial and send it."""
        params = self._search.ask(len(self._standing.trials))
        config = self._study.config(params)
        trial, attempt = self._record.start_trial(
            self._lease,
            self._row.id,
            params=params,
            config=config,
            threads=slot.threads,
            worker=_worker(slot),
            device=device_of(config, slot),
            launch=self._launch,
        )
        self._send(trial, attempt, slot, executor)

    def _submit(self, trial: tables.Trial, slot: Slot, executor: Executor, *, alone: bool = False) -> None:
        """Send a trial that is on record."""
        is_promoted = trial.state is State.PAUSED and isinstance(self._pruner, AshaPause)
        device = device_of(trial.config, slot)
        trial, attempt = self._record.start_attempt(self._lease, trial, _worker(slot), device, self._launch)
        self._send(trial, attempt, slot, executor, is_promoted=is_promoted, alone=alone)

    def _send(
        self,
        trial: tables.Trial,
        attempt: tables.Attempt,
        slot: Slot,
        executor: Executor,
        *,
        is_promoted: bool = False,
        alone: bool = False,
    ) -> None:
        self._standing.put(trial)
        pruner = self._pruner if trial.confirms is None else NoPruner()
        decision_epochs = pruner.decision_epochs(trial.number, self._max_epochs(trial))
        recorded = self._standing.epochs.get(trial.number, [])
        if is_promoted:  # it is decided that it leaves its rung
            decision_epochs = tuple(epoch for epoch in decision_epochs if epoch > len(recorded))
        self._decision_epochs[trial.number] = decision_epochs
        spec = TrialSpec(
            study=self._study.name,
            trial=trial.number,
            attempt=attempt.number,
            recipe=self._study.recipe,
            config=placed(trial.config, slot),
            folder=self._files.folder(trial.number, attempt.number),
            earlier_folders=self._files.earlier_folders(trial.number, attempt.number),
            objectives=tuple(each.name for each in self._study.objectives),
            num_recorded_epochs=len(recorded),
            decision_epochs=decision_epochs,
            threads=trial.threads,
            alone=alone,
            system_seconds=self._study.budget.system_metrics_seconds,
        )
        executor.submit(spec, slot)
        self._company.join(trial.number, slot, alone=alone)
        self._monitor.trial_started(trial, slot, len(recorded))

    def _max_epochs(self, trial: tables.Trial) -> int:
        return int(trial.config.get("epochs", self._study.max_epochs))

    # -- events

    def _record_epochs(self, events: Sequence[Event]) -> None:
        """Write the epochs that the record lacks, all in one transaction, before any is judged."""
        ended = [event for event in events if isinstance(event, EpochEnded)]
        new = {
            (event.trial, event.number): tables.Epoch(
                trial_id=self._standing.trials[event.trial].id,
                number=event.number,
                attempt=event.attempt,
                metrics=event.metrics,
                seconds=event.seconds,
                recorded_at=time.time(),
            )
            for event in ended
            if event.number > len(self._standing.epochs.get(event.trial, []))
        }
        if new:
            self._record.add_epochs_of(
                self._lease, [(self._standing.trials[trial], epoch) for (trial, _), epoch in new.items()]
            )
        self._unhandled = new

    def _record_samples(self, events: Sequence[Event]) -> None:
        samples = [
            tables.Sample(trial_id=self._standing.trials[event.trial].id, recorded_at=event.at, metrics=event.metrics)
            for event in events
            if isinstance(event, SystemSampled)
        ]
        if samples:
            self._record.add_samples(self._lease, samples)

    def _handle(self, event: Event, executor: Executor) -> None:
        match event:
            case SystemSampled():
                pass  # it is on record, and nobody waits for it
            case EpochEnded():
                self._epoch_ended(event, executor)
            case TrialEnded():
                self._company.leave(event.trial)
                self._trial_ended(event)
            case TrialPaused():
                self._company.leave(event.trial)
                self._trial_paused(event)
            case TrialFailed():
                self._trial_failed(event, was_beside=self._company.leave(event.trial))
            case Exported():
                raise AssertionError("nothing is exported while trials run")

    def _epoch_ended(self, event: EpochEnded, executor: Executor) -> None:
        trial = self._standing.trials[event.trial]
        if (epoch := self._unhandled.pop((event.trial, event.number), None)) is not None:
            self._standing.add_epoch(event.trial, epoch)
            self._monitor.epoch_ended(trial, event)
        if event.number in self._decision_epochs[event.trial]:
            executor.decide(event.trial, self._decision(trial, event.number))

    def _decision(self, trial: tables.Trial, epoch: int) -> Decision:
        curve = [row.metrics[self._study.objective] for row in self._standing.epochs[trial.number][:epoch]]
        if self._pruner.goes_on(trial.number, self._max_epochs(trial), self._standing.rungs.rung(epoch), curve):
            return "go"
        return "pause" if isinstance(self._pruner, AshaPause) else "stop"

    def _trial_ended(self, event: TrialEnded) -> None:
        trial, epochs = self._standing.trials[event.trial], self._standing.epochs.get(event.trial, [])
        best = compare.best_epoch(epochs, self._study.objective)
        if best is None:
            self._trial_failed(
                TrialFailed(
                    trial=event.trial, attempt=event.attempt, reason=Reason.ERROR, message="the recipe gave no epoch"
                )
            )
            return
        ended = self._record.end_attempt(
            self._lease,
            trial,
            event.attempt,
            State.PRUNED if event.stopped else State.COMPLETE,
            manifest=event.manifest,
            value=best.metrics[self._study.objective],
            best_epoch=best.number,
        )
        self._files.drop_checkpoints(event.trial, event.attempt)
        self._told(ended)

    def _trial_paused(self, event: TrialPaused) -> None:
        best = compare.best_epoch(self._standing.epochs[event.trial], self._study.objective)
        assert best is not None, "it reached a rung"
        paused = self._record.end_attempt(
            self._lease,
            self._standing.trials[event.trial],
            event.attempt,
            State.PAUSED,
            manifest=event.manifest,
            value=best.metrics[self._study.objective],
            best_epoch=best.number,
        )
        self._files.drop_earlier(event.trial, event.attempt)
        self._told(paused)
        self._keep_within_disk()

    def _prune_paused(self) -> bool:
        """End what is paused when nothing else is left to do, each at its rung; whether there was any."""
        paused = self._standing.trials.in_state(State.PAUSED)
        for trial in paused:
            self._prune(trial)
        return bool(paused)

    def _prune(self, trial: tables.Trial) -> None:
        pruned = self._record.prune_paused(self._lease, trial)
        self._files.drop_checkpoints(trial.number, self._record.attempts(trial.id)[-1].number)
        self._told(pruned)

    def _keep_within_disk(self) -> None:
        """End paused trials, the poorest of the lowest rung first, until the checkpoints of the others have room."""
        most = self._study.budget.max_disk_bytes
        if not most:
            return
        paused = self._standing.trials.in_state(State.PAUSED)
        sizes = {trial.number: self._files.size_bytes(trial.number) for trial in paused}
        for trial in self._standing.rungs.poorest_first(paused):
            if sum(sizes.values()) <= most:
                return
            self._monitor.note(
                f"trial {trial.number} is pruned: paused trials take {sum(sizes.values())} bytes on disk"
            )
            self._prune(trial)
            del sizes[trial.number]

    def _trial_failed(self, event: TrialFailed, *, was_beside: bool = False) -> None:
        trial = self._standing.trials[event.trial]
        is_victim = event.reason is Reason.OOM and was_beside
        final = not event.disk_full and not is_victim and not self._has_retry(trial, event.reason)
        failed = self._record.end_attempt(
            self._lease,
            trial,
            event.attempt,
            State.FAILED,
            trial_state=None if final else State.WAITING,
            reason=Reason.INTERRUPTED if event.disk_full else event.reason,
            message=event.message,
            traceback=event.traceback or None,
            value=None if final else trial.value,
            best_epoch=None if final else trial.best_epoch,
        )
        if event.disk_full:
            raise UnavailableError(
                f"no space left for a checkpoint of trial {event.trial}; free some in {self._settings.home}, "
                f"then `orch resume {self._study.name}`"
            )
        if final:
            self._told(failed)
        else:
            self._standing.put(failed)
            if is_victim:
                self._company.victims.add(event.trial)
            next_time = "to run again alone on its device" if is_victim else "for another attempt"
            self._monitor.note(f"trial {event.trial}: {event.message}; it waits {next_time}")
            self._monitor.trial_ended(failed)

    def _has_retry(self, trial: tables.Trial, reason: Reason) -> bool:
        """Whether the trial may be tried again: what memory and mathematics refuse, they refuse again."""
        if reason in {Reason.OOM, Reason.DIVERGED}:
            return False
        spent = sum(attempt.reason in {Reason.ERROR, Reason.LOST} for attempt in self._record.attempts(trial.id))
        return spent < self._study.budget.retries

    def _told(self, trial: tables.Trial) -> None:
        """Take in how a trial ended or paused."""
        self._standing.put(trial)
        if trial.confirms is None:
            self._search.tell(trial, self._standing.epochs.get(trial.number, []))
        self._monitor.trial_ended(trial)
        self._free(self._retention.ended([trial], self._standing.epochs))

    def _free(self, freed: Iterable[tables.Trial]) -> None:
        """Take in that some trials have no weights any more."""
        for trial in freed:
            self._standing.put(trial)


def _worker(slot: Slot) -> str:
    return f"{slot.host or socket.gethostname()}/{slot.name}"
