"""The plan's integer equals what torch counts while transformers runs an encoder, alone or before a decoder."""

from __future__ import annotations

from random import Random

import pytest

pytest.importorskip("transformers")

from bridge.config import from_huggingface
from bridge.flops import compile_plan
from oracle import encoder_models as oracle


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("model_type", ["t5", "whisper", *oracle.BERT])
def test_encoders(model_type: str, seed: int) -> None:
    config = oracle.draw(model_type, seed)
    model = oracle.build(config)
    configuration = from_huggingface(config)
    plan = compile_plan(configuration, convention="executed")
    random = Random(seed)
    batch = oracle.Batch(model, 1 + seed, random.randint(2, 20), random.randint(2, 20))
    assert plan.flops(**batch.lengths, passes="forward") == batch.forward()
    assert plan.flops(**batch.lengths, passes="training") == batch.training()
    if not configuration.not_counted:
        assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("gated", [True, False])
def test_whether_t5_is_gated_may_stand_in_a_field_of_its_own(gated: bool) -> None:
    config = oracle.draw("t5", 0)
    config.feed_forward_proj, config.is_gated_act = "relu" if gated else "gated-gelu", gated
    model = oracle.build(config)
    plan = compile_plan(from_huggingface(config.to_dict()), convention="executed")
    batch = oracle.Batch(model, 2, 7, 5)
    assert plan.flops(**batch.lengths, passes="training") == batch.training()
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in model.parameters())
