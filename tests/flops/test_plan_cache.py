"""A plan is reused while its configuration is unchanged, and never longer."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from bridge.flops.plan_cache import CAPACITY, MANY, PlanCache
from bridge.flops.shapes import ModelShape

FIELDS = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100, "moe_layer_freq": [1, 0, 1, 0]}


class Plain:
    def __init__(self, **fields):
        self.__dict__.update(fields)


@dataclasses.dataclass
class Config:
    model: object
    peft: object = None


def counting_cache():
    calls = []

    def function(cfg):
        calls.append(cfg)
        return len(calls)

    return PlanCache(function), calls


@pytest.mark.parametrize("kind", [SimpleNamespace, Plain, dict, ModelShape], ids=lambda kind: kind.__name__)
def test_reused_until_a_field_changes(kind):
    cache, calls = counting_cache()
    model = kind(**copy.deepcopy(FIELDS))
    cfg = Config(model)
    assert [cache(cfg) for _ in range(3)] == [1, 1, 1]

    def set_field(name, value):
        if isinstance(model, dict):
            model[name] = value
        else:
            setattr(model, name, value)

    set_field("num_layers", 5)
    assert [cache(cfg), cache(cfg)] == [2, 2]
    (model["moe_layer_freq"] if isinstance(model, dict) else model.moe_layer_freq)[1] = 1
    assert [cache(cfg), cache(cfg)] == [3, 3]
    set_field("vision_config", {"depth": 2, "deepstack_visual_indexes": [0]})
    assert [cache(cfg), cache(cfg)] == [4, 4]
    (model["vision_config"] if isinstance(model, dict) else model.vision_config)["deepstack_visual_indexes"].append(1)
    assert [cache(cfg), cache(cfg)] == [5, 5]
    cfg.peft = SimpleNamespace(dim=8)
    assert [cache(cfg), cache(cfg)] == [6, 6]
    cfg.peft.dim = 16
    assert [cache(cfg), cache(cfg)] == [7, 7]
    cfg.model = kind(**FIELDS)
    assert [cache(cfg), cache(cfg)] == [8, 8]
    assert len(calls) == 8


@pytest.mark.parametrize("more", [0, MANY], ids=["few", "many"])
@pytest.mark.parametrize("kind", [SimpleNamespace, dict], ids=lambda kind: kind.__name__)
def test_a_field_of_another_name_is_a_change_whatever_its_value(kind, more):
    """Values alone would not tell: the last two are equal."""
    cache, _ = counting_cache()
    given = {f"option_{i}": None for i in range(more)}
    model = kind(**FIELDS, **given, qk_layernorm=True, add_bias_linear=True)
    fields = model if isinstance(model, dict) else vars(model)
    cfg = Config(model)
    assert [cache(cfg), cache(cfg)] == [1, 1]
    fields["attention_output_gate"] = fields.pop("add_bias_linear")
    assert [cache(cfg), cache(cfg)] == [2, 2]
    fields["add_bias_linear"] = fields.pop("qk_layernorm")
    assert [cache(cfg), cache(cfg)] == [3, 3]
    del fields["add_bias_linear"]
    assert [cache(cfg), cache(cfg)] == [4, 4]
    fields.clear()
    assert [cache(cfg), cache(cfg)] == [5, 5]
    fields["num_layers"] = 4
    assert [cache(cfg), cache(cfg)] == [6, 6]


def test_two_configurations_of_the_same_content_are_two_entries():
    cache, calls = counting_cache()
    first, second = Config(SimpleNamespace(**FIELDS)), Config(SimpleNamespace(**FIELDS))
    assert [cache(first), cache(second), cache(first)] == [1, 2, 1]


def test_nodes_that_cannot_be_compared_are_read_anew():
    cache, calls = counting_cache()
    node = OmegaConf.create({"model": FIELDS})
    cache(node)
    node.model.num_layers = 8
    cache(node)
    assert len(calls) == 2

    class ByClass:
        num_layers = 4

    cfg = Config(ByClass())
    cache(cfg)
    ByClass.num_layers = 5
    cache(cfg)
    assert len(calls) == 4


def test_bounded():
    cache, calls = counting_cache()
    configs = [Config(SimpleNamespace(**FIELDS)) for _ in range(CAPACITY + 5)]
    for cfg in configs:
        cache(cfg)
    assert len(cache._entries) == CAPACITY
    cache(configs[-1])
    assert len(calls) == CAPACITY + 5
    cache(configs[0])
    assert len(calls) == CAPACITY + 6
