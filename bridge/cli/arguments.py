"""What commands share: the options that say what is counted, and the readers of numbers as people write them.

Modules that read and count models are imported where a model is read, so that ``--help`` does not wait for them.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from bridge.cli import COMMANDS
from bridge.cli.hints import hint as hint
from bridge.flops import ConfigError
from bridge.hardware import NUMBER_FORMATS, PEAKS, DatasheetPeak, find_peak
from bridge.planning import quantities
from bridge.planning.quantities import RANGE as RANGE
from bridge.planning.quantities import Quantity
from bridge.planning.training_run import Range

if TYPE_CHECKING:
    from bridge.config import Config

T = TypeVar("T")
Commands = argparse._SubParsersAction  # argparse has no public name for it
Parser = argparse.ArgumentParser

# ---- options --------------------------------------------------------------------------------------------------------


class _Help(argparse.HelpFormatter):
    """Breaks the lines of everything but examples, which people copy."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_EXAMPLES) else super()._fill_text(text, width, indent)


_EXAMPLES = "examples:\n"


def add_command(
    commands: Commands[Parser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    examples: Mapping[str, str],
    *,
    json: bool = True,
) -> Parser:
    """A command.

    Args:
        commands: where it is added.
        name, run: what it is called and does.
        text: what it does, in a few sentences.
        examples: what one may want, and the line to type; they end its ``--help``.
        json: it has ``--json``.
    """
    shown = _EXAMPLES + "\n".join(f"  # {wish}\n  {line}" for wish, line in examples.items())
    parser: Parser = commands.add_parser(name, help=COMMANDS[name], description=text, epilog=shown, formatter_class=_Help)
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=run)
    return parser


_MODEL = "a YAML recipe, a Hugging Face config.json, a MaxText YAML, or a name from `bridge recipes`"


def add_model(parser: Parser, text: str = _MODEL, *, metavar: str | None = None, or_trace: bool = False) -> None:
    """The positional arguments: a model and overrides; ``or_trace``: a model may be traced instead."""
    parser.add_argument("recipe", nargs="?" if or_trace else None, metavar=metavar, help=text)
    if or_trace:
        parser.add_argument("--trace", metavar="PACKAGE.MODULE:FACTORY", help="a function that returns a torch module, instead")
    parser.add_argument("overrides", nargs="*", metavar="section.option=value", help="overrides, last one wins")


def add_counting(parser: Parser, convention: str | None = "megatron") -> None:
    """How to count; None: as the recipe's callback does (``convention_of``)."""
    from bridge.flops.conventions import CONVENTIONS
    from bridge.flops.frameworks import FRAMEWORKS

    default = convention or "that of the recipe's callback, else megatron"
    parser.add_argument("--convention", default=convention, choices=tuple(CONVENTIONS), help=f"how to count (default {default})")
    parser.add_argument("--framework", choices=tuple(FRAMEWORKS),
                        help="whose layers and passes to count (default megatron; transformers for a config.json)")  # fmt: skip


def convention_of(arguments: argparse.Namespace, config: Config) -> str:
    """The convention that was asked for, else that of the recipe's callback, else megatron."""
    from bridge.flops.reading import get

    named = (get(callback, "convention") for callback in config.callbacks)
    return str(arguments.convention or next(filter(None, named), "megatron"))


def add_passes(parser: Parser) -> None:
    """Which passes to count."""
    from bridge.flops.plan import PASSES

    parser.add_argument("--passes", default="training", choices=tuple(PASSES),
                        help="forward only, training (default), or training with recomputation")  # fmt: skip


def add_replicas(parser: Parser) -> None:
    """How many replicas of the model share a step."""
    parser.add_argument("--devices", type=positive, metavar="N",
                        help="devices of the whole job; the replicas that result share the micro-batches of a "
                             "step (default: one replica)")  # fmt: skip


def add_device(
    parser: Parser, devices: Callable[[str], Any], default: int | None = None, text: str = "number of devices"
) -> None:
    """The devices that a model runs on; their number is required where it has no default."""
    parser.add_argument("--device-name", metavar="NAME", help="a name from `bridge devices`, or as torch reports it")
    text += f" (default {default})" if default else ""
    parser.add_argument("--devices", type=devices, default=default, required=default is None, metavar="N", help=text)
    parser.add_argument("--number-format", default="bf16", choices=NUMBER_FORMATS, help="format of the matmuls (default bf16)")
    parser.add_argument("--peak-flops", type=flops_rate, metavar="FLOP/S", help="dense peak of one device, overriding the table")


# ---- models and devices -----------------------------------------------------------------------------------------


def read_config(source: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of ``add_model``, see ``bridge.config.read_config``."""
    from bridge import config

    return config.read_config(source, overrides)


def read_or_traced(arguments: argparse.Namespace) -> Config:
    """The configuration of ``add_model(or_trace=True)``."""
    given = [] if arguments.recipe is None else [arguments.recipe]
    if arguments.trace:
        from bridge.config import with_overrides

        factory = importlib.import_module("bridge.tracing.factory")
        return with_overrides(factory.from_factory(arguments.trace), [*given, *arguments.overrides])
    if not given:
        raise ConfigError("no model given: name a recipe, a config.json or a name from `bridge recipes`, or --trace")
    return read_config(arguments.recipe, arguments.overrides)


def known_device(name: str) -> DatasheetPeak:
    """The row of the peak table; ConfigError with the nearest name where there is none."""
    peak = find_peak(name)
    if peak is None:
        meant = hint(name.lower(), [known.words for known in PEAKS])
        raise ConfigError(f"device {name!r} is unknown or ambiguous{meant}; name one from `bridge devices`, or give --peak-flops")
    return peak


def known_peak(name: str, number_format: str) -> float:
    """Dense FLOP/s of one device."""
    rates = known_device(name).tflops
    if number_format not in rates:
        raise ConfigError(
            f"device {name!r} has no {number_format} peak, only {', '.join(rates)}; change --number-format or give --peak-flops"
        )
    return rates[number_format] * 1e12


def known_bandwidth(name: str) -> float:
    """Memory bandwidth of one device in byte/s."""
    bandwidth = known_device(name).bandwidth
    if bandwidth is None:
        raise ConfigError(f"device {name!r} names devices with different memory; name one of them or give --bandwidth")
    return bandwidth * 1e12


# ---- numbers --------------------------------------------------------------------------------------------------------


def positive(text: str) -> int:
    """A whole number above zero: ``512``, ``1,024``, ``2k`` (2,000)."""
    return _argument(quantities.whole, text)


def length(text: str) -> int:
    """Tokens: ``4096`` or ``4k``."""
    return _argument(quantities.length, text)


def lengths(text: str) -> tuple[int, ...]:
    """``4096,512`` or ``8k,2k``."""
    return tuple(map(length, text.split(",")))


def sizes(text: str) -> tuple[tuple[int, int], ...]:
    """``1024x768,512x512``: width and height of each image."""
    pairs = [part.split("x") for part in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} must be widths and heights in pixels, for example 1024x768,512x512")
    return tuple((positive(width), positive(height)) for width, height in pairs)


def quantity(text: str) -> Quantity:
    """A number or a range with its unit, above zero."""
    result = _argument(Quantity.parse, text)
    if result.value.low <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be above zero")
    return result


def amount(text: str, unit: str = "") -> Range:
    """A number with an exponent or a suffix, or a range of them: ``15T``, ``1e24``, ``0.35-0.45``; alone or in a unit."""
    return _argument(partial(quantities.positive, unit=unit), text)


def number(text: str, unit: str = "") -> float:
    """One number with an exponent or a suffix."""
    return _argument(partial(quantities.single, unit=unit), text)


def counts(text: str) -> Range:
    """A whole number with an exponent or a suffix, or a range of them: ``512-1024``, ``15T``."""
    value = amount(text)
    if any(end != int(end) for end in (value.low, value.high)):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, or a range of them")
    return value


def money(text: str) -> Range:
    """``2-2.5`` or ``$2.5``."""
    return amount(text, "$")


def watts(text: str) -> Range:
    """``700``, ``700W`` or ``1.2kW``."""
    return amount(text, "W")


def flops_rate(text: str) -> float:
    """FLOP/s: ``989.4e12`` or ``989.4TFLOP/s``."""
    return number(text, "FLOP/s")


def byte_rate(text: str) -> float:
    """Byte/s: ``3.35e12`` or ``3.35TB/s``."""
    return number(text, "B/s")


def seconds(text: str) -> float:
    """``0.2`` or ``0.2s``."""
    return number(text, "s")


def fraction(text: str) -> float:
    """``0.8`` or ``80%``."""
    fractions(text)
    return number(text, "%")


def names(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Reads ``one,another``, each of which must be known."""

    def read(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is unknown{hint(name, known)}; choose from {', '.join(known)}")
        return found

    return read


def fractions(text: str) -> Range:
    """``0.35-0.45`` or ``40%``."""
    value = amount(text, "%")
    if value.high > 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a fraction of 1 or a percentage, for example 0.4 or 40%")
    return value


def _argument(read: Callable[[str], T], text: str) -> T:
    """Read a value, with argparse's error for one that cannot be read."""
    try:
        return read(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# ---- batches --------------------------------------------------------------------------------------------------------

#: Readers of lists -> how the help shows what they read.
_LISTS: dict[Callable[[str], Any], str] = {lengths: "N,N,...", sizes: "WxH,WxH,..."}
#: A parameter of ``make_batch`` -> its option, what reads it, and what it is.
_BATCH: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "batch_size": ("--batch-size", positive, "number of equal sequences (default 1)"),
    "sequence_length": ("--sequence-length", length, "tokens per sequence, for example 8192 or 8k (default: model.seq_length)"),
    "sequence_lengths": ("--sequence-lengths", lengths, "tokens of each sequence"),
    "image_patches": ("--image-patches", lengths, "patches of each image"),
    "image_sizes": ("--image-size", sizes, "sizes of the images in pixels instead, for towers that take images of any size"),
    "encoder_lengths": ("--encoder-lengths", lengths, "encoder tokens that each sequence attends to (text, in diffusion models)"),
    "audio_frames": ("--audio-frames", lengths, "mel frames of each clip"),
    "byte_patches": ("--byte-patches", lengths, "patches of each sequence (byte-latent transformers; lengths are in bytes)"),
}


def add_batch(parser: Parser) -> None:
    """What a batch consists of."""
    for name, (option, read, text) in _BATCH.items():
        default = () if read in _LISTS else None
        parser.add_argument(option, dest=name, type=read, default=default, metavar=_LISTS.get(read, "N"), help=text)


def batch_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of ``add_batch``'s options, as parameters of ``make_batch``."""
    return {name: getattr(arguments, name) for name in _BATCH}
