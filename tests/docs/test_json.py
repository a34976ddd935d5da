"""What ``--json`` prints is what docs/bridge.schema.json says, for every command that has it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from bridge.cli.console import JSON_VERSION
from bridge.cli.main import main
from bridge.cli.parser import commands_of, make_parser

jsonschema = pytest.importorskip("jsonschema")

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "bridge.schema.json").read_text())


def validator(name: str) -> Any:
    return jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"})


#: Commands that the schema was not made from.
COMMANDS = [
    "flops train_deepseek_v3 --devices 1024 --explain",
    "flops qwen2.5-vl-7b --sequence-lengths 4096,512 --image-size 1024x768 --passes forward",
    "flops nemotron-h-8b --convention palm --number-format mxfp8 --device-name B200",
    "compare gpt-oss-20b --convention megatron,executed --bytes-per-token 4",
    "compare llama3-8b peft.kind=qlora llama3-8b parallel.pipeline_model_parallel_size=4",
    "check gemma3-4b --sequence-length 4k --reported 41% --tokens-per-second 9000 --device-name A100",
    "check llama3-8b --devices 8 --step-time 12.5s --global-batch-size 128",
    "plan qwen3-30b-a3b --tokens 1T --devices 64 --device-name H200 --number-format fp8 --power 1.2kW",
    "plan llama3-8b --budget 30days --devices 8 --peak-flops 1PFLOP/s --mfu 30-40%",
    "plan_layouts tiny_moe --devices 4 --device-name H100 --global-batch-size 8",
    "inference gpt-oss-20b --prompt 1k --generate 2 --peak-flops 1P --bandwidth 3.35TB/s",
    "inference deepseek-v3 --prompt 64 --generate 3 --no-kv-cache",
    "ledger true --lora-rank 8 --steps 3 --evaluations 2 --generate 5",
    "recipes",
    "devices H100",
    "integrations accelerate",
    "dashboard --grafana",
]


@pytest.mark.parametrize("words", COMMANDS)
def test_what_is_printed(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *rest = words.split()
    assert main([name.partition("_")[0], *rest, "--json"]) == 0
    validator(name).validate(json.loads(capsys.readouterr().out))


def test_every_command_with_json_has_a_schema() -> None:
    def has_json(parser: argparse.ArgumentParser) -> bool:
        return "--json" in parser._option_string_actions

    commands = {name for name, parser in commands_of(make_parser()).items() if has_json(parser)}
    assert SCHEMA["$defs"].keys() == commands | {"plan_layouts"}


def test_every_object_has_the_version() -> None:
    for what in SCHEMA["$defs"].values():
        one = what.get("items", what)
        assert one["required"][0] == "version"
        assert one["properties"]["version"]["const"] == JSON_VERSION


def test_what_was_promised() -> None:
    promised = {"flops", "flops_per_token", "convention", "parameters", "components", "stages", "not_counted"}
    assert promised <= set(SCHEMA["$defs"]["flops"]["required"])


@pytest.mark.parametrize("change", [{"version": 2}, {"flops": "many"}, {"stages": None}])
def test_what_does_not_hold(change: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "tiny", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    validator("flops").validate(found)
    assert not validator("flops").is_valid(found | change)
    assert not validator("flops").is_valid({key: value for key, value in found.items() if key not in change})
