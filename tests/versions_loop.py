"""Three steps of a loop of its own around the callback, without Megatron: run by :mod:`tests.versions` in other environments."""

from types import SimpleNamespace

import torch

from bridge.flops import compile_plan
from bridge.training.callbacks import CallbackContext, ThroughputCallback

MODEL = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 128, "seq_length": 32}
LENGTHS = [[3, 32], [7, 9], [31, 1]]


def main() -> None:
    throughput = ThroughputCallback(convention="exact", log_interval=1, peak_flops=1e12)
    state = SimpleNamespace(cfg=SimpleNamespace(model=SimpleNamespace(**MODEL)), train_state=SimpleNamespace(step=0))
    context = CallbackContext(state=state, model=[torch.nn.Linear(1, 1)])
    throughput.on_train_start(context)
    for lengths in LENGTHS:
        throughput.on_train_step_start(context)
        throughput.count({"attention_mask": torch.arange(32)[None] < torch.tensor(lengths)[:, None]})
        throughput.on_train_step_end(context)
    throughput.on_train_end(context)
    expected = compile_plan(MODEL, "exact").flops([length for step in LENGTHS for length in step])
    print("equal" if throughput.latest["throughput/total_flops"] == expected else throughput.latest)


if __name__ == "__main__":
    main()
