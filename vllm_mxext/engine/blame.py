"""Which requests are to blame when the engine process keeps dying."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

SUSPECT_AFTER_DEATHS = 2
"""Deaths in a row without a new token that make a request a suspect, which is then tried alone."""

GUILTY_AFTER_DEATHS_ALONE = 3
"""Of these, deaths with no other request in the core that convict it."""


@dataclass(slots=True)
class _Record:
    num_deaths: int = 0
    num_deaths_alone: int = 0


class Blame:
    """Counts, per open request, the deaths of the core in a row during which it got no new token.

    A request that gets a token is cleared: it brings the core forward, and however often the core dies, it ends after
    at most `max_tokens` lives.
    """

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def clear(self, request_id: str) -> None:
        """Forgets a request that got a token or ended."""
        self._records.pop(request_id, None)

    def record_death(self, in_core: Collection[str], with_new_tokens: Collection[str]) -> None:
        """Notes a death of the core.

        Args:
            in_core: open requests it was working on.
            with_new_tokens: of these, the ones that had got a token in its life.
        """
        for request_id in set(in_core).difference(with_new_tokens):
            record = self._records.setdefault(request_id, _Record())
            record.num_deaths += 1
            record.num_deaths_alone += len(in_core) == 1

    def suspects(self, request_ids: Iterable[str]) -> list[str]:
        """Returns those of the requests that must be tried alone, the most suspicious first."""
        ids = [key for key in request_ids if self._deaths(key).num_deaths >= SUSPECT_AFTER_DEATHS]
        return sorted(ids, key=lambda key: -self._deaths(key).num_deaths_alone)

    def is_guilty(self, request_id: str) -> bool:
        """Whether a request has killed the core often enough while alone."""
        return self._deaths(request_id).num_deaths_alone >= GUILTY_AFTER_DEATHS_ALONE

    def _deaths(self, request_id: str) -> _Record:
        return self._records.get(request_id) or _Record()
