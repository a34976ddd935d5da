"""``bridge inference``: what a request costs, prefill and decode apart, and how fast a device could answer it."""

from __future__ import annotations

import argparse
from typing import Any

from bridge.cli import arguments as options
from bridge.cli.commands.flops import sizes
from bridge.cli.console import Output, make_table, print_json
from bridge.cli.priced import refuse_what_has_no_effect
from bridge.config import Config
from bridge.flops import ConfigError, compile_plan
from bridge.flops.reading import read
from bridge.planning.inference import LATENTS, Generation, InferencePlan, MemoryTraffic, Roofline, experts_met, prefill_and_decode
from bridge.planning.quantities import plain
from bridge.planning.speculation import Speculation, speculate
from bridge.text import count, exactly, significant, with_unit

_SPANS = ("prefill", "decode", "total")

_EXAMPLES = {
    "the bounds that one device sets": "bridge inference llama3-8b --prompt 2k --generate 500 --device-name H100",
    "32 requests together, an 8-bit cache": "bridge inference llama3-8b --prompt 2k --generate 500 --batch 32 --cache-bytes 1",
    "with a draft model": "bridge inference llama3-70b --prompt 2k --generate 500 --draft llama3.2-1b --acceptance 0.8",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "inference",
        run,
        "Count FLOPs and bytes of a request, separately for prefill and decode. With a device, also show the bounds that its "
        "peak and its memory bandwidth set on time to first token and tokens per second.",
        _EXAMPLES,
    )
    options.add_model(parser)
    parser.add_argument("--prompt", type=options.length, required=True, metavar="N", help="tokens of the prompt")
    parser.add_argument("--generate", type=options.length, required=True, metavar="N",
                        help="tokens of the answer; the pass over the prompt gives the first one")  # fmt: skip
    parser.add_argument("--batch", "--batch-size", type=options.positive, default=1, metavar="N",
                        help="equal requests that run together (default 1)")  # fmt: skip
    parser.add_argument("--no-kv-cache", action="store_true", help="recompute the whole sequence for every token")
    parser.add_argument("--image-patches", type=options.lengths, default=(), metavar="N,N,...", help="patches of each image")
    parser.add_argument("--logits-to-keep", type=options.length, default=0, metavar="N",
                        help="positions of the prompt that the output layer computes (default all; engines keep 1)")  # fmt: skip
    parser.add_argument(
        "--latents", choices=tuple(LATENTS), help="what MLA's decode steps do with the cached latents (default once)"
    )
    parser.add_argument("--cached-prompt", type=options.length, default=0, metavar="N",
                        help="leading tokens of the prompt that are already cached (prefix caching)")  # fmt: skip
    parser.add_argument("--draft", metavar="MODEL", help="a small model that proposes tokens (speculative decoding)")
    parser.add_argument(
        "--proposals", type=options.positive, default=4, metavar="N", help="proposals of the draft per pass (default 4)"
    )
    parser.add_argument(
        "--acceptance",
        type=options.fraction,
        metavar="FRACTION",
        help="fraction of proposals that the model accepts, for example 0.8",
    )
    options.add_counting(parser, "exact")
    parser.add_argument("--weight-bytes", type=options.number, default=2, metavar="N", help="bytes per weight (default 2)")
    parser.add_argument("--cache-bytes", type=options.number, default=2, metavar="N", help="bytes per cached number (default 2)")
    options.add_device(parser, options.positive, 1)
    parser.add_argument(
        "--bandwidth", type=options.byte_rate, metavar="BYTE/S", help="memory bandwidth of one device, overriding the table"
    )


def run(arguments: argparse.Namespace) -> int:
    config = options.read_config(arguments.recipe, arguments.overrides)
    plan = compile_plan(config)
    refuse_what_has_no_effect(plan, {"image_patches": arguments.image_patches})
    generation = prefill_and_decode(
        config,
        arguments.prompt,
        arguments.generate,
        not arguments.no_kv_cache,
        batch_size=arguments.batch,
        image_patches=arguments.image_patches,
        convention=arguments.convention,
        logits_to_keep=arguments.logits_to_keep,
        latents=arguments.latents,
        memory=MemoryTraffic(weight=arguments.weight_bytes, cache=arguments.cache_bytes),
        cached_tokens=arguments.cached_prompt,
    )
    roofline = _roofline(generation, arguments)
    speculation = _speculation(config, arguments)
    parameters = plan.parameters()
    experts = _experts_reached(config, arguments.batch)
    if arguments.json:
        report = {"name": config.name, "parameters": parameters, **_as_json(generation, roofline), "experts_reached": experts}
        print_json(report | {"speculation": None if speculation is None else _speculation_as_json(speculation, arguments)})
        return 0
    console = Output()
    console.print(f"[bold]{config.name}[/]: {sizes(parameters)}")
    cached = "with" if generation.kv_cache else "without"
    console.print(
        f"{count(generation.batch_size, 'request')} of {count(generation.prompt_tokens, 'token')} answered with "
        f"{count(generation.generated_tokens, 'token')}, {cached} a KV cache; convention {generation.convention}\n"
    )
    _show(console, generation, roofline)
    if experts is not None:
        console.print(
            f"a decoding step of {count(arguments.batch, 'request')} reaches {significant(experts)} experts of a layer on average"
        )
    if speculation is not None:
        _show_speculation(console, speculation, arguments)
    return 0


def _experts_reached(config: Config, tokens: int) -> float | None:
    """Different experts of a layer that this many tokens choose, if all are equally likely; None without experts."""
    shape = read(config).shape
    return None if shape.num_moe_experts is None else experts_met(shape.num_moe_experts, shape.moe_router_topk, tokens)


def _speculation(config: Config, arguments: argparse.Namespace) -> Speculation | None:
    """None without a draft."""
    if arguments.draft is None:
        return None
    if arguments.acceptance is None:
        raise ConfigError("--acceptance is missing: give the fraction of the draft's proposals that the model accepts")
    target, draft = (
        InferencePlan(cfg, arguments.convention, latents=arguments.latents)
        for cfg in (config, options.read_config(arguments.draft))
    )
    return speculate(
        target,
        draft,
        arguments.prompt,
        arguments.generate,
        proposals=arguments.proposals,
        acceptance=arguments.acceptance,
        batch_size=arguments.batch,
        memory=MemoryTraffic(weight=arguments.weight_bytes, cache=arguments.cache_bytes),
    )


def _decode_time(speculation: Speculation, arguments: argparse.Namespace) -> float | None:
    """Seconds at least of all passes after the prompt's; None where nothing says what it runs on."""
    peak, bandwidth = _rates(arguments)
    if not peak or not bandwidth:
        return None
    return speculation.time(peak * arguments.devices, bandwidth * arguments.devices)


def _rates(arguments: argparse.Namespace) -> tuple[float | None, float | None]:
    """FLOP/s and byte/s of one device, as given or as the table has them; None where neither says."""
    name, peak, bandwidth = arguments.device_name, arguments.peak_flops, arguments.bandwidth
    if name is None:
        return peak, bandwidth
    return peak or options.known_peak(name, arguments.number_format), bandwidth or options.known_bandwidth(name)


def _speculation_as_json(speculation: Speculation, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "tokens_per_pass": float(speculation.tokens_per_pass),
        "passes": speculation.passes,
        "target_flops": plain(sum(speculation.target)),
        "draft_flops": plain(sum(speculation.draft)),
        "bytes": sum(speculation.target_bytes) + sum(speculation.draft_bytes),
        "decode_time": _decode_time(speculation, arguments),
    }


def _show_speculation(console: Output, speculation: Speculation, arguments: argparse.Namespace) -> None:
    time = _decode_time(speculation, arguments)
    console.print(
        f"with a draft: {significant(speculation.tokens_per_pass)} tokens per pass, "
        f"{count(speculation.passes, 'pass', 'passes')}, "
        f"{with_unit(speculation.flops, 'FLOP')} after the prompt" + ("" if time is None else f", at best {significant(time)} s")
    )


def _roofline(generation: Generation, arguments: argparse.Namespace) -> Roofline | None:
    """None where nothing says what it runs on."""
    peak, bandwidth = _rates(arguments)
    if peak is None and bandwidth is None:
        return None
    if peak is None or bandwidth is None:
        raise ConfigError("without --device-name a roofline needs both --peak-flops and --bandwidth")
    return generation.roofline(arguments.device_name or "", num_devices=arguments.devices, peak_flops=peak, bandwidth=bandwidth)


def _as_json(generation: Generation, roofline: Roofline | None) -> dict[str, Any]:
    """FLOP, bytes, seconds; utilizations are fractions."""
    values: dict[str, Any] = {
        "convention": generation.convention,
        "prompt_tokens": generation.prompt_tokens,
        "generated_tokens": generation.generated_tokens,
        "batch_size": generation.batch_size,
        "kv_cache": generation.kv_cache,
        "flops": plain(generation.total),
        "prefill": {"flops": plain(generation.prefill), "bytes": generation.prefill_bytes},
        "decode": {
            "flops": plain(generation.decode),
            "bytes": generation.decode_bytes,
            "steps": [plain(step) for step in generation.steps],
            "step_bytes": list(generation.step_bytes),
        },
        "weight_bytes": generation.weight_bytes,
        "cache_bytes": generation.cache_bytes,
        "not_counted": list(generation.not_counted),
        "roofline": None,
    }
    if roofline is not None:
        values["roofline"] = {
            "time_to_first_token": roofline.time_to_first_token,
            "decode_time": roofline.decode_time,
            "total_time": roofline.total_time,
            "tokens_per_second": roofline.tokens_per_second,
            "mfu": dict(zip(_SPANS, roofline.mfu, strict=True)),
            "mbu": dict(zip(_SPANS, roofline.mbu, strict=True)),
            "prefill_bound": roofline.prefill_bound,
            "decode_bound": roofline.decode_bound,
        }
    return values


def _show(console: Output, generation: Generation, roofline: Roofline | None) -> None:
    timed = ("time", "MFU", "MBU", "bound by") if roofline else ()
    table = make_table(("",), ("passes", "FLOPs", "per pass", "bytes", "FLOPs per byte", *timed))
    steps = len(generation.steps)
    spans = (
        ("prefill", 1, generation.prefill, generation.prefill_bytes),
        ("decode", steps, generation.decode, generation.decode_bytes),
        ("total", 1 + steps, generation.total, generation.prefill_bytes + generation.decode_bytes),
    )
    times = (roofline.time_to_first_token, roofline.decode_time, roofline.total_time) if roofline else ()
    bounds = (roofline.prefill_bound, roofline.decode_bound, "") if roofline else ()
    for i, (name, passes, flops, size) in enumerate(spans):
        cells = [str(passes), with_unit(flops, "FLOP"), with_unit(flops / max(passes, 1), "FLOP"), with_unit(size, "B")]
        cells.append(significant(float(flops) / size) if size else "")
        if roofline:
            cells += [
                f"{significant(times[i])} s",
                f"{roofline.mfu[i]:.1%}",
                f"{roofline.mbu[i]:.1%}",
                bounds[i] if passes else "",
            ]
        table.add_row(name, *cells)
    console.show(table)
    console.print(
        f"\n[bold]{exactly(generation.total)} FLOP[/]; weights {with_unit(generation.weight_bytes, 'B')}, "
        f"cache {with_unit(generation.cache_bytes, 'B')} in the end"
    )
    if roofline:
        rate = f", {significant(roofline.tokens_per_second)} tokens/s" if roofline.tokens_per_second else ""
        console.print(
            f"at best {significant(roofline.time_to_first_token)} s to the first token{rate}, "
            f"{significant(roofline.total_time)} s in all"
        )
    for sentence in generation.not_counted:
        console.print(f"[yellow]not counted:[/] {sentence}")
