"""Putting candidates in order by criteria that are asked one after another, without weights.

The best candidate is found by asking the first criterion: whoever is within its tolerance of the best value
stays, the others drop out; then the second criterion, among those who stayed; until one is left. Remove it
and ask again for the second place, and so on. There is no total score: for any two neighbours there is one
criterion that put one above the other, and it can be named.

A candidate with an unknown value stays only where nobody's value is known. Unknown is not zero; but a
recommendation needs a reason, and there is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lichen.atlas.catalogue.scores import Margin


@dataclass(frozen=True)
class Scale:
    """One criterion as the ranking sees it: a number per candidate (None: unknown), and which are good."""

    values: Mapping[str, float | None]
    higher_is_better: bool
    within: Margin

    def limit(self, candidates: Sequence[str]) -> float | None:
        """The worst value that still counts as equal to the best of `candidates`; None if nobody is known."""
        told = [value for name in candidates if (value := self.values[name]) is not None]
        if not told:
            return None
        best = max(told) if self.higher_is_better else min(told)
        margin = self.within.around(best)
        return best - margin if self.higher_is_better else best + margin

    def remaining(self, candidates: Sequence[str]) -> list[str]:
        """Those of `candidates` who are as good as the best of them; all of them if nobody is known."""
        limit = self.limit(candidates)
        if limit is None:
            return list(candidates)
        return [
            name
            for name in candidates
            if (value := self.values[name]) is not None
            and (value >= limit if self.higher_is_better else value <= limit)
        ]


@dataclass(frozen=True)
class Place:
    """One place of a ranking.

    `decided`: index of the criterion that put it above the next place; None for the last one, and where no
    criterion tells the two apart. `limit`: the value there with which the next place would have stayed.
    """

    name: str
    decided: int | None = None
    limit: float | None = None


def rank(candidates: Sequence[str], scales: Sequence[Scale]) -> list[Place]:
    """All of `candidates`, best first; those whom no criterion tells apart in their given order."""
    left = list(candidates)
    order: list[tuple[str, list[list[str]]]] = []
    while left:
        rounds = [left]
        for scale in scales:
            rounds.append(scale.remaining(rounds[-1]))
        order.append((rounds[-1][0], rounds))
        left = [name for name in left if name != order[-1][0]]
    places = []
    for (name, rounds), (after, _) in pairwise(order):
        dropped = (index for index in range(len(scales)) if after not in rounds[index + 1])
        decided = next(dropped, None)
        limit = None if decided is None else scales[decided].limit(rounds[decided])
        places.append(Place(name, decided, limit))
    return places + [Place(name) for name, _ in order[-1:]]
