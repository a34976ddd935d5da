"""Pasted and uploaded configurations are a stranger's: each bad one gets a sentence, none a traceback or a long wait."""

import json
import time

import pytest

from bridge.config import ConfigError, from_huggingface
from bridge.explorer import html as markup
from bridge.explorer.controls import defaults
from bridge.explorer.page import SECTIONS, contents, shown
from bridge.explorer.sources import MAX_CONFIG_BYTES, OWN_MODEL, Source, compiled, model_names, read
from bridge.flops import compile_plan

LLAMA = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
         "vocab_size": 1000}  # fmt: skip


def test_a_config_wins_over_the_recipe():
    source = Source("llama3-8b", json.dumps(LLAMA))
    assert compiled(source, "exact").flops([256]) == compile_plan(from_huggingface(LLAMA), "exact").flops([256])
    assert read(Source("llama3-8b", "  \n")).name == "llama3-8b"


def test_all_recipes_can_be_picked():
    assert {"llama3-8b", "tiny"} < set(model_names())


BAD = {
    "no JSON": "{",
    "binary": "\x00\x01\x02",
    "list": "[1, 2]",
    "number": "3",
    "empty object": "{}",
    "NaN": '{"hidden_size": NaN}',
    "deep": "[" * 100_000,
    "deep object": '{"a":' * 100_000,
    "long": json.dumps({**LLAMA, "x": "y" * MAX_CONFIG_BYTES}),
    "unknown family": json.dumps({**LLAMA, "model_type": "nonsense"}),
    "type is a list": json.dumps({**LLAMA, "model_type": ["llama"]}),
    "text for a size": json.dumps({**LLAMA, "hidden_size": "many"}),
    "list for a size": json.dumps({**LLAMA, "hidden_size": [1]}),
    "fraction for a size": json.dumps({**LLAMA, "num_hidden_layers": 2.5}),
    "zero layers": json.dumps({**LLAMA, "num_hidden_layers": 0}),
    "negative": json.dumps({**LLAMA, "intermediate_size": -4}),
    "endless layers": json.dumps({**LLAMA, "num_hidden_layers": 10**9}),
    "endless numbers": json.dumps({**LLAMA, "hidden_size": 10**400}),
    "too many digits": '{"model_type": "llama", "hidden_size": ' + "9" * 10_000 + "}",
    "null": json.dumps({**LLAMA, "num_attention_heads": None}),
    "endless vision": json.dumps({"model_type": "qwen2_5_vl", **LLAMA, "vision_config": {"depth": 10**8}}),
}


@pytest.mark.parametrize("tab", ["model", "compare", "finetune", "inference"])
@pytest.mark.parametrize("name", BAD)
def test_bad_configurations_get_a_sentence(name, tab):
    values = {section: defaults(controls) for section, controls in SECTIONS.items()}
    values["compare"]["models"] = (OWN_MODEL,)
    start = time.perf_counter()
    html, view = shown(lambda: contents(tab, values, BAD[name]), tab)
    assert time.perf_counter() - start < 5
    if view is None:
        assert html.startswith('<p class="problem" role="alert">')
        assert "Traceback" not in html
        assert 20 < len(html) < 1000
    else:  # what is missing has Hugging Face's default
        assert name in ("null", "negative", "zero layers")


@pytest.mark.parametrize("name", ["no JSON", "long", "endless layers", "unknown family", "text for a size"])
def test_the_sentence_names_the_reason(name):
    with pytest.raises(ConfigError) as error:
        compiled(Source("llama3-8b", BAD[name]), "exact")
    word = {"no JSON": "not valid JSON", "long": "longer than 256 KiB", "endless layers": "num_hidden_layers",
            "unknown family": "model_type='nonsense'", "text for a size": "must be a number"}[name]  # fmt: skip
    assert word in str(error.value)


def test_names_from_a_file_are_escaped():
    config = json.dumps({**LLAMA, "_name_or_path": "<img src=x onerror=alert(1)>", "</textarea><script>": 1})
    values = {section: defaults(controls) for section, controls in SECTIONS.items()}
    values["compare"]["models"] = (OWN_MODEL,)
    for tab in ("model", "compare"):
        html, view = shown(lambda tab=tab: contents(tab, values, config), tab)
        page = html + markup.values(view, "x")
        assert "<img" not in page
        assert "<script" not in page
        assert page.count("</textarea>") == 2
