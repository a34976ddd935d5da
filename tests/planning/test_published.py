"""Published throughputs through ``check``: every row, and the page that shows them."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))

import generate  # noqa: E402
import published_rows  # noqa: E402

#: Sources whose rows are the first 266; Megatron-Bridge's tables are the rest.
BRIDGE = "NVIDIA-NeMo/Megatron-Bridge"


@pytest.fixture(scope="module")
def rows():
    return generate.rows()


def test_most_rows_agree(rows):
    """At least 95% by a convention or a named rule; what does not is listed, with what is known."""
    own = [row for row in rows if not row.source.startswith(BRIDGE)]
    assert (len(own), len(rows) - len(own)) == (266, 257)
    for some in (own, [row for row in rows if row.source.startswith(BRIDGE)]):
        verdicts = Counter(row.verdict for row in some)
        assert verdicts["agrees"] + verdicts["explained"] >= 0.95 * len(some), verdicts
    assert all(row.known for row in rows if row.verdict in ("open", "wrong"))


def test_what_is_open(rows):
    """Neither more nor less: a row that begins to agree leaves the list."""
    opened = Counter((published_rows.family(row), row.told["model"]) for row in rows if row.verdict == "open")
    assert opened == Counter({
        ("NVIDIA-NeMo/Automodel", "Nemotron V3 Nano 30B (26.02)"): 1, ("NVIDIA/NeMo", "LLAMA2-7B LoRA"): 1,
        ("foundation-model-stack/fms-fsdp", "Llama2 7b A100"): 1, ("foundation-model-stack/fms-fsdp", "Llama2 7b H100"): 1,
        ("foundation-model-stack/fms-fsdp", "Llama2 13b A100"): 1, ("foundation-model-stack/fms-fsdp", "Llama2 34b A100"): 1,
        ("foundation-model-stack/fms-fsdp", "Llama2 34b H100"): 1, ("foundation-model-stack/fms-fsdp", "Llama2 70b H100"): 1,
        (BRIDGE, "DeepSeekV3"): 1, (BRIDGE, "DeepSeekV3 (dropless)"): 1, (BRIDGE, "Nemotron_3_Ultra"): 1,
    })  # fmt: skip


def test_parameters_are_integers(rows):
    mpt = [row for row in rows if row.source.startswith("mosaicml")]
    assert len(mpt) == 166
    assert all(row.check.parameters["total"] == row.told["parameters"] for row in mpt)


def test_palm_gives_every_row_of_llm_foundry(rows):
    assert max(row.way.distance for row in rows if row.source.startswith("mosaicml")) < 0.0025


def test_wrong_numbers_are_shown_as_wrong(rows):
    """Nothing counts the pure delta net's; GPT-OSS's has the wrong head size, which its verdict says."""
    wrong = {row.told["model"]: row.check for row in rows if row.verdict == "wrong"}
    assert wrong.keys() == {"GPT-OSS 120B", "pure GDN 300M"}
    assert all(not found.fits for found in wrong.values())
    assert wrong["GPT-OSS 120B"].explanations[0].rules == ("head_size_by_width",)
    assert "fits no convention and no usual mistake" in wrong["pure GDN 300M"].verdict
    assert wrong["pure GDN 300M"].under("megatron").flops_per_token == 1855881216
    assert wrong["pure GDN 300M"].parameters["total"] == 307767232


def test_the_page_is_current(rows):
    page = DOCS / generate.LONG
    assert generate.render(page.read_text()) == page.read_text(), "run `python docs/generate.py`"
    assert sum(row.told["model"] in line for line in page.read_text().splitlines() for row in rows[:1]) >= 1
