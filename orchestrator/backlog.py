"""What a study has yet to run, which of it is next, and whether there is an end to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator import compare, confirm, limits
from orchestrator.pruning import AshaPause
from orchestrator.tables import State

if TYPE_CHECKING:
    from collections.abc import Container

    from orchestrator import tables
    from orchestrator.leases import Lease
    from orchestrator.limits import Limit
    from orchestrator.monitor import Monitor
    from orchestrator.pruning import Pruner
    from orchestrator.search import Search
    from orchestrator.standing import Standing
    from orchestrator.store import Record
    from orchestrator.study import Study


class Backlog:
    """The trials of a study that wait, are paused, or are yet to be drawn."""

    def __init__(
        self,
        study: Study,
        row: tables.Study,
        record: Record,
        lease: Lease,
        monitor: Monitor,
        standing: Standing,
        search: Search,
        pruner: Pruner,
    ) -> None:
        self._study, self._row = study, row
        self._record, self._lease, self._monitor = record, lease, monitor
        self._standing, self._search, self._pruner = standing, search, pruner

    # -- whether there is an end

    @property
    def wants_more(self) -> bool:
        """Whether there are trials to draw: no configuration is run twice, and some spaces have but few."""
        return (
            self._standing.num_drawn < self._study.budget.trials and not self._search.used_up and self.limit() is None
        )

    @property
    def is_complete(self) -> bool:
        """Whether all trials have ended, and the leaders are confirmed."""
        return self._all_drawn_ended and not self._unconfirmed()

    @property
    def has_all_trials(self) -> bool:
        """Whether it is complete with as many trials as were asked for."""
        return self.is_complete and self._standing.num_drawn >= self._study.budget.trials

    @property
    def has_ended(self) -> bool:
        """Whether there is a result: all trials have ended, or enough of them."""
        limit = self.limit()
        return self.is_complete or (limit is not None and limit.stops and limit.ends_well)

    def limit(self) -> Limit | None:
        """The limit of the budget that is reached."""
        budget = self._study.budget
        if not budget.has_limits:
            return None
        num_epochs = self._standing.num_epochs()
        return limits.reached(budget, self._standing.trials.values(), num_epochs, self._study.objective)

    def why_few(self) -> str:
        """Why the study is complete with fewer trials than were asked for; nothing if it is not."""
        if not self.is_complete or self.has_all_trials:
            return ""
        if limit := self.limit():
            return f"{limit.reason}; no more are begun"
        few = f"the space has no more than {self._standing.num_drawn} configurations"
        return f"{few}, fewer than trials={self._study.budget.trials}; each is run once"

    @property
    def _all_drawn_ended(self) -> bool:
        return self._standing.trials.num_finished == len(self._standing.trials) and not self.wants_more

    # -- what is next

    def next_begun(self, *, but: Container[int]) -> tables.Trial | None:
        """A trial that waits and is none of the numbers `but`, else one to promote."""
        trials = self._standing.trials
        paused_by_another = None if isinstance(self._pruner, AshaPause) else trials.first(State.PAUSED)
        return trials.first(State.WAITING, but=but) or paused_by_another or self._promoted()

    def next_when_all_are_drawn(self) -> tables.Trial | None:
        """What is left once all are drawn; None if there is nothing to do but wait."""
        if self._all_drawn_ended:
            self._add_further_seeds()
            return self._standing.trials.first(State.WAITING)
        # Rungs that stay too small for a promotion must not leave a study without a winner.
        return None if self._standing.trials.count(State.RUNNING) else self._promoted(num_kept=1)

    def _promoted(self, num_kept: int = 0) -> tables.Trial | None:
        """The paused trial that goes on next."""
        if not isinstance(self._pruner, AshaPause):
            return None
        number = self._pruner.first(self._standing.rungs.ladder, num_kept=num_kept)
        return None if number is None else self._standing.trials[number]

    # -- further seeds

    def _unconfirmed(self) -> dict[int, list[int]]:
        """Leader -> the seeds with which it is still to be trained."""
        num_leaders, num_seeds = self._study.budget.confirmations
        if not num_leaders:
            return {}
        trials = list(self._standing.trials.values())
        leaders = compare.by_value(trials, self._standing.epochs)[:num_leaders]
        missing = {leader.number: confirm.missing_seeds(leader, trials, num_seeds) for leader in leaders}
        return {number: seeds for number, seeds in missing.items() if seeds}

    def _add_further_seeds(self) -> None:
        """Let the leaders be trained with further seeds, all in one go: a mean of some of them would be none."""
        missing = self._unconfirmed()
        for number, seeds in missing.items():
            leader = self._standing.trials[number]
            for seed in seeds:
                trial = self._record.add_trial(
                    self._lease,
                    self._row.id,
                    params=leader.params,
                    config={**leader.config, "seed": seed},
                    threads=leader.threads,
                    confirms=number,
                )
                self._standing.put(trial)
        if missing:
            told = ", ".join(f"trial {number} with {len(seeds)}" for number, seeds in missing.items())
            self._monitor.note(f"further seeds tell luck from merit: {told}")
