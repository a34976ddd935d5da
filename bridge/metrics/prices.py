"""What a plan charges for each statistic of a batch: kept with a run, so that its rows can be priced again in any convention.

FLOPs are coefficients times statistics, in every convention; rows hold the statistics of their interval, of all conventions.
So a price list is all that is needed later, regardless of what was frozen, adapted or traced: neither model nor plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from bridge.flops.moments import Number
from bridge.flops.plan import Plan
from bridge.flops.statistics import Statistic
from bridge.metrics.batch_statistics import READ

STATISTIC = "throughput/statistics/"

#: component -> statistic -> FLOPs for one of it; a fraction is a text, ``1/2``.
Prices = Mapping[str, Mapping[str, int | str]]


def prices_of(plan: Plan, passes: str = "training") -> Prices:
    """The list of a plan, of what batches are read for."""
    found: dict[str, dict[str, int | str]] = {}
    for statistic, component, flops in unit_prices(plan, passes):
        if statistic.over in READ:
            exact = Fraction(flops)
            found.setdefault(component, {})[statistic.name] = exact.numerator if exact.denominator == 1 else str(exact)
    return found


def unit_prices(plan: Plan, passes: str = "training") -> Iterator[tuple[Statistic, str, Number]]:
    """Each statistic of a plan with each component that it prices, and the FLOPs of one unit."""
    size = len(plan.statistics)
    for place, statistic in enumerate(plan.statistics):
        for component, flops in plan.evaluate_components([int(i == place) for i in range(size)], passes).items():
            if flops:
                yield statistic, component, flops


def price_lists(plans: Sequence[Plan]) -> dict[str, dict[str, Any]]:
    """By convention: the components, and ``hardware``, where it is known what runs again."""
    lists: dict[str, dict[str, Any]] = {}
    for plan in plans:
        lists[plan.convention] = {"components": prices_of(plan)}
        if not plan.hardware_unknown:
            lists[plan.convention]["hardware"] = prices_of(plan, "hardware")
    return lists


def priced(prices: Prices, statistics: Mapping[str, int]) -> dict[str, Fraction]:
    """FLOPs by component.

    Raises:
        KeyError: a statistic is missing.
    """
    return {
        component: sum((Fraction(price) * statistics[name] for name, price in list_.items()), Fraction(0))
        for component, list_ in prices.items()
    }
