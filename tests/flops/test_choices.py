"""Names are checked where they are built, and strings equal the members they name."""

import pytest

from bridge.flops import ConfigError, compile_plan
from bridge.flops.plan import Passes
from bridge.flops.statistics import Over, Statistic
from bridge.flops.terms import Context, Shape

MODEL = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 10}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Context("windw"), "shape='windw' is not known; choose one of causal, bidirectional, "),
        (lambda: Context("window", (4,), over="image"), "over='image' is not known; choose one of sequences, images, encoder, "),
        (lambda: Statistic("length", "tokens"), "over='tokens' is not known; choose one of sequences, images, encoder, "),
        (lambda: compile_plan(MODEL).flops([3], passes="trainig"),
         "passes='trainig' is not known; choose one of forward, training, hardware"),
        (lambda: compile_plan(MODEL).breakdown([3], passes="trainig"), "passes='trainig' is not known"),
        (lambda: compile_plan(MODEL).evaluate_stages([0, 0], 1, passes=None), "passes=None is not known"),
    ],
)  # fmt: skip
def test_unknown_names(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_strings_and_members_are_the_same():
    assert Context("window", (4,), "images") == Context(Shape.WINDOW, (4,), Over.IMAGES)
    assert {Context("causal"): 1}[Context(Shape.CAUSAL)] == 1
    assert Statistic("length", "encoder").name == "encoder_tokens"
    assert Statistic("square", over="joint").name == "square_of_joint"
    assert f"{Context('chunk').shape} {Over.CROSS}" == "chunk cross"
    assert compile_plan(MODEL).flops([3], passes="forward") == compile_plan(MODEL).flops([3], passes=Passes.FORWARD)
