"""The flags that Megatron-LM's parser gets; what they do is tested with its loop, on two ranks."""

from __future__ import annotations

from argparse import ArgumentParser

import pytest

from bridge.integrations.megatron_lm import _add_flags


@pytest.mark.parametrize("text", ["989.4TFLOP/s", "989.4e12", "989.4T", "989400000000000"])
def test_a_peak_is_written_as_on_the_command_line(text):
    assert _add_flags(ArgumentParser()).parse_args(["--bridge-peak-flops", text]).bridge_peak_flops == 989.4e12


@pytest.mark.parametrize(("text", "said"), [("fast", "must be a number"), ("3.35TB/s", "or in FLOP/s"), ("0", "above zero")])
def test_what_is_no_peak_is_one_sentence(text, said, capsys):
    with pytest.raises(SystemExit):
        _add_flags(ArgumentParser()).parse_args(["--bridge-peak-flops", text])
    assert said in capsys.readouterr().err.splitlines()[-1]
