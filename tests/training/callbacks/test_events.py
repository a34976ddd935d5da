"""The manager calls what it should, in order, and knows Megatron-Bridge's events."""

import importlib.util
from pathlib import Path

import callback_driver as driver
import pytest

from bridge.flops import compile_plan
from bridge.training.callbacks import (
    EVENTS,
    Callback,
    CallbackContext,
    CallbackManager,
    ThroughputCallback,
    normalize_callbacks,
    should_fire,
)

CONTEXT = CallbackContext(state=None, model=[])


class Recorder(Callback):
    def __init__(self, name, log):
        self.name, self.log = name, log

    def on_train_start(self, context):
        self.log.append((self.name, "on_train_start"))

    def on_train_step_end(self, context):
        self.log.append((self.name, "on_train_step_end"))


class Duck:
    """No base class, one event, and everything else a callback may have."""

    def __init__(self):
        self.state = {"n": 0}

    def on_train_end(self, context):
        context.user_state["ended"] = True

    def observe(self, data_iterator):
        return (item + 1 for item in data_iterator)

    def state_dict(self):
        return dict(self.state)

    def load_state_dict(self, state):
        self.state = dict(state)


def test_callbacks_fire_in_the_order_they_were_added():
    log = []
    manager = CallbackManager()
    manager.add(Recorder("a", log))
    manager.register("on_train_start", lambda context: log.append(("function", "on_train_start")))
    manager.add([Recorder("b", log), Recorder("c", log)])
    manager.fire("on_train_start", CONTEXT)
    assert log == [(name, "on_train_start") for name in ("a", "function", "b", "c")]


def test_only_overridden_events_are_registered():
    manager = CallbackManager([Recorder("a", [])])
    assert [event for event in EVENTS if manager.has_callbacks(event)] == ["on_train_start", "on_train_step_end"]
    assert manager.list_callbacks("on_eval_end") == []
    assert not should_fire(manager, "on_eval_end")
    assert should_fire(manager, "on_train_start")
    assert not should_fire(None, "on_train_start")


def test_any_object_will_do():
    manager = CallbackManager([Duck()])
    manager.fire("on_train_end", CallbackContext(state=None, model=[], user_state=manager.user_state))
    assert manager.user_state == {"ended": True}


@pytest.mark.parametrize("method", ["register", "list_callbacks"])
def test_an_unknown_event_is_an_error_that_names_the_known_ones(method):
    arguments = ("on_lunch",) if method == "list_callbacks" else ("on_lunch", print)
    with pytest.raises(ValueError, match="unknown event 'on_lunch'; events are on_train_start"):
        getattr(CallbackManager(), method)(*arguments)


def test_exceptions_reach_the_loop():
    def fails(context):
        raise RuntimeError("mine")

    manager = CallbackManager()
    manager.register("on_train_start", fails)
    with pytest.raises(RuntimeError, match="mine"):
        manager.fire("on_train_start", CONTEXT)


def test_observers_are_chained():
    manager = CallbackManager([Duck(), Recorder("a", []), Duck()])
    assert list(manager.observe(iter([1, 2]))) == [3, 4]


def test_states_are_kept_by_class_name():
    manager = CallbackManager([Duck(), Recorder("a", []), Duck()])
    manager.callbacks[2].state = {"n": 7}
    saved = manager.state_dict()
    assert saved == {"Duck": {"n": 0}, "Duck#2": {"n": 7}}
    fresh = CallbackManager([Duck(), Duck(), Duck()])
    fresh.load_state_dict(saved)
    assert [callback.state["n"] for callback in fresh.callbacks] == [0, 7, 0]


def test_normalize():
    manager = CallbackManager()
    assert normalize_callbacks(manager) is manager
    assert normalize_callbacks(None) is None
    assert len(normalize_callbacks([Duck()]).callbacks) == 1


def test_events_and_hooks_are_the_same_set():
    hooks = {name for name in vars(Callback) if name.startswith("on_")}
    assert hooks == set(EVENTS) == CallbackManager().events


def megatron_bridge():
    """Megatron-Bridge's module of callbacks, if the package is installed; it imports without its dependencies."""
    spec = importlib.util.find_spec("megatron")
    for root in spec.submodule_search_locations if spec else ():
        path = Path(root) / "bridge" / "training" / "callbacks.py"
        if path.exists():
            module_spec = importlib.util.spec_from_file_location("megatron_bridge_callbacks", path)
            module = importlib.util.module_from_spec(module_spec)
            import sys

            sys.modules[module_spec.name] = module
            module_spec.loader.exec_module(module)
            return module
    return None


@pytest.mark.skipif(megatron_bridge() is None, reason="Megatron-Bridge is not installed")
def test_megatron_bridge_has_these_events_and_takes_our_callbacks():
    theirs = megatron_bridge()
    assert set(EVENTS) - theirs.VALID_EVENTS == {"on_checkpoint_save"}
    assert set(EVENTS) >= theirs.VALID_EVENTS
    log = []
    manager = theirs.CallbackManager()
    manager.add(Recorder("a", log))
    manager.fire("on_train_start", CONTEXT)
    assert log == [("a", "on_train_start")]


@pytest.mark.skipif(megatron_bridge() is None, reason="Megatron-Bridge is not installed")
@pytest.mark.usefixtures("no_measurement")
def test_the_throughput_callback_counts_in_megatron_bridges_manager():
    theirs = megatron_bridge()
    run, callback = driver.state(driver.config(log_interval=2)), ThroughputCallback("exact")
    manager = theirs.CallbackManager()
    manager.add(callback)
    drawn = driver.draw(3, 5)
    data = callback.observe(map(driver.packed, drawn))

    def fire(event, **fields):
        context = theirs.CallbackContext(state=run, model=[], user_state=manager.user_state, **fields)
        manager.fire(event, context)

    fire("on_train_start")
    for _ in drawn:
        fire("on_train_step_start")
        next(data)
        fire("on_train_step_end", loss_dict={}, grad_norm=1.0, skipped_iter=False)
        run.train_state.step += 1
    fire("on_train_end")
    lengths = [length for batch in drawn for length in batch]
    assert callback.latest["step"] == 5
    assert callback.latest["throughput/total_flops"] == compile_plan(run.cfg, "exact").flops(lengths)
