"""The options of a run: megatron-core's names and choices, a meaning for each, and defaults that no two runs share."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bridge.config import schema
from bridge.config.schema import (
    CheckpointConfig,
    Config,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PeftConfig,
    TrainConfig,
)
from bridge.flops.elementwise import ACTIVATIONS
from bridge.flops.reading import PEFT_KINDS
from bridge.flops.shapes import ModelShape
from bridge.flops.transforms import DEFAULT_TARGETS
from tests.integrations import megatron_bridge_stubs

SECTIONS = {
    name: kind for name, kind in vars(schema).items() if dataclasses.is_dataclass(kind) and kind.__module__ == schema.__name__
}


def names(kind) -> set[str]:
    return {item.name for item in dataclasses.fields(kind)}


def choices(kind) -> dict[str, tuple[str, ...]]:
    return {item.name: item.metadata["choices"] for item in dataclasses.fields(kind) if "choices" in item.metadata}


# ---- megatron-core's names -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformer_config():
    return pytest.importorskip("megatron.core.transformer.transformer_config").TransformerConfig


def of_megatron_bridge(*classes: str) -> set[str]:
    """Fields of the classes of the installed Megatron-Bridge's configuration, which needs a GPU's packages to be imported."""
    folder = megatron_bridge_stubs.root()
    if folder is None:
        pytest.skip("megatron-bridge is not installed")
    tree = ast.parse((folder / "training" / "config.py").read_text())
    found = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return {one.target.id for name in classes for one in found[name].body if isinstance(one, ast.AnnAssign)}


def test_parallel_sizes_are_megatron_cores(transformer_config):
    """Its names and its defaults."""
    ours, theirs = ParallelConfig(), transformer_config(num_layers=1, hidden_size=8, num_attention_heads=1)
    assert names(ParallelConfig) - names(transformer_config) == set()
    derived = {"expert_tensor_parallel_size"}  # it fills in the tensor-parallel size
    assert {name for name in names(ParallelConfig) if getattr(ours, name) != getattr(theirs, name)} == derived
    assert theirs.expert_tensor_parallel_size == theirs.tensor_model_parallel_size


def test_training_and_optimizer_have_known_names():
    training = of_megatron_bridge("TrainingConfig", "RNGConfig", "DistributedInitConfig")
    assert names(TrainConfig) - training == {"skip_iterations"}
    core = pytest.importorskip("megatron.core.optimizer.optimizer_config")
    distributed = pytest.importorskip("megatron.core.distributed.distributed_data_parallel_config")
    known = names(core.OptimizerConfig) | names(core.AdamOptimizerConfig) | names(distributed.DistributedDataParallelConfig)
    assert names(OptimizerConfig) - known - of_megatron_bridge("SchedulerConfig") == set()
    assert names(CheckpointConfig) - of_megatron_bridge("CheckpointConfig") == {"keep"}


def test_fields_of_the_model_that_only_training_needs(transformer_config):
    """All are megatron-core's, but RoPE's and those of the images, which are arguments of its models."""
    added = names(ModelConfig) - names(ModelShape)
    assert added - names(transformer_config) == {"rotary_base", "rope_scaling", "rope_scaling_factor", "image_token_id"}
    rotary = pytest.importorskip("megatron.core.models.common.embeddings.rotary_pos_embedding").RotaryEmbedding
    taken = inspect.signature(rotary).parameters
    assert {"rotary_base", "rotary_percent", "rope_scaling", "rope_scaling_factor"} <= taken.keys()
    for name in ("rotary_base", "rope_scaling", "rope_scaling_factor"):
        assert getattr(ModelConfig(), name) == taken[name].default


# ---- choices ---------------------------------------------------------------------------------------------------------


def test_choices_of_the_model_are_some_of_megatron_cores(transformer_config):
    hints = typing.get_type_hints(transformer_config)
    allowed = {name: literals(hints[name]) for name in choices(ModelConfig) if name in hints}
    held = {name for name, theirs in allowed.items() if theirs}
    assert held >= {"fp8", "moe_token_dispatcher_type", "moe_router_score_function", "moe_token_drop_policy"}
    for name in held:
        assert set(choices(ModelConfig)[name]) <= allowed[name], name


def literals(hint) -> set[str]:
    if typing.get_origin(hint) is typing.Literal:
        return set(typing.get_args(hint))
    return {one for part in typing.get_args(hint) for one in literals(part)}


def test_choices_elsewhere_are_what_is_known_there():
    assert choices(PeftConfig)["kind"] == PEFT_KINDS
    assert {*choices(ModelConfig)["activation_func"], "swish"} == ACTIVATIONS.keys()
    assert PeftConfig().target_modules == list(DEFAULT_TARGETS)


@pytest.mark.parametrize("style", choices(OptimizerConfig)["lr_decay_style"])
def test_megatron_core_knows_every_shape_of_the_decay(style):
    scheduler = pytest.importorskip("megatron.core.optimizer_param_scheduler")
    group = {"params": [], "lr": 0.0, "weight_decay": 0.0, "wd_mult": 1.0, "max_lr": 1.0, "min_lr": 0.0}
    optimizer = type("Optimizer", (), {"param_groups": [group]})()
    wsd = {"wsd_decay_steps": 4, "lr_wsd_decay_style": "linear"} if style == "WSD" else {}
    made = scheduler.OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=1.0, min_lr=0.0, lr_warmup_steps=2, lr_decay_steps=10, lr_decay_style=style, start_wd=0.0,
        end_wd=0.0, wd_incr_steps=0, wd_incr_style="constant", use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=False, **wsd,
    )  # fmt: skip
    made.step(2)
    assert made.get_lr(group) == pytest.approx(1.0)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_default_is_one_of_its_choices(section):
    for item in dataclasses.fields(SECTIONS[section]):
        if "choices" in item.metadata:
            allowed = item.metadata["choices"]
            assert item.default is None or item.default in allowed, item.name
            assert len(set(allowed)) == len(allowed)


# ---- what is said of them --------------------------------------------------------------------------------------------


@cache
def told() -> dict[tuple[str, str], str]:
    """(section, option) -> the sentence below it."""
    found = {}
    for node in ast.parse(Path(schema.__file__).read_text()).body:
        if isinstance(node, ast.ClassDef):
            for line, below in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(line, ast.AnnAssign):
                    text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
                    found[node.name, line.target.id] = text
    return found


def test_every_option_is_explained():
    # Sections are explained by their own class.
    quiet = {option for (section, option), text in told().items() if not text and section != "Config"}
    assert quiet == set()
    assert [option for option, text in told().items() if text and not text.endswith(".")] == []


def test_what_an_unset_option_means_is_said():
    unset = {
        (section, item.name)
        for section, kind in SECTIONS.items()
        for item in dataclasses.fields(kind)
        if item.default is None and (section, item.name) in told()
    }
    assert {option for option in unset if not any(word in told()[option] for word in ("Unset", "Required"))} == set()


# ---- defaults --------------------------------------------------------------------------------------------------------


def test_no_two_runs_share_a_default():
    one, other = Config(), Config()
    assert one == other

    def mutable(value):
        if dataclasses.is_dataclass(value):
            return [inner for item in dataclasses.fields(value) for inner in mutable(getattr(value, item.name))] + [id(value)]
        return [id(value)] if isinstance(value, (list, dict)) else []

    assert len(mutable(one)) > 9
    assert not set(mutable(one)) & set(mutable(other))
    assert PeftConfig().freeze is not PeftConfig().freeze


@pytest.mark.parametrize("section", SECTIONS)
def test_omegaconf_takes_every_section_and_gives_it_back(section):
    kind = SECTIONS[section]
    made = OmegaConf.structured(kind)
    assert set(made) == names(kind)
    if section != "Config" and section != "LoggerConfig":  # whose defaults name other options
        assert OmegaConf.to_object(made) == kind()
