"""What every model keeps: causality, separate sequences, any cut, padding that writes nothing, gradients, precision."""

import math

import pytest
import torch

import nestling.models
from models.conftest import left_padded, make, tokens
from nestling.errors import InputError
from nestling.models.registry import build
from tables import MODELS, TINY

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def test_every_model_is_listed():
    assert sorted(MODELS) == nestling.models.names()


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, TINY], ids=["nano", "tiny"])
def test_initial_loss_is_uniform(name, fields):
    model = nestling.models.create(name, "nano", **fields)
    vocabulary = model.config.vocab_size
    for seed in range(3):
        torch.manual_seed(seed)
        ids = torch.randint(1, vocabulary, (2, 64))
        loss = build(model.config)(ids, labels=ids).loss.item()
        assert loss == pytest.approx(math.log(vocabulary), rel=0.05), f"seed {seed}"


@torch.no_grad()
def test_causal(model):
    ids = tokens(2, 41)
    before = model(ids).logits
    for place in (0, 1, 17, 40):
        other = ids.clone()
        other[:, place] = other[:, place] % 60 + 1
        after = model(other).logits
        assert torch.equal(before[:, :place], after[:, :place])
        assert not torch.equal(before[:, place], after[:, place])


@torch.no_grad()
def test_sequences_stay_apart(model):
    ids = tokens(3, 41)
    other = torch.cat((ids[:1], tokens(2, 41, seed=2)))
    assert torch.equal(model(ids).logits[0], model(other).logits[0])


@torch.no_grad()
def test_token_by_token(model):
    ids = tokens(2, 37)
    cache, parts = None, []
    for place in range(37):
        out = model(ids[:, place : place + 1], cache=cache)
        parts.append(out.logits)
        cache = out.cache
    torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits, **CLOSE)


@torch.no_grad()
def test_a_cache_is_never_written(model):
    ids = tokens(2, 30)
    cache = model(ids[:, :11], use_cache=True).cache
    first = model(ids[:, 11:], cache=cache, use_cache=True)
    assert cache.get_seq_length() == 11
    assert first.cache.get_seq_length() == 30
    assert torch.equal(model(ids[:, 11:], cache=cache).logits, first.logits)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, side):
    lengths, ids = [5, 23, 1], tokens(3, 23)
    padded, mask = left_padded(ids, lengths)
    if side == "right":
        padded, mask = padded.flip(1), mask.flip(1)
    out = model(padded, attention_mask=mask, use_cache=True)
    assert torch.isfinite(out.logits).all()
    more = tokens(3, 4, seed=3)
    ahead = model(more, cache=out.cache, attention_mask=torch.cat((mask, torch.ones(3, 4)), 1))
    for b in range(3):
        row = padded[b][mask[b].bool()][None]
        alone = model(torch.cat((row, more[b : b + 1]), 1)).logits[0]
        torch.testing.assert_close(out.logits[b][mask[b].bool()], alone[: lengths[b]], **CLOSE)
        torch.testing.assert_close(ahead.logits[b], alone[lengths[b] :], **CLOSE)


@torch.no_grad()
def test_padding_between_calls(model):
    """A continued batch whose new part is padded too: rows stand at different places ever after."""
    ids, later = tokens(2, 9), tokens(2, 14, seed=4)
    padded, mask = left_padded(later, [14, 3])
    cache = model(ids, use_cache=True).cache
    out = model(padded, cache=cache, attention_mask=torch.cat((torch.ones(2, 9), mask), 1), use_cache=True)
    last = model(ids, cache=out.cache).logits
    for b, real in enumerate((14, 3)):
        alone = model(torch.cat((ids[b], later[b, -real:], ids[b]))[None]).logits[0]
        torch.testing.assert_close(out.logits[b, -real:], alone[9 : 9 + real], **CLOSE)
        torch.testing.assert_close(last[b], alone[-9:], **CLOSE)


def test_every_parameter_learns(model):
    ids = tokens(2, 48)
    model.train()(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_gradients_flow_through_a_cut(model):
    ids = tokens(2, 40)
    grads = []
    for cut in (None, 19):
        model.zero_grad()
        cache = None if cut is None else model(ids[:, :cut], use_cache=True).cache
        model(ids[:, cut:], cache=cache).logits[:, -5:].square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=2e-4 * float(grad.abs().max()), rtol=1e-4, msg=name)


def test_bfloat16_is_finite(name):
    model = make(name, dtype="bfloat16").train()
    ids = tokens(2, 48)
    out = model(ids, labels=ids)
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert torch.isfinite(out.logits).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:.*requires_grad=True:UserWarning")
def test_checkpointing_gives_the_same_gradients(model, reentrant):
    ids, grads = tokens(2, 24), []
    model.train()
    for on in (False, True):
        if on:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    for before, after in zip(*grads, strict=True):
        torch.testing.assert_close(before, after)


@torch.no_grad()
def test_the_older_name_of_the_cache():
    model, ids = make("hope"), tokens(2, 12)
    out = model(ids, use_cache=True)
    assert out.past_key_values is out.cache
    assert torch.equal(model(ids, past_key_values=out.cache).logits, model(ids, cache=out.cache).logits)
    with pytest.raises(InputError, match="give only cache"):
        model(ids, cache=out.cache, past_key_values=out.cache)


def test_segments_give_the_same_gradients(name):
    ids, mask = left_padded(tokens(3, 16), [16, 5, 11])
    labels, found = ids.masked_fill(mask == 0, -100), []
    for segment in (None, 1, 6):
        model = make(name, checkpoint_tokens=segment).double().train()
        out = model(ids, attention_mask=mask, labels=labels, use_cache=True)
        following = model(ids[:, :3], cache=out.cache, labels=ids[:, :3])
        (out.loss + following.loss).backward()
        found.append([following.logits, *(parameter.grad for parameter in model.parameters())])
    for cut in found[1:]:
        for one, other in zip(found[0], cut, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


def test_segments_keep_less(name):
    def kept(**values):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
            model = make(name, num_hidden_layers=1, **values)
            model.model(tokens(1, 128), use_cache=False)
        return sum(sizes)

    assert kept(checkpoint_tokens=32) < kept() / 2


@torch.no_grad()
def test_what_else_is_returned(model):
    ids = tokens(2, 12)
    out = model(ids, output_hidden_states=True)
    assert len(out.hidden_states) == TINY["num_hidden_layers"] + 1
    torch.testing.assert_close(model.lm_head(out.hidden_states[-1]), out.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, out.logits[:, -3:], rtol=0, atol=1e-6)
    torch.testing.assert_close(model(inputs_embeds=model.model.embed_tokens(ids)).logits, out.logits, rtol=0, atol=1e-6)
    assert isinstance(model(ids, return_dict=False), tuple)


@torch.no_grad()
def test_padding_predicts_nothing(model):
    ids, mask = left_padded(tokens(2, 12), [12, 5])
    batch = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
    alone = [model(row, labels=row).loss for row in (ids[:1], ids[1:, 7:])]
    torch.testing.assert_close(batch, (11 * alone[0] + 4 * alone[1]) / 15, **CLOSE)


@torch.no_grad()
def test_loss_leaves_out_and_counts(model):
    ids = tokens(2, 12)
    labels = ids.clone()
    labels[:, 5:] = -100
    logits = model(ids).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :4].flatten(0, 1), ids[:, 1:5].flatten(), reduction="sum")
    torch.testing.assert_close(model(ids, labels=labels).loss, expected / 8)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=16).loss, expected / 16)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by the compiler itself
def test_compiles_as_one_graph(name):
    # In float64: the loss hardly depends on the weights, behind a norm, and in float32 its gradients are half rounding.
    model, ids = make(name, num_hidden_layers=1).double().train(), tokens(2, 6)  # tracing takes seconds a chunk
    torch.compiler.reset()  # or the models before count as recompilations
    compiled = torch.compile(model.model, backend="aot_eager", fullgraph=True)
    found = []
    for run in (model.model, compiled):
        model.zero_grad()
        y = run(ids, use_cache=False).last_hidden_state
        y.square().sum().backward()
        found.append([y.detach(), *(parameter.grad for parameter in model.model.parameters())])
    for eager, one_graph in zip(*found, strict=True):
        torch.testing.assert_close(one_graph, eager, rtol=1e-9, atol=1e-11)
