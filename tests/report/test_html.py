"""Cards, remarks and tables as HTML."""

from bridge.report.html import facts, notes, table
from bridge.report.view import Card, Column, Table


def test_a_card_keeps_its_exact_value():
    html = facts([Card("total_flops", "FLOPs <so far>", 1_587_005_574_144, "1.587 TFLOP", "of the run")])
    assert html == (
        '<dl class="facts"><div class="fact"><dt>FLOPs &lt;so far&gt;</dt>'
        '<dd data-fact="total_flops" data-value="1587005574144">1.587 TFLOP</dd><dd class="detail">of the run</dd></div></dl>'
    )


def test_remarks_are_a_list_and_nothing_where_there_are_none():
    assert notes(["a & b"]) == '<ul class="notes"><li>a &amp; b</li></ul>'
    assert notes([]) == ""


def test_numbers_of_a_table_can_be_told_from_its_texts():
    columns = (Column("key", "key"), Column("last", "last", lambda value: f"{value:.1f}"), Column("unit", "unit"))
    html = table(Table(columns, [("mfu", 0.25, "<1>")], "All keys"))
    assert html.startswith('<div class="table" tabindex="0" role="region" aria-label="All keys"><table><caption>')
    assert html.endswith(
        '<tbody><tr><th scope="row">mfu</th><td class="number" data-value="0.25">0.2</td><td>&lt;1&gt;</td></tr></tbody>'
        "</table></div>"
    )
