"""Models and their memories survive the disk bit for bit, and damage is named."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

import nestling
from models.conftest import left_padded, make, tokens
from nestling.errors import InputError


@torch.no_grad()
def test_a_model_comes_back_exactly(model, tmp_path):
    ids = tokens(2, 21)
    with torch.random.fork_rng():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    model.save_pretrained(tmp_path)
    before = model(ids).logits
    for again in (AutoModelForCausalLM.from_pretrained(tmp_path), nestling.models.load(tmp_path)):
        assert type(again) is type(model)
        assert torch.equal(again(ids).logits, before)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(ids).last_hidden_state, model.model(ids).last_hidden_state)


@torch.no_grad()
def test_a_memory_comes_back_exactly(model, tmp_path):
    ids, mask = left_padded(tokens(2, 21), [21, 6])
    cache = model(ids, attention_mask=mask, use_cache=True).cache
    nestling.save_state(cache, tmp_path / "state")
    again = nestling.load_state(tmp_path / "state")
    more = tokens(2, 5, seed=2)
    ahead = [model(more, cache=kept, use_cache=True) for kept in (cache, again)]
    nestling.save_state(again, tmp_path / "once more")
    first, second = (load_file(tmp_path / name) for name in ("state", "once more"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Products may round differently where memory lies otherwise: what follows from equal states is equal to rounding.
    torch.testing.assert_close(ahead[0].logits, ahead[1].logits, rtol=0, atol=1e-6)
    assert again.get_seq_length() == 21
    assert again.nbytes == cache.nbytes


def test_bfloat16_memory(name, tmp_path):
    cache = make(name, dtype="bfloat16")(tokens(1, 9), use_cache=True).cache
    nestling.save_state(cache, tmp_path / "state")
    assert nestling.load_state(tmp_path / "state").nbytes == cache.nbytes


def test_damaged_states_are_refused(tmp_path):
    path = tmp_path / "state"
    nestling.save_state(make("transformer++")(tokens(2, 9), use_cache=True).cache, path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for content, message in ((whole[:-9], "truncated"), (b"no state", "truncated"), (bytes(flipped), "changed after")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            nestling.load_state(path)
    path.write_bytes(whole)
    save_file(load_file(path), path)
    with pytest.raises(InputError, match="not a state"):
        nestling.load_state(path)
    with pytest.raises(InputError, match="does not exist"):
        nestling.load_state(tmp_path / "nowhere")


def test_a_failed_save_leaves_the_old_state(tmp_path, monkeypatch):
    model, path = make("transformer++"), tmp_path / "state"
    nestling.save_state(model(tokens(1, 4), use_cache=True).cache, path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nestling.models.state.save_file", full)
    with pytest.raises(InputError, match="No space left"):
        nestling.save_state(model(tokens(1, 8), use_cache=True).cache, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="nothing to save"):
        nestling.save_state(nestling.models.MemoryCache(), path)


def test_a_state_of_another_model_is_refused(tmp_path):
    cache = make("transformer++")(tokens(1, 4), use_cache=True).cache
    with pytest.raises(InputError, match="same model and sizes"):
        make("transformer++", hidden_size=64)(tokens(1, 4), cache=cache)


def test_damaged_models_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no readable config\.json"):
        nestling.models.load(tmp_path)
    make("transformer++").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged"):
        nestling.models.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="'bert' is unknown"):
        nestling.models.load(tmp_path)


def test_importing_the_package_stays_light():
    code = "import nestling, sys; sys.exit(any(name in sys.modules for name in ('transformers', 'torch', 'triton')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
