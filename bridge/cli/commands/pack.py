"""``bridge pack``: the instruction data of a recipe, packed once and written to files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bridge.cli import arguments as options
from bridge.cli.console import Output, make_table, print_json
from bridge.config import load_recipe
from bridge.flops import ConfigError
from bridge.text import exactly, percent

if TYPE_CHECKING:
    from bridge.data.packed.content import PackedRow

_EXAMPLES = {
    "the instruction data of a recipe": "bridge pack tiny_lora packed.npy",
    "with the rows that are kept for evaluation": "bridge pack tiny_lora packed.parquet --evaluation evaluation.parquet",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "pack",
        run,
        "Pack a recipe's instruction data and write the rows in NeMo's format. Train on them with "
        "data.packed_sequence_specs.packed_train_data_path=FILE.",
        _EXAMPLES,
    )
    parser.add_argument("recipe", help="a YAML file, or a name from `bridge recipes`; its data.kind is instructions")
    parser.add_argument("file", help="output file: .npy or .parquet")
    parser.add_argument("overrides", nargs="*", metavar="section.option=value", help="overrides, last one wins")
    parser.add_argument("--evaluation", metavar="FILE", help="also write the rows that are kept for evaluation")


def run(arguments: argparse.Namespace) -> int:
    from bridge.data.instructions import pack_instructions, packed_sequence_size
    from bridge.data.packed.content import check_ending, write_rows

    config = load_recipe(arguments.recipe, arguments.overrides, validate=False)
    if config.data.kind != "instructions":
        raise ConfigError(f"{arguments.recipe}: data.kind={config.data.kind} cannot be packed; add data.kind=instructions")
    for file in filter(None, (arguments.file, arguments.evaluation)):
        check_ending(file)
    parts = zip((arguments.file, arguments.evaluation), pack_instructions(config), strict=True)
    written = {}
    for file, rows in parts:
        if file is not None:
            write_rows(file, rows)
            written[file] = _facts(rows, packed_sequence_size(config))
    if arguments.json:
        print_json(written)
        return 0
    table = make_table(("file",), ("rows", "sequences", "input tokens", "learned", "filled"))
    for file, facts in written.items():
        shares = (percent(facts[name]) for name in ("learned", "filled"))
        table.add_row(file, *(exactly(facts[name]) for name in ("rows", "sequences", "input_tokens")), *shares)
    Output().show(table)
    return 0


def _facts(rows: Sequence[PackedRow], size: int) -> dict[str, Any]:
    """What was written; ``learned``: share of the inputs whose next token is learned; ``filled``: share of the rows' size."""
    segments = [segment for row in rows for segment in row.segments()]
    tokens = sum(len(segment[0]) for segment in segments)
    learned = sum(int(segment[2].sum()) for segment in segments)  # type: ignore[misc]
    filled = sum(len(row.input_ids) for row in rows) / (size * max(len(rows), 1))
    return {
        "rows": len(rows),
        "sequences": len(segments),
        "input_tokens": tokens,
        "learned": learned / max(tokens, 1),
        "filled": filled,
    }
