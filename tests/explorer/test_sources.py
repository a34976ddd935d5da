"""Pasted and uploaded configurations are a stranger's: each bad one gets a sentence, none a traceback or a long wait."""

import json
import time

import pytest

from bridge.config import ConfigError, from_huggingface
from bridge.explorer import html as markup
from bridge.explorer import link
from bridge.explorer.controls import defaults
from bridge.explorer.page import SECTIONS, contents, shown
from bridge.explorer.sources import MAX_CONFIG_BYTES, OWN_MODEL, Source, compiled, model_names, read
from bridge.flops import compile_plan

LLAMA = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
         "vocab_size": 1000}  # fmt: skip
HYBRID = {"model_type": "nemotron_h", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
          "intermediate_size": 128, "vocab_size": 257, "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 16,
          "n_groups": 2}  # fmt: skip


def test_a_config_wins_over_the_recipe():
    source = Source("llama3-8b", json.dumps(LLAMA))
    assert compiled(source, "exact").flops([256]) == compile_plan(from_huggingface(LLAMA), "exact").flops([256])
    assert read(Source("llama3-8b", "  \n")).name == "llama3-8b"


def test_all_recipes_can_be_picked():
    assert {"llama3-8b", "tiny"} < set(model_names())


#: What a sentence must say.
NAMED = {
    "no JSON": "not valid JSON",
    "long": "longer than 256 KiB",
    "endless layers": "num_hidden_layers",
    "unknown family": "model_type='nonsense'",
    "text for a size": "must be a number",
    "endless pattern": "hybrid_override_pattern says 240000 layers",
    "long pattern": "hybrid_override_pattern says 258 layers, more than the 256 that this page draws",
    "two long stacks": "257 layers are more than the 256 that this page draws",
}

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
    "endless pattern": json.dumps({**HYBRID, "hybrid_override_pattern": "M*-" * 80_000}),
    "long pattern": json.dumps({**HYBRID, "hybrid_override_pattern": "M*-" * 86}),
    "two long stacks": json.dumps(
        {
            "model_type": "t5",
            "d_model": 64,
            "d_ff": 128,
            "num_layers": 200,
            "num_decoder_layers": 57,
            "num_heads": 4,
            "vocab_size": 100,
        }
    ),
    "too many digits": '{"model_type": "llama", "hidden_size": ' + "9" * 10_000 + "}",
    "null": json.dumps({**LLAMA, "num_attention_heads": None}),
    "endless vision": json.dumps({"model_type": "qwen2_5_vl", **LLAMA, "vision_config": {"depth": 10**8}}),
}


@pytest.mark.parametrize("tab", ["model", "compare", "finetune", "inference"])
@pytest.mark.parametrize("name", BAD)
def test_bad_configurations_get_a_sentence(name, tab):
    values = {section: defaults(controls) for section, controls in SECTIONS.items()}
    values["compare"]["models"] = (OWN_MODEL,)
    start = time.process_time()
    html, view = shown(lambda: contents(tab, values, BAD[name]), tab)
    assert time.process_time() - start < 60  # what it guards against takes hours
    if view is None:
        assert html.startswith('<p class="problem" role="alert">')
        assert "Traceback" not in html
        assert 20 < len(html) < 1000
    else:  # what is missing has Hugging Face's default
        assert name in ("null", "negative", "zero layers")


@pytest.mark.parametrize("name", NAMED)
def test_the_sentence_names_the_reason(name):
    with pytest.raises(ConfigError) as error:
        compiled(Source("llama3-8b", BAD[name]), "exact")
    assert NAMED[name] in str(error.value)


def test_what_a_link_may_hold_is_priced_within_a_second():
    """The most layers that are drawn, and one more, in links of a few hundred characters."""
    for symbols, count in (("M*-", 85), ("M", 256)):
        text = link.unpack(link.pack(json.dumps({**HYBRID, "hybrid_override_pattern": symbols * count})))
        start = time.process_time()
        plan = compiled(Source("llama3-8b", text), "exact")
        assert time.process_time() - start < 1
        assert (
            len({term.path.split(".")[2] for term in plan.terms if term.path.startswith("decoder.layers.")})
            == len(symbols) * count
        )
    long = link.pack(json.dumps({**HYBRID, "hybrid_override_pattern": "M*-" * 80_000}))
    assert len(long) < 600
    with pytest.raises(ConfigError, match="hybrid_override_pattern says 240000 layers"):
        compiled(Source("llama3-8b", link.unpack(long)), "exact")


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
