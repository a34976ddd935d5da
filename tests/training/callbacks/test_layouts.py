"""The same number on every layout: real gloo ranks in megatron-core's groups against a brute-force sum.

One launch of four processes runs all cases.  What was fed follows from the seeds, so this process adds it up by itself,
length by length, without any of the machinery under test.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import callback_driver as driver
import pytest
from launch import launch

from bridge.flops import compile_plan

RANKS = 4
HERE = Path(__file__).parent
TIMES = ("per_sec", "tflops", "step_time", "overhead", "mfu", "hfu", "data_wait")

LAYOUTS = {
    "dp4": {},
    "tp2": {"tp": 2},
    "tp4": {"tp": 4},
    "pp2": {"pp": 2},
    "pp4": {"pp": 4},
    "pp2-vpp2": {"pp": 2, "vpp": 2},
    "tp2-pp2": {"tp": 2, "pp": 2},
    "tp2-pp2-vpp2": {"tp": 2, "pp": 2, "vpp": 2},
    "cp2": {"cp": 2},
    "cp4": {"cp": 4},
    "tp2-cp2": {"tp": 2, "cp": 2},
    "pp2-cp2": {"pp": 2, "cp": 2},
    "ep2": {"ep": 2},
    "ep4": {"ep": 4},
    "pp2-ep2": {"pp": 2, "ep": 2},
}


def build_cases() -> list[dict]:
    """Every layout with drawn lengths, forms, intervals and saves; then the odd ones."""
    numbers = random.Random(20)
    cases = []
    for name, layout in LAYOUTS.items():
        steps = numbers.randint(5, 12)
        cases.append(
            {
                "name": name,
                **layout,
                "form": numbers.choice(["packed", "padded", "fixed"]),
                "convention": numbers.choice(["megatron", "exact", "executed"]),
                "micro_batches": numbers.randint(1, 3),
                "steps": steps,
                "log_interval": numbers.randint(1, 6),
                "save": numbers.sample(range(1, steps), 2),
                "evaluate": numbers.sample(range(1, steps), 1),
                "skipped": numbers.sample(range(1, steps), 1),
                "seed": numbers.randrange(1000),
            }
        )
    base = {"form": "packed", "convention": "exact", "micro_batches": 2, "steps": 8, "log_interval": 3, "seed": 5}
    return [
        *cases,
        {**base, "name": "some micro-batches are empty", "empty": True},
        {**base, "name": "one rank sees no data at all", "idle": [2]},
        {**base, "name": "nobody sees data", "idle": [0, 1, 2, 3]},
        # The same data with another layout and interval after a restart: the replicas are the same, the ranks are not.
        {**base, "name": "before a restart", "steps": 10, "save": [5], "tp": 2},
        {**base, "name": "after it", "steps": 10, "resumes": "before a restart", "pp": 2, "log_interval": 4},
        {**base, "name": "broken batch", "fault": {"kind": "broken", "replica": 1, "from": 8}},
        {**base, "name": "bound overrun", "fault": {"kind": "huge", "replica": 3, "from": 8}},
        *(
            {**base, "name": f"broken {part}", "breaks": part, "save": [4, 7], "evaluate": [5]}
            for part in ("clock", "plan", "report", "publication", "counting")
        ),
        {**base, "name": "mute batches", "fault": {"kind": "mute", "replica": 2, "from": 8}},
    ]


CASES = build_cases()
NAMES = [case["name"] for case in CASES]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[list[dict]]:
    """What each rank saw, by case."""
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "cases.json").write_text(json.dumps(CASES))
    finished = launch(RANKS, str(HERE / "layout_worker.py"), str(folder / "cases.json"), str(folder))
    assert finished.returncode == 0, finished.stderr[-3000:]
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]
    return [list(case) for case in zip(*ranks, strict=True)]


def replicas(case: dict) -> int:
    return RANKS // (case.get("tp", 1) * case.get("pp", 1) * case.get("cp", 1))


def fed(case: dict, first: int = 0, last: int | None = None) -> list[list[list[int]]]:
    """Real lengths of the micro-batches of steps first + 1 .. last, by replica."""
    form, count = getattr(driver, case["form"]), case["micro_batches"]
    last = case["steps"] if last is None else last
    return [
        [driver.real_lengths(form, one) for one in driver.replica_lengths(case, replica)[first * count : last * count] if one]
        for replica in range(replicas(case))
    ]


def flat(by_replica: list[list[list[int]]]) -> list[int]:
    return [length for lengths in by_replica for one in lengths for length in one]


def plan_of(case: dict):
    model = driver.config(**({"num_moe_experts": 4, "moe_ffn_hidden_size": 32} if case.get("ep") else {})).model
    return compile_plan(model, convention=case["convention"])


HEALTHY = [(i, case) for i, case in enumerate(CASES) if not case.keys() & {"fault", "breaks"}]


@pytest.mark.slow
@pytest.mark.parametrize(("index", "case"), HEALTHY, ids=[case["name"] for _, case in HEALTHY])
def test_totals_equal_the_brute_force_sum_on_every_rank(results, index, case):
    plan, lengths = plan_of(case), flat(fed(case))
    for rank in results[index]:
        assert rank["warnings"] == []
        assert rank["latest"]["step"] == case["steps"]
        assert rank["latest"]["throughput/total_flops"] == plan.flops(lengths)
        assert rank["latest"]["throughput/total_tokens"] == sum(lengths)
        assert rank["state"]["total_flops"] == plan.flops(lengths)
        assert rank["state"]["statistics"]["sequences"] == len(lengths)
        assert rank["state"]["statistics"]["micro_batches"] == sum(map(len, fed(case)))


@pytest.mark.slow
@pytest.mark.parametrize(("index", "case"), HEALTHY, ids=[case["name"] for _, case in HEALTHY])
def test_the_last_row_is_right_and_equal_on_every_rank(results, index, case):
    last_log = (case["steps"] - 1) // case["log_interval"] * case["log_interval"]
    by_replica = fed(case, last_log)
    lengths, plan = flat(by_replica), plan_of(case)
    rows = [
        {key: value for key, value in rank["latest"].items() if not any(word in key for word in TIMES)} for rank in results[index]
    ]
    assert all(row == rows[0] for row in rows)
    components = {k.removeprefix("throughput/flops/"): v for k, v in rows[0].items() if "/flops/" in k}
    assert components == plan.breakdown(lengths)
    form = getattr(driver, case["form"])
    count = case["micro_batches"]
    positions = sum(
        driver.positions(form, one)
        for replica in range(replicas(case))
        for one in driver.replica_lengths(case, replica)[last_log * count : case["steps"] * count]
        if one
    )
    if positions:
        assert rows[0]["throughput/padding_fraction"] == 1 - sum(lengths) / positions
    work = [plan.flops(flat([lengths])) for lengths in by_replica]
    expected = max(work) * len(work) / sum(work) if len(work) > 1 and any(work) else None
    assert rows[0].get("throughput/imbalance/data_parallel") == expected
    stages = case.get("pp", 1)
    if stages > 1:
        by_stage = plan.evaluate_stages(plan.measure(lengths), stages, case.get("vpp") or 1)
        assert rows[0]["throughput/imbalance/pipeline"] == max(by_stage) * stages / sum(by_stage)


@pytest.mark.slow
@pytest.mark.parametrize(("index", "case"), enumerate(CASES), ids=NAMES)
def test_which_collectives_run_follows_from_the_configuration_alone(results, index, case):
    """One asynchronous sum of one int64 vector per log point; one more where a save or the end finds steps unsummed."""
    first = next((other["save"][0] for other in CASES if other["name"] == case.get("resumes")), 0)
    sums = 0
    for step in range(first + 1, case["steps"] + 1):
        logs, saves = step % case["log_interval"] == 0, step in case.get("save", ())
        sums += logs or saves
    logged = case["steps"] // case["log_interval"] * case["log_interval"]
    sums += case["steps"] > max(logged, first)  # the row of the last, partial interval
    size = len(plan_of(case).statistics)
    for rank in results[index]:
        assert len(rank["collectives"]) == sums
        assert {dtype for _, dtype in rank["collectives"]} == {"torch.int64"}
        assert rank["collectives"] == results[index][0]["collectives"]
        # Two limbs of the plan's statistics, a dozen counters, an entry a rank and a replica; the work of the sampled steps
        # apart, and in the first sum that of the warm-up.
        sizes = [count for count, _ in rank["collectives"]]
        parts = 2 if case["log_interval"] > 1 else 1
        assert sizes[0] * parts == sizes[-1] * (parts + 1) if len(sizes) > 1 else True
        assert sizes[-1] <= 2 * (parts + 1) * (size + 2 + 6 + 3 + 4 + RANKS + replicas(case))


@pytest.mark.slow
def test_a_restart_on_another_layout_continues_the_state(results):
    before, after = NAMES.index("before a restart"), NAMES.index("after it")
    assert results[before][0]["state"] == results[before][3]["state"]
    unbroken, resumed = results[before][0]["state"], results[after][0]["state"]
    assert unbroken == resumed


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), [("broken batch", "broken batch"), ("bound overrun", "outside -2^80 .. 2^80")])
def test_one_rank_that_cannot_count_ends_the_numbers_on_all_and_hangs_none(results, name, words):
    ranks = results[NAMES.index(name)]
    case = CASES[NAMES.index(name)]
    before = plan_of(case).flops(flat(fed(case, last=3)))
    for number, rank in enumerate(ranks):
        assert rank["latest"]["step"] == 3
        assert rank["latest"]["throughput/total_flops"] == before
        assert rank["state"]["complete"] is False
        own = [warning for warning in rank["warnings"] if words in warning]
        assert len(own) == (number == case["fault"]["replica"])
        told = [warning for warning in rank["warnings"] if "not reported from step 6 on" in warning]
        assert len(told) == (number == 0)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["clock", "plan", "report", "publication", "counting"])
def test_whatever_breaks_on_one_rank_all_ranks_still_make_the_same_sums(results, part):
    ranks = results[NAMES.index(f"broken {part}")]
    for number, rank in enumerate(ranks):
        assert rank["collectives"] == ranks[0]["collectives"]
        own = [warning for warning in rank["warnings"] if f"RuntimeError: broken {part}" in warning]
        assert len(own) == (number == 1)
        assert rank["state"]["complete"] is False


@pytest.mark.slow
def test_micro_batches_without_lengths_on_one_rank_are_said_on_all(results):
    index = NAMES.index("mute batches")
    case = CASES[index]
    by_replica = fed(case)
    by_replica[2] = by_replica[2][:8]
    for number, rank in enumerate(results[index]):
        assert rank["state"]["statistics"]["unread_micro_batches"] == 8
        assert rank["latest"]["throughput/unread_micro_batches"] == 4  # in the steps after the last log point
        assert rank["latest"]["throughput/total_flops"] == plan_of(case).flops(flat(by_replica))
        assert len(rank["warnings"]) == (number == 2)
