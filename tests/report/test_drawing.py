"""The heat map of experts: a row a layer, a cell a step, darker for more."""

import re

from bridge.report.chart import fill
from bridge.report.drawing import svg
from bridge.report.panels import SECTIONS
from bridge.report.run_file import RecordedRun

PANEL = next(panel for section in SECTIONS for panel in section.panels if panel.kind == "heat")
NAME = "throughput/imbalance/experts/layer_{}"


def drawn(rows):
    run = RecordedRun("metrics file")
    run.take(rows)
    return svg(fill(PANEL, run))


def test_every_layer_and_step_is_a_cell():
    rows = [{"step": step, NAME.format(0): 1.0, NAME.format(1): value} for step, value in ((10, 1.5), (20, 3.0), (40, 2.0))]
    number = r'"([\d.]+)"'
    cell = f'<rect x={number} y={number} width={number} height={number} fill="#d55e00" fill-opacity={number}'
    cells = re.findall(cell, drawn(rows))
    assert [float(cell[4]) for cell in cells] == [0, 0, 0, 0.25, 1, 0.5]
    assert {cell[1] for cell in cells} == {"10.0", "118.0"}
    assert sum(float(cell[2]) for cell in cells[:3]) == 640 - 56 - 14
    assert ">0</text>" in drawn(rows)


def test_many_layers_have_few_names_and_equal_values_no_colour():
    rows = [{"step": 1, **{NAME.format(layer): 1.0 for layer in range(61)}}]
    found = drawn(rows)
    assert len(re.findall("<rect", found)) == 61
    assert set(re.findall(r'fill-opacity="([\d.]+)"', found)) == {"0.000"}
    assert len(re.findall('text-anchor="end"', found)) == 1 + 13
