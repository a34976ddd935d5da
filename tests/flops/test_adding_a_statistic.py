"""A new attention pattern in a copy of the counting floor: its formula in one file, what prices it in another."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: File -> a line of it, and what goes before that line.
CHANGES = {
    "bridge/flops/statistics.py": [
        ('    "quotient": ', '    "dilated_pairs": lambda s, step: compressed_pairs(s + step - 1, step),\n'),
        ('    CHUNK = "chunk"', '    DILATED = "dilated"\n'),
    ],
    "bridge/flops/conventions.py": [
        ('    "topk": lambda topk: (WHOLE', '    "dilated": lambda step: (WHOLE, "dilated_pairs", (step,)),\n')
    ],
}
#: Every third key, the query itself among them, of 10 and of 4 tokens.
QUESTION = """
from bridge.flops.conventions import EXACT
from bridge.flops.terms import Context, core
from bridge.flops.plan import Plan
from bridge.flops.transforms import differentiate, everything
from bridge.flops.frameworks import MEGATRON
term = core("query_key", "core", Context("dilated", (3,)), head_size=8, heads=2, inputs=("q", "k"), output="s")
terms = differentiate([term], everything, MEGATRON)
print(Plan(EXACT, terms, (), everything, lambda how: terms).flops([10, 4], passes="forward"))
"""


def test_a_statistic_is_two_files(tmp_path):
    shutil.copytree(ROOT / "bridge", tmp_path / "bridge", ignore=shutil.ignore_patterns("__pycache__"))
    for name, lines in CHANGES.items():
        path = tmp_path / name
        text = path.read_text()
        for line, new in lines:
            assert text.count(line) == 1
            text = text.replace(line, new + line)
        path.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", QUESTION], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pairs = sum((t + 2) // 3 for length in (10, 4) for t in range(1, length + 1))
    assert int(done.stdout) == 2 * 8 * 2 * pairs
