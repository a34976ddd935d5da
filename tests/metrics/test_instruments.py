"""Instruments on a rank: who runs when, what of them rides in the sum, and that one that breaks is one warning."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bridge.metrics.instruments import Instrument, Instruments, Measurement, Summed
from bridge.metrics.place import Place
from bridge.metrics.vector import Reduce, Slice, VectorLayout


class Told(Instrument):
    """Writes down what it is told."""

    def __init__(self, said, name, reading=None):
        self.said, self.name, self.reading = said, name, reading

    def run(self):
        self.said.append(f"{self.name} runs")

    def pause(self):
        self.said.append(f"{self.name} pauses")

    def end_step(self):
        self.said.append(f"{self.name} ends a step")

    def start_sample(self):
        self.said.append(f"{self.name} sees more")

    def lap(self):
        return self.reading

    def close(self):
        self.said.append(f"{self.name} closes")


class Quiet(Instrument):
    """Reads, and does nothing else."""

    def lap(self):
        return 5


class Kind(Measurement):
    def __init__(self, name, instrument, **switches):
        self.what, self.slices, self.instrument = name, (Slice(f"{name}_ns"), Slice(f"{name}_each", 2)), instrument
        self.__dict__.update(switches)

    def open(self):
        return self.instrument() if isinstance(self.instrument, type) else self.instrument

    def measured(self, summed):
        total = summed[self.slices[0].name][0]
        return SimpleNamespace(metrics=lambda interval: {self.what: total}) if total else None


def three(every):
    said: list[str] = []
    kinds = [
        Kind("always", Told(said, "always", 1)),
        Kind("sampled", Told(said, "sampled", 2), sampled=True),
        Kind("more", Told(said, "more", 3), has_samples=True),
    ]
    return said, Instruments(kinds, every=every)


def heard(said):
    found, said[:] = said[:], []
    return found


@pytest.mark.parametrize("every", [2, 4])
def test_sampled_ones_run_in_sampled_steps_alone(every):
    said, instruments = three(every=every)
    assert instruments.samples
    instruments.run()
    instruments.run()
    assert heard(said) == ["always runs", "more runs"]
    instruments.end_step()
    assert heard(said) == ["always ends a step", "more ends a step"]
    instruments.start_sample()
    assert heard(said) == ["sampled runs", "more sees more"]
    instruments.end_step(sampled=True)
    assert heard(said) == ["always ends a step", "more ends a step", "sampled ends a step", "sampled pauses"]
    instruments.pause()
    assert heard(said) == ["always pauses", "sampled pauses", "more pauses"]
    instruments.run()
    instruments.close()
    assert heard(said) == ["always runs", "more runs", "always closes", "sampled closes", "more closes"]


def test_where_each_step_is_a_sample_all_of_them_run_always():
    said, instruments = three(every=1)
    assert not instruments.samples
    instruments.run()
    instruments.end_step(sampled=True)
    assert heard(said) == [f"{name} {does}" for does in ("runs", "ends a step") for name in ("always", "sampled", "more")]


def test_whether_there_are_samples_is_the_kinds_and_not_this_ranks():
    """Every rank must sample the same steps, also one that has no instrument."""
    assert Instruments([Kind("energy", None, sampled=True)], every=2).samples
    assert Instruments([Kind("marks", None, has_samples=True)], every=2).samples
    assert not Instruments([Kind("time", Quiet)], every=2).samples
    assert not Instruments([Kind("energy", None, sampled=True)]).samples  # by default each step is one


def test_slices_are_the_same_with_and_without_an_instrument():
    names = [part.name for part in Instruments([Kind("a", Quiet), Kind("b", None)]).slices]
    assert names == ["a_ns", "a_each", "a_ns_readings", "b_ns", "b_each", "b_ns_readings"]


def test_readings_ride_with_their_count():
    class Split(Kind):
        def entries(self, reading):
            return {"split_ns": reading, "split_each": [reading, 0]}

    said: list[str] = []
    instruments = Instruments([Kind("a", Told(said, "a", 7)), Kind("b", None), Kind("c", Told(said, "c")), Split("split", Quiet)])
    assert instruments.lap() == {"a_ns": 7, "a_ns_readings": 1, "split_ns": 5, "split_each": [5, 0], "split_ns_readings": 1}


def test_one_that_breaks_is_one_warning_and_the_others_go_on(caplog):
    class Breaks(Told):
        def end_step(self):
            raise OSError("no such device")

    said: list[str] = []
    broken = Breaks(said, "broken", 1)
    instruments = Instruments([Kind("broken", broken), Kind("healthy", Told(said, "healthy", 2))])
    instruments.run()
    for _ in range(3):
        instruments.end_step()
    assert heard(said) == ["broken runs", "healthy runs", *["healthy ends a step"] * 3]
    assert instruments.lap() == {"healthy_ns": 2, "healthy_ns_readings": 1}
    instruments.pause()
    assert heard(said) == ["healthy pauses"]
    assert [record.getMessage() for record in caplog.records] == ["broken is not reported from here on: OSError: no such device"]
    assert instruments.attempt("broken", lambda: 1) is None
    assert instruments.attempt("another", lambda: 1) == 1


def test_one_that_cannot_be_opened_or_read_is_one_warning_too(caplog):
    class Refused(Kind):
        def open(self):
            raise RuntimeError("no permission")

    class Unread(Quiet):
        def lap(self):
            raise ValueError("torn")

    instruments = Instruments([Refused("power", None), Kind("heat", Unread)])
    for _ in range(2):
        instruments.run()
        assert instruments.lap() == {}
    assert [record.getMessage() for record in caplog.records] == [
        "power is not reported from here on: RuntimeError: no permission",
        "heat is not reported from here on: ValueError: torn",
    ]


def test_what_an_instrument_does_nothing_at_is_not_called():
    assert [kind.what for kind, _ in Instruments([Kind("quiet", Quiet), Kind("told", Told([], "told"))])._ending] == ["told"]
    assert Instrument().run() is Instrument().pause() is Instrument().end_step() is Instrument().close() is None
    with pytest.raises(NotImplementedError):
        Instrument().lap()


def test_those_that_count_get_each_steps_batches_and_their_overhead_is_summed():
    class Counts(Quiet):
        overhead_ns = 30

        def add_counts(self, batch, *, skipped):
            batch.append(skipped)

    instruments = Instruments([Kind("counts", Counts), Kind("quiet", Quiet), Kind("again", Counts)])
    batch: list[bool] = []
    instruments.add_counts(batch, skipped=True)
    assert batch == [True, True]
    assert instruments.overhead_ns == 60


# ---- over all ranks --------------------------------------------------------------------------------------------------


def summed(kinds, world, timed, maxima=(), extra=()):
    layout = VectorLayout((), None, (*Instruments(kinds).slices, *extra))
    vector = layout.zeros()
    for name, value in timed.items():
        layout.add(vector, name, value)
    return Summed(layout, Place(world=world), layout.zeros(), vector, layout.zeros(), maxima, lambda values: None)


def test_a_measurement_speaks_where_every_rank_had_a_reading(caplog):
    class Breaks(Kind):
        def measured(self, summed):
            return 1 // 0

    kinds = [Kind(name, Quiet) for name in ("all", "some", "nothing")] + [Breaks("breaks", Quiet)]
    instruments = Instruments(kinds)
    found = instruments.measured(
        summed(
            kinds,
            3,
            {
                "all_ns": 9,
                "all_ns_readings": 3,
                "some_ns": 9,
                "some_ns_readings": 2,
                "nothing_ns_readings": 3,
                "breaks_ns_readings": 3,
            },
        )
    )
    assert {name: measured.metrics(None) for name, measured in found.items()} == {"all": {"all": 9}}
    assert "breaks is not reported from here on: ZeroDivisionError" in caplog.text
    assert caplog.text.count("not reported") == 1


def test_a_slice_is_looked_up_among_the_sums_or_the_maxima():
    extra = (Slice("largest", 2, Reduce.MAX), Slice("share", reduce=Reduce.FLOAT))
    found = summed([Kind("a", Quiet)], 1, {"a_each": [3, 4], "share": 0.25}, maxima=[8, 9], extra=extra)
    assert (found["a_each"], found["largest"], found["share"]) == ([3, 4], [8, 9], [0.25])
