"""The configuration: ranges, schedule, what may change on resume, KEY=VALUE fields."""

import dataclasses
import json

import pytest

from nestling.errors import InputError
from nestling.train.config import (
    OPTIMIZERS,
    TrainConfig,
    check,
    differences,
    from_dict,
    learning_rate,
    parse_fields,
    peak,
)

REFUSED = [
    {"steps": 0},
    {"steps": "many"},
    {"batch_size": 0},
    {"sequence_length": 1},
    {"optimizer": "adam"},
    {"learning_rate": 0.0},
    {"learning_rate": float("nan")},
    {"min_learning_rate_fraction": 1.5},
    {"warmup_steps": -1},
    {"weight_decay": -0.1},
    {"betas": (0.9, 1.0)},
    {"clip": 0.0},
    {"precision": "float16"},
    {"device": "tpu"},
    {"seed": -1},
    {"keep": 0},
    {"threads": 0},
    {"max_seconds": 0.0},
    {"batch_size": 6, "accumulate": 4},
]


def test_the_defaults_are_allowed():
    check(TrainConfig())


@pytest.mark.parametrize("change", REFUSED, ids=str)
def test_a_value_out_of_range_is_refused_by_name(change):
    name, value = list(change.items())[-1]
    with pytest.raises(InputError, match=f"^{name}: ") as caught:
        check(TrainConfig(**change))
    assert str(value) in str(caught.value)


def test_the_schedule_warms_up_and_ends_at_the_floor():
    config = TrainConfig(steps=101, warmup_steps=10, learning_rate=1.0, min_learning_rate_fraction=0.2)
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 9) == pytest.approx(1.0)
    assert learning_rate(config, 10) == pytest.approx(1.0)
    assert learning_rate(config, 55) == pytest.approx(0.6)
    assert learning_rate(config, 100) == pytest.approx(0.2)
    rates = [learning_rate(config, step) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_a_learning_rate_of_its_own_which_an_argument_replaces(name):
    own = TrainConfig(optimizer=name, warmup_steps=0)
    assert learning_rate(own, 0) == peak(own) == OPTIMIZERS[name].rate
    assert learning_rate(dataclasses.replace(own, learning_rate=0.5), 0) == 0.5


@pytest.mark.parametrize(
    "change", [{"warmup_steps": 0}, {"warmup_steps": 50}, {"steps": 1, "warmup_steps": 0}], ids=str
)
def test_the_schedule_is_positive_for_any_lengths(change):
    config = TrainConfig(**{"steps": 10, **change})
    assert all(0 < learning_rate(config, step) <= peak(config) for step in range(config.steps))


def test_fields_are_json_or_text():
    fields = parse_fields(["hidden_size=64", "tie=false", "name=x", "path=a=b", "empty="])
    assert fields == {"hidden_size": 64, "tie": False, "name": "x", "path": "a=b", "empty": ""}


@pytest.mark.parametrize("item", ["hidden_size", "=3"])
def test_a_field_without_key_or_value_is_refused(item):
    with pytest.raises(InputError, match="KEY=VALUE"):
        parse_fields([item])


def test_a_configuration_survives_json():
    config = TrainConfig(fields={"hidden_size": 16, "periods": [1, 2]}, betas=(0.8, 0.9), clip=None)
    again = from_dict(json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config


def test_an_unknown_field_of_a_saved_configuration_is_refused():
    with pytest.raises(InputError, match="colour"):
        from_dict({"colour": "red"})


def test_differences_name_what_changes_the_run_and_nothing_else():
    config = TrainConfig(fields={"periods": (1, 2)})
    same = dataclasses.replace(config, fields={"periods": [1, 2]}, keep=7, threads=3, evaluate_every=9, accumulate=2)
    assert differences(config, same) == []
    other = dataclasses.replace(config, model="x", size="y", fields={}, data="cpp", seed=1, batch_size=4, steps=5)
    assert differences(config, other) == ["model", "size", "fields", "data", "steps", "batch_size", "seed"]
