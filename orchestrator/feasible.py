"""Which configurations of a space are possible: its constraints hold, and the recipe's Config takes them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from orchestrator import constraints, space
from orchestrator.errors import UsageError, refused
from recipes.config import make

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.space import Scalar, Space

NUM_DRAWS = 200  # after so many without success, a space is taken for impossible


class Feasible:
    """Tells possible configurations of a space from others.

    `fixed` has a value of each field that is not searched, and of each that is searched under a condition only.
    """

    def __init__(
        self, config_type: Any, fixed: Mapping[str, Scalar], searched: Space, constraint_texts: Sequence[str]
    ) -> None:
        self._config_type, self._fixed, self._space = config_type, fixed, searched
        self._constraints = [constraints.parse(text) for text in constraint_texts]

    def config(self, params: Mapping[str, Scalar]) -> Any:
        """The recipe's Config of these parameters; a pydantic.ValidationError if it refuses them."""
        return make(self._config_type, {**self._fixed, **params})

    def complaint(self, params: Mapping[str, Scalar]) -> str:
        """Why a configuration is impossible, in a line; nothing if it is possible."""
        values = {**self._fixed, **params}
        broken = [constraint.text for constraint in self._constraints if not constraint.holds(values)]
        return f"constraint {broken[0]!r} does not hold" if broken else self.refusal(params)

    def refusal(self, params: Mapping[str, Scalar]) -> str:
        """What the recipe's Config has against a configuration."""
        try:
            self.config(params)
        except ValidationError as error:
            first = error.errors()[0]
            return str(refused(str((first["loc"] or ("",))[-1]), first["input"], first))
        except ValueError as error:
            return str(error)
        return ""

    def find(self, pinned: Mapping[str, Scalar] | None = None) -> dict[str, Scalar] | None:
        """Parameters of a possible configuration; None if the condition of a `pinned` field does not hold in any draw.

        What is pinned is a value that somebody listed, which is held against the recipe alone: constraints are there to
        rule values out.

        Raises:
            UsageError: none of many draws is possible.
        """
        rng = random.Random(0)
        complain = self.refusal if pinned else self.complaint
        complaints: list[str] = []
        for _ in range(NUM_DRAWS):
            params = space.draw(self._space, rng, pinned)
            if not (pinned or {}).keys() <= params.keys():
                continue
            complaints.append(complain(params))
            if not complaints[-1]:
                return params
        if not complaints:
            return None
        told = "" if len(set(complaints)) == 1 else f"; none of {len(complaints)} draws of the space is possible"
        raise UsageError(complaints[0] + told)
