"""Number formats are data: which matmuls run in which format, one record per recipe of megatron-core's and Transformer Engine's.

In a recipe's format run the matmuls of a layer that belong to Transformer Engine.  Outside stay embeddings, output
layers, routers, gates, scans and convolutions, adapters, and attention's products unless they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bridge.flops.components.self_attention import CORE
from bridge.flops.shapes import ConfigError, short
from bridge.flops.terms import Kind, Pass, Role, Term, TermPlace
from bridge.flops.transforms import ADAPTERS, matches

#: The format of matmuls whose format is unknown; it has no peak.
UNKNOWN = "unknown"
#: Formats of whole models.
BASES = ("bf16", "fp16", "fp32")


@dataclass(frozen=True)
class Recipe:
    """One way to quantize matmuls.

    Attributes:
        name: megatron-core's ``fp8_recipe`` or ``fp4_recipe``.
        format: what its matmuls run in; the peak of a device is that of this format.
        attention: fields that put attention's two products into it.
        wgrad: whether ``fp8_wgrad=False`` leaves weight gradients out.
        output_layer: whether ``fp8_output_proj`` takes the output layer in.
        layers_in_base: whether ``first_last_layers_bf16`` leaves layers out.
        mtp: whether it applies in multi-token prediction.
        hybrid: whether it certainly applies in the layers of a hybrid pattern.
    """

    name: str
    format: str
    attention: tuple[str, ...] = ()
    wgrad: bool = False
    output_layer: bool = False
    layers_in_base: bool = True
    mtp: bool = True
    hybrid: bool = True


_ATTENTION = "fp8_dot_product_attention"

#: megatron-core 0.16's.
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("delayed", "fp8", (_ATTENTION, "fp8_multi_head_attention"), wgrad=True, layers_in_base=False),
        Recipe("tensorwise", "fp8", (_ATTENTION,)),
        Recipe("blockwise", "fp8"),
        Recipe("mxfp8", "fp8"),
        Recipe("nvfp4", "fp4", mtp=False, hybrid=False),
    )
}
#: Those of releases that have fp8_output_proj, where they differ.
NEWER = {
    "mxfp8": replace(RECIPES["mxfp8"], attention=(_ATTENTION,), output_layer=True),
    "nvfp4": replace(RECIPES["nvfp4"], attention=(_ATTENTION,), hybrid=True),
}

#: What is read of a configuration, under megatron-core's names.
FIELDS = (
    "bf16", "fp16", "fp8", "fp8_recipe", "fp4", "fp4_recipe", "fp8_wgrad", "fp8_dot_product_attention",
    "fp8_multi_head_attention", "fp8_output_proj", "first_last_layers_bf16", "num_layers_at_start_in_bf16",
    "num_layers_at_end_in_bf16", "transformer_impl", "quant_recipe", "te_precision_config_file", "use_kitchen",
)  # fmt: skip
#: Fields by which every module has its own format.
_BY_MODULE = ("quant_recipe", "te_precision_config_file", "use_kitchen")
#: The defaults of fp8_recipe and fp4_recipe.
_DEFAULTS = {"fp8": "delayed", "fp4": "nvfp4"}


@dataclass(frozen=True)
class Formats:
    """Which matmul of a model runs in which number format.

    Attributes:
        base: the format of everything that is not quantized; None if the configuration names none.
        recipe: how the other matmuls are quantized; None if none are.
        unknown: why the formats are unknown; empty if they are known.
        first, last: number of layers at either end that stay in ``base``.
        attention: attention's products are quantized.
        output_layer: output layers are.
        kept: passes that stay in ``base`` in every layer.
        left_out: patterns of the modules that stay in it.
        modules: paths of the modules that are quantized, whatever they are; None: those that ``recipe`` takes.
        teacher: formats of a teacher that runs beside the model; None: the same.
    """

    base: str | None = None
    recipe: Recipe | None = None
    unknown: str = ""
    first: int = 0
    last: int = 0
    attention: bool = False
    output_layer: bool = False
    kept: Pass = Pass.NONE
    left_out: tuple[str, ...] = ()
    modules: frozenset[str] | None = None
    teacher: Formats | None = None

    @property
    def name(self) -> str:
        """The format of most matmuls."""
        return self.recipe.format if self.recipe else UNKNOWN if self.unknown else self.base or UNKNOWN

    def on(self, base: str) -> Formats:
        """The same formats, with ``base`` for everything that is not quantized.

        Args:
            base: the number format of the training loop; ``fp8`` and ``fp4`` apply to the whole model if no recipe is set.
        """
        return self if self.recipe and base not in BASES else replace(self, base=base)

    def or_on(self, base: str) -> Formats:
        """The same formats, with ``base`` if the configuration names none."""
        return self if self.base else self.on(base)

    def named(self, name: str) -> Formats:
        """The same model in another format, as the newest release of megatron-core runs it.

        Args:
            name: of a recipe, or one of ``BASES`` for all of it.

        Raises:
            ConfigError: there is no such format.
        """
        if name in BASES:
            return replace(self, base=name, recipe=None, unknown="")
        recipe = {**RECIPES, **NEWER}.get(name)
        if recipe is None:
            raise ConfigError(f"number_format={name!r} is not known; choose one of {', '.join((*BASES, *RECIPES))}")
        return replace(
            self,
            recipe=recipe,
            unknown="",
            first=self.first if recipe.layers_in_base else 0,
            last=self.last if recipe.layers_in_base else 0,
            attention=self.attention and bool(recipe.attention),
            output_layer=self.output_layer and recipe.output_layer,
            kept=self.kept & Pass.WGRAD if recipe.wgrad else Pass.NONE,
            left_out=(),
            modules=None,
        )

    def of(self, term: Term, one: Pass, layers: int) -> str:
        """The number format that a pass of a matmul runs in.

        Args:
            term: the matmul.
            one: one pass of it.
            layers: of the decoder.
        """
        if self.teacher is not None and Role.TEACHER in term.roles:
            return self.teacher.of(term, one, layers)
        base = self.base or UNKNOWN
        if self.recipe is None:
            return UNKNOWN if self.unknown else base
        if not self._may_run_in(self.recipe, term, one):
            return base
        if term.place is TermPlace.FIRST:  # towers and encoders have their own configurations
            return UNKNOWN
        return self.recipe.format if self._holds_at(self.recipe, term.place, layers) else base

    def _may_run_in(self, recipe: Recipe, term: Term, one: Pass) -> bool:
        """Whether a matmul is one of those that a recipe quantizes, wherever it stands."""
        if term.kind is Kind.CORE:
            return self.attention and term.component == CORE
        if one in self.kept:
            return False
        if self.modules is not None:
            return term.path in self.modules
        if term.kind is not Kind.LINEAR or term.component == ADAPTERS or matches(term.path, self.left_out):
            return False
        return self.output_layer or Role.OUTPUT not in term.roles

    def _holds_at(self, recipe: Recipe, place: int | TermPlace, layers: int) -> bool:
        if isinstance(place, TermPlace):
            return recipe.mtp or place is not TermPlace.MTP
        return self.first <= place < layers - self.last


#: The formats of a configuration that names none.
NOT_TOLD = Formats()


def read(field: Callable[[str], Any], *, hybrid: bool = False) -> Formats:
    """The formats that a configuration asks for.

    Args:
        field: the value of a field of ``FIELDS``; None where there is none.
        hybrid: whether the layers are those of a hybrid pattern.
    """
    base = _base(field)
    kind = next((name for name in _DEFAULTS if field(name)), None)
    by_module = [name for name in _BY_MODULE if field(name)]
    if by_module:
        return Formats(base, unknown=f"{by_module[0]} gives every module its own number format")
    if kind is None or field("transformer_impl") == "local":
        return Formats(base)
    recipe = _recipe(kind, field)
    if recipe is None:
        chosen = short(_plain(field(f"{kind}_recipe")))
        return Formats(base, unknown=f"{kind}_recipe={chosen}: its formats are unknown; known are {', '.join(RECIPES)}")
    if hybrid and not recipe.hybrid:
        return Formats(base, unknown=f"{kind}_recipe='{recipe.name}': some releases leave out the layers of a hybrid pattern")
    return Formats(
        base,
        recipe,
        first=_layers(field, recipe, "num_layers_at_start_in_bf16"),
        last=_layers(field, recipe, "num_layers_at_end_in_bf16"),
        attention=any(field(name) for name in recipe.attention),
        output_layer=recipe.output_layer and bool(field("fp8_output_proj")),
        kept=Pass.WGRAD if recipe.wgrad and field("fp8_wgrad") is False else Pass.NONE,
    )


def _base(field: Callable[[str], Any]) -> str | None:
    """The format of everything that is not quantized; None if a configuration names none."""
    low = next((name for name in ("bf16", "fp16") if field(name)), None)
    return low or (None if field("bf16") is None else "fp32")


def _recipe(kind: str, field: Callable[[str], Any]) -> Recipe | None:
    name = _plain(field(f"{kind}_recipe")) or _DEFAULTS[kind]
    table: Mapping[str, Recipe] = RECIPES if field("fp8_output_proj") is None else {**RECIPES, **NEWER}
    recipe = table.get(name) if isinstance(name, str) else None
    return recipe if recipe is not None and recipe.format == kind else None


def _layers(field: Callable[[str], Any], recipe: Recipe, name: str) -> int:
    """Layers at one end that stay out; megatron-core's default is one."""
    if not recipe.layers_in_base or not field("first_last_layers_bf16"):
        return 0
    value = field(name)
    return 1 if value is None else int(value)


def _plain(value: Any) -> Any:
    """A member of an enum as its value."""
    return getattr(value, "value", value)
