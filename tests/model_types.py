"""Runs every model type of the installed transformers against its plan: ``python -m tests.model_types [NAME ...]``.

Each is built from its default configuration, four layers deep, without memory.  Its plan must have the integers that
``FlopCounterMode`` counts at lengths and batches that were not used for it.  The results are written to
``tests/data/model_types.json``, from which ``docs/models-traced.md`` is made; all of them take about an hour.
"""

import json
import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from bridge.config import from_huggingface
from bridge.config.sources.huggingface_families import FAMILIES
from bridge.flops import compile_plan
from bridge.tracing import feeds, huggingface, images, live
from bridge.tracing.solving import Point

FILE = Path(__file__).parent / "data" / "model_types.json"
LAYERS = 4
SECONDS = 100
POINTS = ((2, 21, 11), (3, 17, 6))
#: The class that a row describes, where transformers' first choice for the type is its decoder alone.
CLASSES = {"whisper": "WhisperForConditionalGeneration"}
_DEPTHS = [
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "encoder_layers", "decoder_layers", "depth"),
    *("num_encoder_layers", "num_decoder_layers", "attention_layers", "num_hidden_layers_decoder"),
]


def shallow(values):
    """A configuration with at most ``LAYERS`` layers in each of its parts."""
    depths = [values[name] for name in _DEPTHS if isinstance(values.get(name), int)]
    result = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = shallow(value)
        elif name in _DEPTHS and isinstance(value, int):
            value = min(value, LAYERS)
        elif isinstance(value, list) and len(value) in depths and len(value) > LAYERS:
            value = value[:LAYERS]
        result[name] = value
    return result


class Answers(TorchDispatchMode):
    """Tells a model that asks for a value, where there are none, what tracing tells it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype is torch.bool or 1
        return func(*args, **(kwargs or {}))


def _convolution_backward(gradient, x, weight, b, st, pa, di, transposed, op, gr, mask, out_shape=None):
    return conv_flop_count(x, weight, gradient, transposed) * (bool(mask[0]) + bool(mask[1]))


def counted(run):
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}) as counter:
        run()
    return counter.get_total_flops()


def executed(values, points=POINTS):
    """[(lengths, forward, forward and backward)] and the parameters, as transformers runs text."""
    model = live.prepared(huggingface.what_runs(huggingface.build(values))[0])
    error = None
    for feed in feeds.of_text(model):
        try:
            return [_at(model, feed, *point) for point in points], sum(p.numel() for p in model.parameters())
        except Exception as problem:
            error = error or problem
    raise error


def _at(model, feed, batch, length, encoder):
    point = Point(batch, length, encoder if feed.encoder else 0)

    def forward():
        with Answers(), torch.device("meta"):
            return huggingface.output(model(**feed.inputs(point)))

    forward()  # some change in their first run
    lengths = {"sequence_lengths": [length] * batch, **({"encoder_lengths": [encoder] * batch} if feed.encoder else {})}
    if images.hears(model):
        lengths["audio_frames"] = [2 * model.config.max_source_positions] * batch
    return lengths, counted(forward), counted(lambda: forward().sum().backward())


def judge(name):
    """[what it is, why] of one model type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    refused = None
    whole = CONFIG_MAPPING[name]().to_dict()
    if name in CLASSES:
        whole["architectures"] = [CLASSES[name]]
    for values in (shallow(whole), whole):  # some name their layers elsewhere, and cannot be cut
        try:
            runs, parameters = executed(values)
            break
        except Exception as error:
            refused = refused or error
    else:
        return ["read" if name in FAMILIES and not FAMILIES[name].inner else "not run", _told(refused)]
    found = from_huggingface(values)
    plan = compile_plan(found, "executed", framework=None)
    equal = [[plan.flops(passes=one, **lengths) for one in ("forward", "training")] == wanted for lengths, *wanted in runs]
    named = [sentence for sentence in plan.not_counted if "left out" in sentence or found.source == "read"]
    if all(equal) and plan.parameters()["total"] == parameters:
        return [f"{found.source} exactly", ""]
    return [found.source, "; ".join(named)[:200] or "differs from what runs" + ("" if not all(equal) else ": parameters")]


def _told(error):
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def _late(*_):
    raise TimeoutError(f"more than {SECONDS} s of a processor")


def main(names):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    signal.signal(signal.SIGPROF, _late)
    for name in names or sorted(set(CONFIG_MAPPING) - set(known)):
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            known[name] = judge(name)
        except Exception as error:
            known[name] = ["not run", _told(error)]
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(f"{name}: {' '.join(known[name])} ({time.monotonic() - start:.1f} s)", flush=True)
        FILE.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(known.items())) + "\n}\n")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    main(sys.argv[1:])
