"""Price lists: the FLOPs per unit of each statistic, kept with a run so that its rows can be priced again in any convention.

In every convention FLOPs are coefficients times statistics, and each row holds the statistics of its interval for all
conventions.  So pricing later needs the list alone, whatever was frozen, adapted or traced: neither the model nor its plan.
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

#: component -> statistic -> FLOPs per unit; a fraction is a string, ``1/2``.
Prices = Mapping[str, Mapping[str, int | str]]


def prices_of(plan: Plan, passes: str = "training") -> Prices:
    """The price list of a plan, for the statistics that are read from batches."""
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
    """For each convention the price lists ``components`` and, if it is known what is recomputed, ``hardware``."""
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
