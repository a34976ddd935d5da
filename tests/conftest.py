"""Settings of the whole suite, and which tests `make test` leaves to `make test-all`."""

import os
import re
import tempfile

import pytest
from hypothesis import settings

# Machines that run the suite are shared and slow at times: a slow example is not a failure.
settings.register_profile("bridge", deadline=None)
settings.load_profile("bridge")

#: Long tests beside shorter ones of the same thing, and further draws of what is drawn at random. Naming a file or a test on the
#: command line runs it whole.
LEFT_TO_TEST_ALL = re.compile(
    r"""
      explorer/test_browser\.py                                   # a real browser; the page's tabs and server are tested without
    | training/test_parallel_training\.py::test_four_ranks        # two ranks have 29 layouts
    | training/test_expert_straggler\.py                        # by hand: test_expert_shares.py
    | training/test_routing\.py::test_(two_ranks|four_ranks|the_callback)  # one rank has the same cases
    | planning/test_(memory|communication)\.py::test_four_ranks
    | planning/test_search\.py::test_nvidias_layout
    | training/callbacks/test_restart\.py                         # resumes: test_resume.py, test_faults.py
    | training/test_faults\.py::test_a_full_disk
    | training/test_nodes\.py::test_a_node_is_cut_off
    | training/test_elastic\.py::test_killed_workers
    | training/job/test_ledger\.py::test_a_job_that_is_killed     # ledgers by hand: test_goodput.py
    | integrations/test_(trl|composer|deepspeed|torchtitan)\.py   # frameworks of the extra `loops`
    | docs/test_clusters\.py::test_ssh_trains
    | docs/test_commands\.py::test_training                       # two steps of each recipe; recipe and layout are checked always
    | tracing/test_tracing\.py::test_families.*\[(?!openai-gpt|plbart)   # further families, the same way
    | tracing/test_adapters\.py::(?!test_a_dense_model\[(dora|vera)|test_gradients)
    | tracing/test_kernels\.py::(?!.*wanted2)
    | tracing/test_images\.py::test_(images_of_any_size\[Qwen2VL|windows)
    | tracing/test_tracing\.py::test_attention_kernels.*\[flash
    | tracing/test_tracing\.py::test_traced_and_read_plans_are_equal\[(llama|qwen3_moe)
    | training/test_verify_trace\.py::test_a_run_is_told.*\[(parameters|trace)
    | training/callbacks/test_time\.py                            # real ranks with injected delays
    | training/callbacks/test_simulated_ranks\.py                # test_layouts.py has real ranks
    | training/engine/test_vision\.py                                # oracle/test_vision.py prices what these train
    | training/test_peft\.py::test_adapters\[                   # test_fine_tune.py trains them
    | training/test_parallel_training\.py::test_a_pack
    | oracle/test_fine_tuning\.py
    | training/test_faults\.py::test_a_damaged_checkpoint
    | planning/test_memory\.py::test_two_ranks
    | planning/test_activations\.py::.*\[(?!gqa)
    | metrics/test_place\.py::test_each_batch_counts_once
    | metrics/test_dealt\.py::test_.*on_four_ranks                # two ranks have the same rule
    | oracle/test_vision_training\.py
    | integrations/test_transformers_trainer_models\.py::.*\[(?!gemma)
    | oracle/test_vision\.py::.*-[12]\]                           # draws after the first
    | oracle/test_transformers\.py::.*-[123]\]
    | oracle/test_inference\.py::test_prefill_and_decode_steps\[.*-1\]
    """,
    re.VERBOSE,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run what `make test` leaves to `make test-all`")


def pytest_configure(config: pytest.Config) -> None:
    """Peaks and traces of a test are no user's: every process below this one keeps them in a folder that goes with it."""
    if "BRIDGE_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="bridge-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ["BRIDGE_CACHE_DIR"] = folder.name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Files that start processes come first: at the end there are short ones to share out.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if config.getoption("--all") or config.args_source is pytest.Config.ArgsSource.ARGS:
        return
    left = [item for item in items if LEFT_TO_TEST_ALL.search(item.nodeid)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not LEFT_TO_TEST_ALL.search(item.nodeid)]
