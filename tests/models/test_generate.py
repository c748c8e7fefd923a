"""generate() with every model: the cache changes the speed and nothing else."""

import pytest
import torch
from transformers import StoppingCriteria

from models.conftest import left_padded, make, tokens
from nestling.errors import InputError
from nestling.models import MemoryCache

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def quiet():
    """No warning about masks that were left out on purpose."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)


def test_greedy_with_and_without_cache(model):
    ids = tokens(2, 9)
    with_cache = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(with_cache, model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False))


def test_sampling_is_seeded(model):
    ids, samples = tokens(2, 9), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(model.generate(ids, max_new_tokens=8, do_sample=True, num_return_sequences=2))
    assert samples[0].shape == (4, 17)
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_beams_with_and_without_cache(model):
    ids, mask = left_padded(tokens(2, 9), [9, 4])
    kinds = [
        model.generate(ids, attention_mask=mask, max_new_tokens=7, num_beams=3, do_sample=False, use_cache=use)
        for use in (True, False)
    ]
    assert torch.equal(*kinds)


def test_left_padding_equals_rows_alone(model):
    lengths = [4, 9, 1]
    ids, mask = left_padded(tokens(3, 9), lengths)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
    for b, length in enumerate(lengths):
        alone = model.generate(ids[b : b + 1, -length:], max_new_tokens=6, do_sample=False, eos_token_id=None)
        assert torch.equal(out[b, 9:], alone[0, length:])


def test_prompt_in_chunks(model):
    ids = tokens(2, 13)
    plain = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(plain, model.generate(ids, max_new_tokens=5, do_sample=False, prefill_chunk_size=4))


def test_continue_from_a_cache(model):
    ids = tokens(2, 13)
    cache = model(ids[:, :8], use_cache=True).cache
    plain = model.generate(ids, max_new_tokens=5, do_sample=False)
    for _ in range(2):
        assert torch.equal(plain, model.generate(ids, cache=cache, max_new_tokens=5, do_sample=False))


def test_embeddings_as_prompt(model):
    ids = tokens(2, 9)
    plain = model.generate(ids, max_new_tokens=5, do_sample=False)
    embedded = model.model.embed_tokens(ids)
    assert torch.equal(plain[:, 9:], model.generate(inputs_embeds=embedded, max_new_tokens=5, do_sample=False))


def test_returned_cache_is_ours_and_stopping_is_free(model):
    class AtTwelve(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 12)

    out = model.generate(
        tokens(2, 9),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        stopping_criteria=[AtTwelve()],
        return_dict_in_generate=True,
    )
    assert out.sequences.shape[1] == 12
    assert isinstance(out.cache, MemoryCache)
    assert out.cache.get_seq_length() == 11


def test_cache_rearranges(model):
    ids = tokens(3, 9)
    cache = model(ids, use_cache=True).cache
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 4
    order, more = [2, 2, 0, 0], tokens(4, 3, seed=2)
    with torch.no_grad():
        out = model(more, cache=cache).logits
        whole = model(torch.cat((ids[order], more), 1)).logits
    torch.testing.assert_close(out, whole[:, 9:], atol=1e-5, rtol=1e-5)
    assert "batch_size=4" in repr(cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.batch_size == -1


def test_what_a_memory_cannot_do():
    model = make("transformer++")
    with pytest.raises(InputError, match="leave it out"):
        model.generate(tokens(1, 3), max_new_tokens=2, cache_implementation="static")
    with pytest.raises(InputError, match="can't take tokens back"):
        MemoryCache().crop(-1)
