"""What transformers' quantized models multiply in which format: sums by hand, and every method that transformers has."""

from dataclasses import replace

import pytest
import transformers
from transformers.utils.quantization_config import QuantizationMethod

from bridge.config import from_huggingface
from bridge.config.sources.huggingface_quantisation import STORED, TORCHAO, formats_of
from bridge.flops import compile_plan
from bridge.flops.formats import NOT_TOLD, UNKNOWN
from bridge.flops.reading import read
from bridge.flops.terms import Pass

LAYERS, HIDDEN, FFN, VOCAB, LENGTH = 2, 64, 128, 96, 100
LLAMA = {"model_type": "llama", "num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": FFN, "vocab_size": VOCAB,
         "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}  # fmt: skip
#: One pass of all layers' matmuls with weights, of one of them, of attention's products, and of the output layer.
DOWN = 2 * LENGTH * FFN * HIDDEN
LINEAR = LAYERS * 2 * LENGTH * (HIDDEN * (64 + 32 + 32 + 64) + 3 * HIDDEN * FFN)
CORE = LAYERS * 2 * 2 * HIDDEN * LENGTH * (LENGTH + 1) // 2
OUTPUT = 2 * LENGTH * HIDDEN * VOCAB


def by_format(config, passes="training"):
    model = read(config)
    plan = compile_plan(replace(model, formats=model.formats.on("bf16")), "exact")
    vector = plan.measure([LENGTH])
    found = plan.evaluate_formats(vector, passes)
    assert sum(found.values()) == plan.evaluate(vector, passes)
    return {name: flops for name, flops in found.items() if flops}


def quantised(**options):
    return from_huggingface(LLAMA | {"quantization_config": options})


@pytest.mark.parametrize(
    ("options", "inside"),
    [
        ({"weight_block_size": [128, 128]}, LINEAR),
        ({"modules_to_not_convert": ["lm_head", "model.layers.1.mlp.down_proj"]}, LINEAR - DOWN),
        ({"modules_to_not_convert": ["model.layers.0"]}, LINEAR // 2 + OUTPUT),
    ],
)
def test_fine_grained_fp8_is_of_the_forward_pass(options, inside):
    """Gradients meet weights that were made whole again, in the format of the rest."""
    config = quantised(quant_method="fp8", **options)
    everything = LINEAR + CORE + OUTPUT
    assert by_format(config, "forward") == {"fp8": inside, "bf16": everything - inside}
    assert by_format(config) == {"fp8": inside, "bf16": 3 * everything - inside}


@pytest.mark.parametrize(
    "options",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "fp8", "dequantize": True},
        {"quant_method": "mxfp4", "dequantize": True},
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {}}}},
    ],
)
def test_what_stores_weights_in_few_bits_multiplies_as_before(options):
    assert by_format(quantised(**options)) == {"bf16": 3 * (LINEAR + CORE + OUTPUT)}


@pytest.mark.parametrize(
    "options",
    [
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "mxfp4"},
        {"quant_method": "fp8", "expert_dtype": "fp4"},
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8DynamicActivationInt8WeightConfig"}}},
        {"quant_method": "compressed-tensors", "use_optimized_inference": True},
        {"quant_method": "of_tomorrow"},
        {"bits": 4},
    ],
)
def test_what_is_not_known_is_named(options):
    config = quantised(**options)
    assert by_format(config) == {UNKNOWN: 3 * (LINEAR + CORE + OUTPUT)}
    assert config.formats.unknown.startswith("quantization_config: quant_method=")


def test_every_method_of_transformers_is_stored_fp8_or_unknown():
    """None is taken for another: a method that is new has no MFU until somebody has read what it runs."""
    methods = {method.value for method in QuantizationMethod}
    assert set(STORED) <= methods
    unknown = {method for method in methods if formats_of({"quantization_config": {"quant_method": method}}).unknown}
    assert unknown == {"fbgemm_fp8", "fouroversix", "fp_quant", "gemma", "mxfp4", "mxfp8", "nvfp4", "quark", "sinq", "torchao"}


def test_a_language_model_in_another_and_one_that_is_not_quantised():
    assert formats_of({"text_config": {"quantization_config": {"quant_method": "mxfp4"}}}).unknown
    assert formats_of({"quantization_config": 8}).unknown
    assert formats_of(LLAMA) == formats_of({"quantization_config": None, "dtype": "float32"}) == NOT_TOLD


# ---- live models --------------------------------------------------------------------------------------


def live():
    options = {name: value for name, value in LLAMA.items() if name != "model_type"}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**options))


@pytest.mark.parametrize(("recipe", "kept"), [("tensorwise", Pass.NONE), ("rowwise_with_gw_hp", Pass.WGRAD)])
def test_torchaos_layers_are_read_one_by_one(recipe, kept):
    float8 = pytest.importorskip("torchao.float8")
    model = live()
    config = float8.Float8LinearConfig.from_recipe_name(recipe)
    float8.convert_to_float8_training(model, config=config, module_filter_fn=lambda _, name: name.endswith("down_proj"))
    found = from_huggingface(model)
    assert (found.formats.recipe, found.formats.kept) == (TORCHAO, kept)
    inside = LAYERS * DOWN * (3 - bool(kept))
    assert by_format(found) == {"fp8": inside, "bf16": 3 * (LINEAR + CORE + OUTPUT) - inside}


def test_layers_that_were_converted_in_several_ways_are_unknown():
    float8 = pytest.importorskip("torchao.float8")
    model = live()
    for number, recipe in enumerate(("tensorwise", "rowwise_with_gw_hp")):
        config = float8.Float8LinearConfig.from_recipe_name(recipe)
        float8.convert_to_float8_training(model.model.layers[number], config=config)
    assert from_huggingface(model).formats.unknown == "torchao converted layers in several ways"


def test_a_model_of_plain_layers_says_nothing():
    assert from_huggingface(live()).formats == NOT_TOLD


# The number of ways in ``formats_of_layers`` is held by the tests of torchao's layers, which need torchao.
