"""Classes are learnt from labelled texts read one by one, in any cut, and protected or replayed."""

import pytest
import torch

from nestling import models
from nestling.continual.classifier import Classifier
from nestling.continual.level import Level
from nestling.continual.replay import Replay
from nestling.data import ByteTokenizer
from nestling.errors import InputError

OLD = [(f"{verb} the {thing}", "lights") for verb in ("dim", "turn up", "switch") for thing in ("lamp", "light")]
NEW = [(f"{verb} {thing}?", "weather") for verb in ("will it", "does it") for thing in ("rain", "snow", "hail")]
LABELS = ("lights", "weather", "never seen")
FAST = Level("fast", 2, lr=4e-3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    return models.create("transformer++", "nano", **shape)


def make(model, levels=(FAST,), **choices):
    return Classifier(model, ByteTokenizer(), LABELS, levels, **choices)


def right(classifier, examples, **choices):
    said = classifier.classify([text for text, _ in examples], **choices)
    return sum(one == label for one, (_, label) in zip(said, examples, strict=True)) / len(examples)


def test_it_learns_classes_and_leaves_the_model_as_it_is(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classifier = make(model)
    first = classifier.read(OLD + NEW)
    for _ in range(8):
        last = classifier.read(NEW[::-1] + OLD)
    assert last < first / 2
    assert right(classifier, OLD + NEW) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_any_cut_gives_the_same(model):
    whole, pieces = make(model), make(model)
    whole.read(OLD + NEW)
    for start, end in ((0, 1), (1, 4), (4, 4), (4, 11), (11, 12)):
        pieces.read((OLD + NEW)[start:end])
    assert torch.equal(whole.said(["rain"]), pieces.said(["rain"]))
    assert pieces.learner.position == 12


def test_a_text_means_the_same_alone_and_beside_longer_ones(model):
    classifier = make(model)
    classifier.read(OLD)
    alone, beside = classifier.said(["rain"]), classifier.said(["a much longer text than the other one", "rain"])
    torch.testing.assert_close(alone[0], beside[1])


def test_the_loss_is_on_the_class_behind_the_whole_text(model):
    examples = [("rain", "weather"), ("a much longer text", "lights")]
    classifier = make(model, levels=())
    logits = classifier.said([text for text, _ in examples])
    assert torch.allclose(logits.exp(), torch.full((2, 3), 1 / 3))  # a head that knows nothing
    assert make(model, (Level("fast", 2, lr=0.0),)).read(examples) == pytest.approx(torch.tensor(3.0).log().item())


def test_among_restricts_the_answer(model):
    classifier = make(model)
    for _ in range(6):
        classifier.read(OLD)
    assert set(classifier.classify(["dim the lamp"])) == {"lights"}
    assert set(classifier.classify(["dim the lamp"], among=["weather", "never seen"])) <= {"weather", "never seen"}


def test_replay_and_protection_remember_more(model):
    def after(strength=0.0, **choices):
        classifier = make(model, **choices)
        for _ in range(6):
            classifier.read(OLD)
        if strength:
            classifier.protect(OLD, strength)
        for _ in range(6):
            classifier.read(NEW)
        said = classifier.said([text for text, _ in OLD])
        return said[:, 0].mean().item()

    plain = after()
    assert after(replay=Replay(segments=6, share=2)) > plain
    assert after(strength=1e7) > plain


def test_mixture_is_the_mean_of_the_views(model):
    classifier = make(model, (Level("slow", 6, lr=0.0, absorb=0.5), FAST))
    classifier.read(OLD + NEW)
    texts = [text for text, _ in NEW]
    mean = (classifier.said(texts, 1).exp() + classifier.said(texts, 2).exp()) / 2
    expected = [LABELS[place] for place in mean.argmax(1).tolist()]
    assert classifier.classify(texts, recall="mixture") == expected


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda one: one.read([("dim", "lamps")]), "label 'lamps' is unknown"),
        (lambda one: one.classify(["dim"], among=["lamps"]), "label 'lamps' is unknown"),
        (lambda one: Classifier(one.learner.model, ByteTokenizer(), ("a", "a")), "one occurs twice"),
    ],
)
def test_bad_input(model, act, words):
    with pytest.raises(InputError, match=words):
        act(make(model))
