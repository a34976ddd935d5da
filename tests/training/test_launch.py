"""What the other tests start ranks with: it says what they said, and a rank that fails or hangs ends the launch."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("megatron.core")

from launch import launch

SUM = """
import os, sys, torch
torch.distributed.init_process_group("gloo")
rank = torch.tensor(torch.distributed.get_rank() + 1)
torch.distributed.all_reduce(rank)
print(os.getcwd(), sys.argv[1], os.environ["LOCAL_RANK"], rank.item(), torch.get_num_threads())
torch.distributed.destroy_process_group()
"""
FAILS = """
import os, sys, time
if os.environ["RANK"] == "1":
    print("ended", file=sys.stderr)
    sys.exit(3)
time.sleep(600)
"""


def script(folder: Path, text: str) -> str:
    (folder / "script.py").write_text(text)
    return str(folder / "script.py")


def test_ranks_meet(tmp_path: Path) -> None:
    done = launch(2, script(tmp_path, SUM), "word", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == [f"{tmp_path} word {rank} 3 1" for rank in range(2)]


def test_the_first_that_fails_ends_the_others(tmp_path: Path) -> None:
    done = launch(2, script(tmp_path, FAILS))
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "ended\n")


def test_one_that_hangs_is_ended(tmp_path: Path) -> None:
    assert launch(1, script(tmp_path, "import time; time.sleep(600)"), timeout=1).returncode == -9
