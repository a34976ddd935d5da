"""Inputs that a trace tries: text in a few forms, with images or sound, or token ids where nothing else is known."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bridge.flops.shapes import ConfigError
from bridge.tracing import images
from bridge.tracing.recording import Recorder
from bridge.tracing.solving import Point

Inputs = Callable[[Point], Mapping[str, Any]]


@dataclass(frozen=True)
class Feed:
    """One form of a module's inputs.

    Attributes:
        inputs: a point -> keyword arguments of ``forward``.
        encoder: tokens of a short encoder input; 0 for a module without an encoder.
        patches: the numbers of patches that an image may have (0 if its size is fixed); empty without images.
        before: the most tokens that the images of a sequence take.
        left_out: sentences about parts that do not run with these inputs.
    """

    inputs: Inputs
    encoder: int = 0
    patches: tuple[int, ...] = ()
    before: int = 0
    left_out: tuple[str, ...] = ()

    def unseen(self, model: Any) -> Iterator[str]:
        """Sentences about the parts of ``model`` that do not run with these inputs."""
        config = getattr(images.inner(model), "config", None)
        for name in ("vision_config", "audio_config"):
            if getattr(config, name, None) is not None and not (self.patches and name == "vision_config"):
                yield f"{name}: the model was traced on text only; images and sound are not counted"
        yield from self.left_out


def of_images(model: Any, mode: Any) -> Iterator[Feed]:
    """Images in front of text, in the forms that the model's tower accepts; ``mode`` is the fake mode it runs in."""
    for way in images.forms(model):
        try:
            tokens = {h * w: _tokens(model, way.values(1, (h, w)), mode) for h, w in way.grids}
        except Exception:  # another form, or one that is not known
            continue
        inputs = partial(images.given, model, way, tokens)
        yield Feed(inputs, patches=tuple(tokens), before=2 * (max(tokens.values()) + 1))


def _tokens(model: Any, values: Mapping[str, Any], mode: Any) -> int:
    with mode, Recorder(model, {}, computes=True).on(), torch.no_grad():
        return images.tokens_of(model, values)


def of_text(model: Any) -> Iterator[Feed]:
    """Text, likelier forms first: without a mask, with one of four dimensions, with one of two; without and with a cache."""
    config = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        yield Feed(partial(_first_argument, _first_name(model)))
        return
    if images.hears(model):
        yield Feed(partial(images.heard, model))
    if getattr(config, "is_encoder_decoder", False):
        yield from _forms(5, masks=(0, 2))
    alone = ("decoder: it was traced only at its first token",) if getattr(config, "is_encoder_decoder", False) else ()
    yield from _forms(0, masks=(0, 4, 2), left_out=alone)


def _forms(encoder: int, masks: tuple[int, ...], left_out: tuple[str, ...] = ()) -> Iterator[Feed]:
    for mask in masks:
        for cache in ({"use_cache": False}, {}):
            yield Feed(partial(_text, mask, cache), encoder, left_out=left_out)


def _text(mask: int, cache: Mapping[str, Any], point: Point) -> dict[str, Any]:
    batch, length, encoder = point.batch, point.length, point.encoder
    values = {"input_ids": torch.zeros(batch, encoder or length, dtype=torch.long), **cache}
    if mask == 4:
        values["attention_mask"] = torch.zeros(batch, 1, length, length)
    if mask == 2:
        values["attention_mask"] = torch.ones(batch, encoder or length, dtype=torch.long)
    if encoder:
        values["decoder_input_ids"] = torch.zeros(batch, length, dtype=torch.long)
    return values


def _first_name(model: torch.nn.Module) -> str:
    """The first argument of ``forward``."""
    names = list(inspect.signature(model.forward).parameters)
    if not names:
        raise ConfigError(f"{type(model).__name__} cannot be traced: its forward takes no arguments; give inputs=")
    return names[0]


def _first_argument(name: str, point: Point) -> dict[str, Any]:
    return {name: torch.zeros(point.batch, point.length, dtype=torch.long)}
