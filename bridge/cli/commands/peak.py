"""``bridge peak``: how much of the peak the matmuls of a recipe can reach on this device."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from bridge.cli import arguments as options
from bridge.cli.console import Output, make_table, print_json
from bridge.flops import ConfigError, compile_plan
from bridge.text import significant

_EXAMPLES = {
    "every matmul of a model": "bridge peak llama3-8b",
    "more carefully, for a device that the table does not know": "bridge peak tiny --seconds 1 --peak-flops 400TFLOP/s",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "peak",
        run,
        "Run a recipe's linear layers on this device, in the shapes that micro-batch and layout give them. If nothing else "
        "ran, this would be the highest possible MFU. Attention's products, norms and communication are left out.",
        _EXAMPLES,
    )
    options.add_model(parser)
    parser.add_argument(
        "--number-format", default="bf16", choices=("bf16", "fp16", "fp32"), help="format of the matmuls (default bf16)"
    )
    parser.add_argument(
        "--peak-flops", type=options.flops_rate, metavar="FLOP/S", help="dense peak of the device, overriding the table"
    )
    parser.add_argument("--seconds", type=options.seconds, default=0.2, metavar="S", help="seconds per shape (default 0.2)")


def run(arguments: argparse.Namespace) -> int:
    if find_spec("torch") is None:
        raise ConfigError("bridge peak needs torch, which is not installed; pip install 'bridge-flops[train]'")
    import torch

    from bridge.metrics.achievable import matmuls, measure, reached
    from bridge.metrics.peak import device_peak

    cfg = options.read_config(arguments.recipe, arguments.overrides)
    parallel = cfg.parallel
    if not cfg.model.seq_length:
        raise ConfigError(f"{arguments.recipe} does not set a sequence length: add model.seq_length=4096")
    tokens = cfg.train.micro_batch_size * cfg.model.seq_length // parallel.context_parallel_size
    plan = compile_plan(cfg, "exact")
    found = matmuls(plan, tokens, tensor=parallel.tensor_model_parallel_size, experts=cfg.model.num_moe_experts)
    if not found:
        raise ConfigError(f"{arguments.recipe} has no linear layers over tokens")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[arguments.number_format]
    peak = device_peak(arguments.number_format, configured=arguments.peak_flops, device=device)
    rates = measure(found, dtype, device, arguments.seconds)
    whole = sum(one.flops for one in found)
    most = reached(rates)
    if arguments.json:
        print_json(
            {
                "device": peak.device,
                "peak_flops": peak.flops,
                "peak_source": peak.source,
                "achievable_flops": most,
                "achievable_fraction": most / peak.flops if peak.flops else None,
                "matmuls": [{**vars(one.matmul), "rate": one.rate} for one in rates],
            }
        )
        return 0
    table = make_table(("matmul",), ("m", "k", "n", "of the work", "TFLOP/s", "of the peak"))
    for one in rates:
        share = f"{one.rate / peak.flops:.0%}" if peak.flops else ""
        sizes = (f"{size:,}" for size in (one.matmul.m, one.matmul.k, one.matmul.n))
        table.add_row(one.matmul.name, *sizes, f"{one.matmul.flops / whole:.1%}", significant(one.rate / 1e12), share)
    console = Output()
    console.print(f"{peak.device}, {arguments.number_format}; peak: {peak.source}\n")
    console.show(table)
    limit = f"At most {most / peak.flops:.0%} MFU" if peak.flops else f"At most {significant(most / 1e12)} TFLOP/s"
    console.print(f"\n{limit} with these shapes, if nothing but these matmuls ran.")
    return 0
