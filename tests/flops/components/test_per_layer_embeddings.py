"""Per-layer embeddings beside Gemma 4's: one projection for all layers, a gate and a projection in each."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch
from torch import nn
from transformers import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextModel

from bridge.flops import compile_plan
from bridge.flops.components.per_layer_embeddings import per_layer_input, per_layer_projection
from tests.flops.components.blocks import SMALL, executed, priced, trained_alone

LAYERS, WIDTH, ROWS = 3, 5, 40


@pytest.fixture
def model():
    config = Gemma4TextConfig(
        vocab_size=50, hidden_size=12, intermediate_size=20, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, global_head_dim=4, layer_types=["full_attention"] * LAYERS,
        hidden_size_per_layer_input=WIDTH, vocab_size_per_layer_input=ROWS, num_kv_shared_layers=0,
    )  # fmt: skip
    return Gemma4TextModel(config)


def test_the_inputs_of_all_layers(model):
    parts = [model.embed_tokens_per_layer, model.per_layer_model_projection, model.per_layer_projection_norm]
    tokens, embedded = torch.zeros(2, 7, dtype=torch.long), torch.zeros(2, 7, 12)

    def run():
        return model.project_per_layer_inputs(embedded, model.get_per_layer_inputs(tokens))

    terms = per_layer_input(hidden_size=12, num_layers=LAYERS, per_layer_size=WIDTH, vocab_size=ROWS)
    assert priced(terms, sequence_lengths=[7, 7]) == executed(nn.ModuleList(parts), run)


def test_gate_and_projection_of_a_layer(model):
    layer = model.layers[0]
    parts = nn.ModuleList([layer.per_layer_input_gate, layer.per_layer_projection, layer.post_per_layer_input_norm])

    def run():
        x = torch.zeros(7, 12)
        for part in parts:
            x = part(x)
        return x

    terms = per_layer_projection(hidden_size=12, per_layer_size=WIDTH)
    assert priced(terms, sequence_lengths=[7]) == executed(parts, run)


def test_gradients_of_the_inputs_come_back_through_the_layers(model):
    layer, tokens, embedded = model.layers[1], torch.zeros(1, 7, dtype=torch.long), torch.zeros(1, 7, 12)

    def run():
        inputs = model.project_per_layer_inputs(embedded, model.get_per_layer_inputs(tokens))
        return layer.post_per_layer_input_norm(layer.per_layer_projection(layer.per_layer_input_gate(embedded) * inputs[:, :, 1]))

    terms = [
        *per_layer_input(hidden_size=12, num_layers=LAYERS, per_layer_size=WIDTH, vocab_size=ROWS),
        *(term.under("layers.1.") for term in per_layer_projection(hidden_size=12, per_layer_size=WIDTH)),
    ]
    names = ["embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm"]
    names += [f"layers.1.{name}" for name in ("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm")]
    priced_alone, counted = trained_alone(terms, model, run, {name: name for name in names}, sequence_lengths=[7])
    assert priced_alone == counted


def test_three_matrices_a_layer():
    fields = {"num_layers": LAYERS, "hidden_size_per_layer_input": WIDTH}
    plan = compile_plan(SMALL | fields, "exact")
    assert plan.breakdown([7], passes="forward")["per_layer_embeddings"] == 2 * 7 * LAYERS * 3 * 12 * WIDTH
    assert "per_layer_embeddings" not in compile_plan(SMALL | {"hidden_size_per_layer_input": 0}, "exact").breakdown([7])


def test_rows_of_the_table_are_its_own_or_the_vocabularys():
    fields = {"hidden_size_per_layer_input": WIDTH}
    found = [
        compile_plan(SMALL | fields | own, "exact").parameters_by_module()["embed_tokens_per_layer"]
        for own in ({}, {"vocab_size_per_layer_input": ROWS})
    ]
    assert found == [50 * WIDTH, ROWS * WIDTH]
