"""What is generated, scored and predicted: what was read and what waits is context, and nothing is written."""

import math

import pytest
import torch

from continual.learners import NAMES, ids, make, model, read
from continual.tiny import tiny
from nestling.continual.learner import Learner
from nestling.continual.level import Level
from nestling.continual.reader import SHARE
from nestling.data.tokenizer import ByteTokenizer
from nestling.errors import InputError

TEXT = ids(23, seed=4)


@pytest.fixture(params=["frozen", "one", "three", "low-rank", "mixture", "hope", "llama", "gpt2", "gemma3"])
def learner(request):
    return read(make(request.param), [ids(22)])


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_score_is_the_sum_of_the_logits(learner):
    rows = learner.logits(TEXT)
    close(rows.logsumexp(-1), torch.zeros(len(TEXT)))
    said = rows[:-1].gather(1, TEXT[1:, None]).double().sum().item()
    first = learner.score(TEXT[:1]).nats
    score = learner.score(TEXT)
    assert score.nats == pytest.approx(first - said, rel=1e-5)
    assert score.tokens == len(TEXT)
    assert score.loss == score.nats / score.tokens


def test_a_score_is_the_sum_of_its_parts_behind_each_other(learner):
    whole = learner.score(TEXT).nats
    head = learner.score(TEXT[:9]).nats
    behind = learner.branch()
    behind.pending = torch.cat((behind.pending, TEXT[:9]))
    assert head + behind.score(TEXT[9:]).nats == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("name", ["frozen", "one", "low-rank", "llama", "gpt2", "hope"])
def test_alone_a_text_is_scored_as_by_the_model_in_one_pass(name):
    learner = read(make(name), [ids(40)])
    text = TEXT[: learner.context.size]
    with learner.isolated() as inner, torch.no_grad():
        logits = torch.log_softmax(inner(text[None]).logits[0], -1)
    expected = -logits[:-1].gather(1, text[1:, None]).double().sum().item()
    fresh = learner.score(text, fresh=True)
    assert fresh.tokens == len(text) - 1  # without a tokenizer nothing predicts the first
    assert fresh.nats == pytest.approx(expected, rel=1e-5)
    close(learner.logits(text, fresh=True), logits)


def test_the_open_segment_and_the_unfinished_line_are_context():
    other = Learner(model("frozen"), None, [Level("one", 16)])
    other.read(ids(20))
    assert len(other.pending) == 4
    behind = torch.cat((ids(20), TEXT[:9]))
    with other.isolated() as inner, torch.no_grad():
        cache = other.context.cache
        rows = inner(behind[None, 15:], cache=_copy(cache), use_cache=True).logits[0]
    close(other.logits(TEXT[:9], recall="all"), torch.log_softmax(rows, -1)[-9:])

    class Lines(ByteTokenizer):
        fingerprint = "by lines"

    waits = Learner(tiny("transformer++", vocab_size=256), Lines(), [Level("one", 8)])
    waits.read("first line\nsec")
    known = Learner(waits.model, ByteTokenizer(), [Level("one", 8)])
    known.read("first line\nsec")
    assert (waits.position, known.position) == (8, 8)
    assert torch.equal(waits.logits("ond"), known.logits("ond"))
    assert waits.generate("", 6, seed=0) == known.generate("", 6, seed=0)


def _copy(cache):
    from nestling.models.carry import copied

    return copied(cache)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bfloat16"])
def test_the_mixture_is_the_bayesian_one_with_a_fixed_share(name):
    learner = read(make(name), [ids(22)])
    text, count = TEXT[:11], len(learner.levels) + 1
    views = [learner.logits(text, fresh=True, recall=view) for view in range(count)]
    weights, rows = [1 / count] * count, []
    for t in range(len(text)):
        if t:
            likely = [w * views[k][t - 1, text[t]].double().exp().item() for k, w in enumerate(weights)]
            weights = [(1 - SHARE) * one / sum(likely) + SHARE / count for one in likely]
        assert sum(weights) == pytest.approx(1)
        rows.append(torch.log(sum(w * views[k][t].double().exp() for k, w in enumerate(weights))))
    close(learner.logits(text, fresh=True, recall="mixture"), torch.stack(rows).float())
    assert torch.equal(views[-1], learner.logits(text, fresh=True, recall="all"))


def test_views_begin_at_the_frozen_model():
    learner = read(make("three"), [ids(64)])
    frozen = Learner(learner.model, None, [])
    close(learner.logits(TEXT[:16], fresh=True, recall=0), frozen.logits(TEXT[:16], fresh=True))
    with learner.isolated(1) as inner, torch.no_grad():
        slow = torch.log_softmax(inner(TEXT[None, :16]).logits[0], -1)
    close(learner.logits(TEXT[:16], fresh=True, recall=1), slow)
    assert not torch.allclose(slow, learner.logits(TEXT[:16], fresh=True), atol=1e-4)


@pytest.mark.parametrize("name", ["three", "mixture", "llama", "hope"])
def test_what_is_generated_is_what_the_logits_say(name):
    learner, text = read(make(name), [ids(22)]), TEXT[:5]
    new = learner.generate(text, 3, temperature=0)
    assert new.shape == (3,)
    for i in range(3):
        assert learner.logits(torch.cat((text, new[:i])))[-1].argmax() == new[i]
    drawn = learner.generate(text, 5, temperature=1.5, top_k=3, seed=1)
    assert torch.equal(drawn, learner.generate(text, 5, temperature=1.5, top_k=3, seed=1))
    assert drawn[-1] in learner.logits(torch.cat((text, drawn[:-1])))[-1].topk(3).indices
    assert any(not torch.equal(drawn, learner.generate(text, 5, 1.5, seed=seed)) for seed in range(2, 5))


def test_what_is_generated_goes_on_beyond_the_context():
    learner = read(make("context"), [ids(22)])
    assert learner.generate(TEXT, 30, seed=0).shape == (30,)


def test_it_ends_with_the_token_that_ends_documents():
    own = tiny("transformer++", vocab_size=256)
    learner = Learner(own, ByteTokenizer(), [Level("one", 8)])

    def ends(module, args, output):
        output.logits[..., 0] = 1e4
        return output

    handle = own.register_forward_hook(ends)
    assert learner.generate("abc", 20, temperature=0) == ""
    handle.remove()
    assert learner.generate("abc", 0) == ""


def test_bits_per_byte_are_of_the_text():
    learner = Learner(tiny("transformer++", vocab_size=256), ByteTokenizer(), [Level("one", 8)])
    score = learner.score("ein Vögelchen")
    assert (score.tokens, score.size) == (14, 14)
    assert score.bits_per_byte == pytest.approx(score.nats / math.log(2) / 14)
    assert math.isnan(learner.score("").loss)


def test_nothing_to_go_on_from_and_unknown_views_are_refused():
    learner = make("three")
    with pytest.raises(InputError, match="prompt is empty"):
        learner.generate()
    for recall in ("none", 4, -1):
        with pytest.raises(InputError, match=r"recall=.* is unknown: give 'all', 'mixture', or a number"):
            learner.score(TEXT, recall=recall)
    with pytest.raises(InputError, match="recall=4"), learner.isolated(4):
        pass
