"""What a model writes: the same streamed, in segments, padded in a batch, and by generate()."""

import numpy as np
import pytest
import torch

from nestling import models
from nestling.data import ByteTokenizer
from nestling.errors import InputError
from nestling.evaluate.context import loss_by_context
from nestling.evaluate.questions import TASKS, Example, Material, answers, evaluate
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


def test_evaluate_scores_the_first_examples(model, everything):
    found = evaluate(model, TASKS["swde"], everything("swde"), 0, None, 3, batch_size=2)
    assert found["examples"] == 3
    assert 0 <= found["contains"] <= 1
    with pytest.raises(InputError, match="no example of 'swde'"):
        evaluate(model, TASKS["swde"], everything("swde"), 0, 20, 3)


def test_loss_by_context_is_the_loss_of_whole_windows(model):
    tokens = np.random.default_rng(0).integers(1, 200, 300).astype(np.uint8)
    found = loss_by_context(model, tokens, [1, 8, 32], targets=5, windows=3, batch_size=2, segment=6)
    starts = [32, 32 + 263 // 2, 295]
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
    with pytest.raises(InputError, match="contexts: 64 tokens and 5 targets"):
        loss_by_context(model, np.ones(60, np.uint8), [64], 5)
    with pytest.raises(InputError, match="contexts: 0 is too small"):
        loss_by_context(model, np.ones(60, np.uint8), [0, 2], 5)


def test_material_counts_tokens():
    assert Material().tokens("é") == 2
    assert Material().tokens("") == 0
