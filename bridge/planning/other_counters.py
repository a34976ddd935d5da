"""How other frameworks count the FLOPs that they report, as conventions and rules: read in their sources."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.planning.check import Check, CountedWay


@dataclass(frozen=True)
class Counter:
    """One framework's formula.

    Attributes:
        name: the framework.
        convention: what it counts as.
        rules: names of ``counting_rules.RULES`` on top of that.
        where: the function of its source.
        families: prefixes of the names of the models that it is known for; empty for all.
    """

    name: str
    convention: str
    rules: tuple[str, ...]
    where: str
    families: tuple[str, ...] = ()

    def knows(self, run: Check) -> bool:
        """Whether its formula for this model is known."""
        return not self.families or run.name.startswith(self.families)

    def of(self, run: Check) -> CountedWay:
        """A run as this framework counts it."""
        return run.under(self.convention, *self.rules)


#: Whose heads have one size: latent attention's values were counted as wide as its queries.
_VERL_BEFORE = ("llama", "gemma3", "gpt-oss", "qwen")

COUNTERS = (
    Counter("Megatron-LM, Megatron-Bridge", "megatron", (), "num_floating_point_operations"),
    Counter("MaxText", "maxtext", (), "calculate_tflops_training_per_device"),
    Counter("NeMo Automodel", "megatron", ("head_size_by_width",), "flops_utils.llama3_flops", ("llama", "gpt-oss")),
    Counter("Lightning", "executed", (), "measure_flops: FlopCounterMode on the meta device"),
    Counter("verl since 0.7.1", "maxtext", ("half_window", "embedding_counted"), "FlopsCounter"),
    Counter("verl until 0.7.0", "executed", ("whole_window", "embedding_counted"), "FlopsCounter", _VERL_BEFORE),
    Counter("torchtitan", "palm_without_embedding", ("whole_window",), "get_nparams_and_flops"),
    Counter("llm-foundry", "palm", (), "the table of its benchmarks; nanoGPT's estimate_mfu but for the table of positions"),
    Counter("Transformers' Trainer", "exact", ("six_n_all_but_embedding",), "floating_point_ops"),
)
