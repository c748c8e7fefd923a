"""What a model writes: the same streamed, in segments, padded in a batch, and by generate()."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nestling import models
from nestling.data import ByteTokenizer
from nestling.errors import InputError
from nestling.evaluate.context import _starts, loss_by_context
from nestling.evaluate.questions import TASKS, Example, Material, answers, batch, evaluate, surprise
from nestling.evaluate.questions.answering import stream

PROMPTS = ["A short one:", "One that is quite a bit longer than the first, in fact more than one segment long.", "x"]
TOKENIZER = ByteTokenizer()


@pytest.fixture(scope="module", params=["transformer++", "hope", "gated-deltanet"])
def model(request):
    torch.manual_seed(0)
    made = models.create(request.param, "nano", num_hidden_layers=2, hidden_size=32, num_attention_heads=2)
    with torch.no_grad():  # fresh weights repeat their input; these don't
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def prompts(texts):
    return [Example(text.partition("quite")[::2], "", [["x"]], " x") for text in texts]


def test_batches_and_segments_change_nothing(model):
    alone = [answers(model, TOKENIZER, [one], 6, segment=4096)[0] for one in prompts(PROMPTS)]
    assert [answers(model, TOKENIZER, [one], 6, segment=7)[0] for one in prompts(PROMPTS)] == alone
    assert answers(model, TOKENIZER, prompts(PROMPTS), 6, segment=7) == alone
    assert answers(model, TOKENIZER, prompts(PROMPTS), 6) == alone
    text = "".join(prompts(PROMPTS)[0].pieces())
    ids = torch.from_numpy(TOKENIZER.encode(text).astype(np.int64))[None]
    out = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=0, pad_token_id=0)[0, ids.shape[1] :]
    assert TOKENIZER.decode(out[out != 0]) == alone[0]


def test_pieces_become_whole_segments():
    parts = list(stream(TOKENIZER, ["abc", "", "defgh", "i"], 4))
    assert [TOKENIZER.decode(part) for part in parts] == ["abcd", "efgh", "i"]


def test_a_surprise_is_the_loss_of_the_target(model):
    for target in (" mat.", "x"):
        example = Example(("The cat sat on", " the"), "?", [[target]], target)
        ids = torch.from_numpy(TOKENIZER.encode(example.prompt + target).astype(np.int64))[None]
        labels = ids.clone()
        labels[:, : -len(target)] = -100
        with torch.no_grad():
            whole = model(ids, labels=labels).loss.item() * len(target)
        for segment in (4096, 5):
            assert surprise(model, TOKENIZER, example, segment) == pytest.approx(whole, rel=1e-4)


def test_evaluate_scores_the_first_examples(model, everything):
    material, task = everything("swde"), TASKS["swde"]
    examples = list(task.examples(material))[:3]
    parrot = [
        Example(one.context, one.question, [[text]], "")
        for one, text in zip(examples, answers(model, TOKENIZER, examples, 48), strict=True)
    ]
    assert evaluate(model, task, material, examples, batch_size=2) == {"contains": 0.0}
    assert evaluate(model, replace(task, stop=()), material, parrot, batch_size=2) == {"contains": 1.0}
    with pytest.raises(InputError, match="'swde' has none"):
        evaluate(model, task, material, list(task.examples(material, 0, 20)))


def test_loss_by_context_is_the_loss_of_whole_windows(model):
    tokens = np.random.default_rng(0).integers(1, 200, 300).astype(np.uint8)
    found = loss_by_context(model, tokens, [1, 8, 32], targets=5, windows=3, batch_size=2, segment=6)
    starts = [32, 32 + 26 * 5, 32 + 52 * 5]  # 53 windows of 5 targets have 32 tokens before them; the middle one's 26th
    for context, loss in found.items():
        nats = []
        for start in starts:
            ids = torch.from_numpy(tokens[start - context : start + 5].astype(np.int64))[None]
            with torch.no_grad():
                likely = model(ids).logits.log_softmax(-1)[0, context - 1 : -1]
            nats += (-likely.gather(1, ids[0, context:, None])).flatten().tolist()
        assert loss == pytest.approx(sum(nats) / 15, abs=1e-5)
    assert loss_by_context(model, tokens, [32], 5, 3, segment=1000)[32] == pytest.approx(found[32], abs=1e-5)


def test_loss_by_context_tells_what_is_impossible(model):
    with pytest.raises(InputError, match="contexts: 64 tokens and 5 targets are more than any text"):
        loss_by_context(model, np.ones(60, np.uint8), [64], 5)
    with pytest.raises(InputError, match="contexts: 0 is too small"):
        loss_by_context(model, np.ones(60, np.uint8), [0, 2], 5)


def test_material_counts_tokens():
    assert Material().tokens("é") == 2
    assert Material().tokens("") == 0


def test_windows_lie_within_documents():
    rng = np.random.default_rng(1)
    tokens = np.concatenate([np.append(rng.integers(1, 9, size), 0) for size in (5, 41, 12, 30, 29, 28)])
    starts = _starts(tokens, 20, 10, 100, 0)
    assert starts == [6 + 20, 6 + 30, 61 + 20]
    for start in starts:
        assert (tokens[start - 20 : start + 10] != 0).all()
    assert len(_starts(tokens, 20, 10, 2, 0)) == 2


def test_batches_to_train_on_score_the_answer_alone():
    tasks, material = [TASKS["niah-single-1"], TASKS["niah-multikey-2"]], Material(room=40)
    seen = set()
    for step in range(12):
        ids, labels = batch(tasks, material, 0, step, 2400, [600, 1200])
        assert torch.equal(ids, batch(tasks, material, 0, step, 2400, [600, 1200])[0])
        seen.add((len(ids), "quiz" in TOKENIZER.decode(ids[0])))
        for row, answer in zip(ids, labels, strict=True):
            said = answer[answer != -100]
            assert said[-1] == TOKENIZER.eos_id
            value = TOKENIZER.decode(said[:-1])
            at = int((answer != -100).nonzero()[0])
            assert torch.equal(row[at : at + len(said)], said)
            assert (row[at + len(said) :] == 0).all()
            prompt = TOKENIZER.decode(row[:at])
            assert prompt.endswith(" is")
            assert value.strip() in prompt
        assert ids.shape[1] <= 1200
    assert {rows for rows, _ in seen} == {2, 4}
    assert not torch.equal(batch(tasks, material, 0, 0, 2400, [600])[0], batch(tasks, material, 1, 0, 2400, [600])[0])
    with pytest.raises(InputError, match="one of them is empty"):
        batch([], material, 0, 0, 100, [100])
