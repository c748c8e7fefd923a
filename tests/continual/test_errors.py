"""A user's mistake is answered by one sentence that names the argument, the value and what to do."""

import pytest
import torch

from continual.learners import ids, make, model
from continual.tiny import tiny
from nestling.continual.learner import Learner
from nestling.continual.level import Level, ordered
from nestling.continual.rules import RULES
from nestling.data.tokenizer import ByteTokenizer
from nestling.errors import InputError


def level(name="one", every=4, **fields):
    return Level(name, every, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rule": "sgd"}, "rule='sgd' of level 'one' is unknown: choose one of gd, momentum"),
        ({"every": 0}, "every=0 of level 'one' must be a whole number, at least 1"),
        ({"every": 2.5}, r"every=2\.5"),
        ({"lr": -1.0}, r"lr=-1\.0 of level 'one' must be finite, at least 0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": float("inf")}, "lr=inf"),
        ({"rank": 0}, "rank=0"),
        ({"retention": 1.5}, r"retention=1\.5 of level 'one' must be between 0 and 1"),
        ({"absorb": -0.5}, r"absorb=-0\.5"),
        ({"restart": 2}, "restart=2"),
        ({"limit": 0}, "limit=0 of level 'one' must be above 0, or None"),
        ({"clip": 0}, "clip=0"),
        ({"rule": "dgd", "rank": 2}, "rule='dgd' of level 'one' needs whole matrices: leave out rank=2"),
    ],
)
def test_settings_of_a_level(fields, message):
    with pytest.raises(InputError, match=message) as error:
        level(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([level(), level(every=8)], "the name 'one' occurs twice"),
        ([level("a", 4), level("b", 6)], "every=6 of level 'b' is no multiple of 4, the period of 'a'"),
        ([level(absorb=0.5)], r"absorb=0\.5 of level 'one': there is no faster level"),
        ([level("s", 8, absorb=0.5, where=(0,)), level("f", 4, where=(1,))], "it shares no weights with 'f'"),
        ([level("s", 8, absorb=0.5, rank=1), level("f", 4)], "absorb=0.5 of level 's' needs whole matrices"),
        ([level(rank=1000)], "rank=1000 is larger than the smaller side"),
        ([level(options={"momentun": 1})], r"options=\{'momentun': 1\} do not fit rule 'adamw'"),
        ([level(rule="dgd", options={"value": "x"})], "value='x' of rule dgd is unknown"),
        ([level(where=(7,))], "there is no decoder layer 7"),
        ([level(where="nothing.*")], "no linear layer of the model matches 'nothing"),
        ([level(where="model.embed_tokens")], "no linear layer"),
    ],
)
def test_levels_that_contradict_each_other_or_the_model(levels, message):
    with pytest.raises(InputError, match=message) as error:
        Learner(model("three"), None, levels)
    assert "\n" not in str(error.value)


def test_no_levels_are_no_order_of_levels():
    with pytest.raises(InputError, match="levels is empty"):
        ordered([])
    assert [one.name for one in ordered([level("f", 4), level("s", 8), level("t", 8)])] == ["s", "t", "f"]


def test_settings_of_a_learner():
    with pytest.raises(InputError, match="recall='some' is unknown"):
        Learner(model("three"), recall="some")
    for context in (0, 3):
        with pytest.raises(InputError, match=f"context={context} is not possible with segments of 4 tokens"):
            Learner(model("three"), None, [level()], context=context)
    with pytest.raises(InputError, match=r"context=300 is not possible .* give 4 to 256 tokens"):
        Learner(model("llama"), None, [level()], context=300)
    with pytest.raises(InputError, match="segments of 512 tokens"):
        Learner(model("llama"), None, [level(every=512)])
    assert Learner(model("llama")).segment == 256
    small = tiny("transformer++", vocab_size=100, num_hidden_layers=1)
    with pytest.raises(InputError, match=r"ids lie in 97..200, but the model knows 0..99"):
        Learner(small, ByteTokenizer(), [level()]).read([97, 200])


def test_reading_while_isolated_and_levels_that_are_not_there():
    learner = make("three")
    with learner.isolated():
        with learner.isolated(1):
            pass
        with pytest.raises(InputError, match="read: the learner is isolated, so nothing is received"):
            learner.read(ids(4))
    learner.read(ids(4))
    with pytest.raises(InputError, match="level 'none' is unknown: choose one of slow, middle, fast"):
        learner.reset("none")
    with pytest.raises(InputError, match="recall=4"), learner.isolated(4):
        pass


def test_a_mark_belongs_to_its_kind_of_learner():
    mark = make("three").snapshot()
    make("three").rollback(mark)
    for other in (make("one"), make("llama"), make("replay")):
        with pytest.raises(InputError, match="mark was taken of another kind of learner"):
            other.rollback(mark)


def test_a_weight_that_the_model_does_not_use_is_named():
    own = tiny("transformer++", num_hidden_layers=1)
    own.add_module("spare", torch.nn.Linear(4, 4))
    with pytest.raises(InputError, match="level 'one' owns 'spare', on which the loss does not depend"):
        Learner(own, None, [level(where="spare")]).read(ids(8))


def test_every_rule_has_a_learner_in_the_table():
    from tables import LEARNERS

    used = {one.get("rule", "adamw") for about in LEARNERS.values() for one in about["levels"]}
    assert used == set(RULES)
