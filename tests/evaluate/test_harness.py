"""Log-likelihoods: the same numbers as lm-eval's own class for transformers, and as a plain loop for ours."""

import json

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nestling import models
from nestling.data import ByteTokenizer, train_bpe
from nestling.data.tokenizer import END
from nestling.errors import InputError
from nestling.evaluate import harness, scoring
from nestling.evaluate.harness import CausalLM

TEXTS = ("The cat sat on the mat.", "Question: what is a dog?\nAnswer:", "a", "Two men in a boat, ", "x" * 70)
ENDINGS = (" It ran home.", " an animal", " no", " yes", "over the sea\n\nto see")
PAIRS = [(text, ending) for text in TEXTS for ending in ENDINGS] + [("", " yes"), ("", "the cat")]
FIELDS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def asked(kind, *arguments):
    return Instance(kind, {}, arguments, 0)


def close(found, wanted):
    """Whether answers are the same up to rounding."""
    values = pytest.approx([value for value, _ in wanted], rel=1e-5, abs=1e-5)
    return [value for value, _ in found] == values and [g for _, g in found] == [g for _, g in wanted]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "with a beginning token"])
def llama(request, tmp_path_factory):
    """A random Llama that reads 64 tokens at most, with its tokenizer."""
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    train_bpe([" ".join(TEXTS + ENDINGS) * 3], 300).save(path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token=END, pad_token=END)
    if request.param:
        processor = TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
        tokenizer.backend_tokenizer.post_processor = processor
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = LlamaConfig(vocab_size=300, max_position_embeddings=64, initializer_range=0.3, **ends, **FIELDS)
    return LlamaForCausalLM(config).eval(), tokenizer


@pytest.fixture(scope="module")
def theirs(llama):
    return HFLM(pretrained=llama[0], tokenizer=llama[1], batch_size=3, backend="causal")


@pytest.fixture(scope="module", params=["hope", "transformer++", "titans-mac"])
def hope(request):
    torch.manual_seed(0)
    return models.create(request.param, "nano", **FIELDS).eval()


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_log_likelihoods_are_those_of_lm_eval(llama, theirs, batch_size):
    requests = [asked("loglikelihood", *pair) for pair in PAIRS]
    found = CausalLM(*llama, batch_size=batch_size).loglikelihood(requests)
    assert close(found, theirs.loglikelihood(requests, disable_tqdm=True))


def test_rolling_log_likelihoods_are_those_of_lm_eval(llama, theirs):
    texts = ["", "a", TEXTS[0], " ".join(TEXTS), " ".join(TEXTS + ENDINGS) * 4]
    requests = [asked("loglikelihood_rolling", text) for text in texts]
    found = CausalLM(*llama, batch_size=3).loglikelihood_rolling(requests)
    assert found == pytest.approx(theirs.loglikelihood_rolling(requests, disable_tqdm=True), rel=1e-5)
    assert len(llama[1].encode(texts[-1])) > 2 * 64


@pytest.mark.parametrize("until", [["e"], ["zzz", "\n"], []])
def test_generated_text_is_that_of_lm_eval(llama, theirs, until):
    settings = {"until": until, "max_gen_toks": 12, "do_sample": False}
    requests = [asked("generate_until", text, settings) for text in TEXTS]
    found = CausalLM(*llama, batch_size=3).generate_until(requests)
    assert found == theirs.generate_until(requests, disable_tqdm=True)
    assert any(found)


def test_a_greedy_continuation_is_known_as_one(llama):
    lm, begin = CausalLM(*llama), torch.tensor([llama[1].encode(TEXTS[0])])
    ids = llama[0].generate(begin, max_new_tokens=5, do_sample=False, attention_mask=begin >= 0)[0].tolist()
    (greedy,) = lm._loglikelihood_tokens([(("", ""), ids[:-5], ids[-5:])])
    (other,) = lm._loglikelihood_tokens([(("", ""), ids[:-5], [*ids[-5:-1], ids[-1] ^ 1])])
    assert greedy[1]
    assert not other[1]
    assert greedy[0] > other[0]


def test_nothing_to_score_has_likelihood_one(llama):
    rows = [(("a", ""), [5, 6], []), (("a", "b"), [5, 6], [7]), (("a", ""), [5, 6], [])]
    found = CausalLM(*llama)._loglikelihood_tokens(rows)
    assert found[0] == found[2] == (0.0, True)
    assert found[1][0] < 0


def test_a_continuation_that_the_model_cannot_hold_is_refused(llama):
    with pytest.raises(InputError, match="max_length: a continuation of"):
        CausalLM(*llama, max_length=4).loglikelihood([asked("loglikelihood", "The", " cat sat on the mat. It ran")])


def plain(model, tokens, start):
    """Log-likelihood of tokens[start:], the simplest way."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].double().log_softmax(-1)
    picked = [logits[i - 1, tokens[i]].item() for i in range(start, len(tokens))]
    return sum(picked), all(logits[i - 1].argmax() == tokens[i] for i in range(start, len(tokens)))


@pytest.mark.parametrize("longer", [0, scoring.LONGER, 1000], ids=["contexts shared", "some shared", "none shared"])
def test_ours_are_scored_as_by_a_plain_loop(hope, longer, monkeypatch):
    monkeypatch.setattr(scoring, "LONGER", longer)
    lm = CausalLM(hope, ByteTokenizer(), batch_size=4)
    found = lm.loglikelihood([asked("loglikelihood", *pair) for pair in PAIRS])
    for (context, ending), (value, greedy) in zip(PAIRS, found, strict=True):
        tokens = [*(context or "\0").encode(), *ending.encode()]
        wanted = plain(hope, tokens, len(context.rstrip(" ")) or 1)  # lm-eval scores a last space with the continuation
        assert value == pytest.approx(wanted[0], abs=1e-4)
        assert greedy == wanted[1]


def test_a_document_of_any_length_is_read_in_segments(hope, monkeypatch):
    monkeypatch.setattr(scoring, "SEGMENT", 16)
    texts = ["", "a", " ".join(TEXTS), TEXTS[1] * 3, TEXTS[0]]
    lm = CausalLM(hope, ByteTokenizer(), batch_size=4)
    found = lm.loglikelihood_rolling([asked("loglikelihood_rolling", text) for text in texts])
    assert found[0] == 0
    for text, value in zip(texts[1:], found[1:], strict=True):
        assert value == pytest.approx(plain(hope, [0, *text.encode()], 1)[0], rel=1e-5)
    requests = [asked("loglikelihood", *pair) for pair in PAIRS]
    pairs = lm.loglikelihood(requests)
    monkeypatch.undo()
    assert close(pairs, lm.loglikelihood(requests))


def test_ours_can_be_held_to_a_maximum_length(hope):
    lm = CausalLM(hope, ByteTokenizer(), max_length=20)
    context, ending = TEXTS[0] * 3, " It ran"
    ((value, _),) = lm.loglikelihood([asked("loglikelihood", context, ending)])
    tokens = [*context.encode(), *ending.encode()][-21:]
    assert value == pytest.approx(plain(hope, tokens, 21 - len(ending))[0], abs=1e-4)


def test_ours_generate_until_a_stop(hope):
    lm = CausalLM(hope, ByteTokenizer(), batch_size=2)
    requests = [asked("generate_until", text, {"until": [], "max_gen_toks": 8}) for text in TEXTS]
    whole = lm.generate_until(requests)
    (alone,) = lm.generate_until(requests[3:4])
    assert alone == whole[3]
    stop = whole[0][2]
    (cut,) = lm.generate_until([asked("generate_until", TEXTS[0], {"until": [stop], "max_gen_toks": 8})])
    assert cut == whole[0].split(stop)[0]


def test_folders_of_both_kinds_are_loaded(hope, llama, tmp_path):
    device = torch.device("cpu")
    hope.save_pretrained(tmp_path / "run" / "model")
    ByteTokenizer().save(tmp_path / "run" / "model" / "tokenizer.json")
    llama[0].save_pretrained(tmp_path / "llama")
    llama[1].save_pretrained(tmp_path / "llama")
    requests = [asked("loglikelihood", *pair) for pair in PAIRS]
    loaded = harness.load(tmp_path / "run", device, batch_size=3)
    assert loaded.max_length is None
    assert close(loaded.loglikelihood(requests), CausalLM(hope, ByteTokenizer(), batch_size=3).loglikelihood(requests))
    loaded = harness.load(tmp_path / "llama", device, batch_size=3)
    assert loaded.max_length == 64
    assert close(loaded.loglikelihood(requests), CausalLM(*llama, batch_size=3).loglikelihood(requests))


def test_a_folder_without_a_model_is_refused(tmp_path):
    device = torch.device("cpu")
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="holds no model"):
            harness.load(folder, device)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="holds no causal language model"):
        harness.load(tmp_path, device)
