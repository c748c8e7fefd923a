"""Hope's memories stay alive over long streams: finite, within bounds, and at work."""

import pytest
import torch

from models.streams import STREAMS, streams
from nestling import models
from nestling.data import batch, open_store

LENGTH, PIECE, CHUNK = 16384, 512, 64
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 128}


@pytest.fixture(scope="module")
def text():
    return open_store("python", max_bytes=2_000_000)


@pytest.fixture(scope="module", params=["untrained", "trained"])
def model(request, text):
    torch.manual_seed(0)
    model = models.create("hope", "nano", **SHAPE)
    assert model.config.chunk_size == CHUNK
    if request.param == "trained":
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        for step in range(25):
            ids = batch(text.train, 0, step, 0, 8, 256)
            loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert loss.item() < 4.5
    return model.eval()


def norms(model, states):
    """Norm of every memory's weights and of its deviation over its initial state's norm, `(layers, B, M, H)`."""
    weights, shares = [], []
    for block, state in zip(model.model.layers, states, strict=True):
        initial = list(block.mixer.initial)
        current = [state["mixer"][f"current{i}"] for i in range(len(initial))]
        total = sum((w + d).square().sum((-1, -2)) for w, d in zip(initial, current, strict=True)).sqrt()
        start = sum(w.square().sum((-1, -2)) for w in initial).sqrt()
        weights.append(total)
        shares.append(sum(d.square().sum((-1, -2)) for d in current).sqrt() / start)
    return torch.stack(weights), torch.stack(shares)


@pytest.mark.parametrize("step", ["smallest", "as it is", "largest"])
def test_memories_stay_finite_within_bounds_and_move(model, text, step):
    kept = [block.mixer.gate_bias.detach().clone() for block in model.model.layers]
    with torch.no_grad():
        for block in model.model.layers:
            if step != "as it is":
                block.mixer.gate_bias[0] = -1e3 if step == "smallest" else 1e3
        try:
            x, cache, first = streams(model.model.embed_tokens.weight, text.train, LENGTH), None, None
            for start in range(0, LENGTH, PIECE):
                piece = x[:, start : start + (PIECE if start else CHUNK)]
                pieces = [piece] if start else [piece, x[:, CHUNK:PIECE]]
                for part in pieces:
                    output = model.model(inputs_embeds=part, cache=cache, use_cache=True)
                    cache = output.cache
                    assert output.last_hidden_state.isfinite().all()
                    weights, share = norms(model, cache.states)
                    first = weights if first is None else first
                    ratio = weights / first
                    for row, name in enumerate(STREAMS):
                        assert ratio[:, row].min() > 0.2, name
                        assert ratio[:, row].max() < 5, name
                        assert share[:, row].min() > 0.02, name
        finally:
            for block, bias in zip(model.model.layers, kept, strict=True):
                block.mixer.gate_bias.copy_(bias)


def test_updates_and_distant_tokens_matter_at_any_position(model, text):
    frozen = models.create("hope", "nano", **SHAPE, memory_rule="frozen", memory_hidden_rule="frozen").eval()
    frozen.load_state_dict(model.state_dict())
    ids = torch.from_numpy(text.train[:LENGTH].astype("int64"))[None]
    changed = ids.clone()
    places = [1024, 8192, LENGTH - 1]
    for place in places:
        changed[:, place - CHUNK] = (changed[:, place - CHUNK] + 1) % 256
    with torch.no_grad():
        logits = model(ids, logits_to_keep=torch.tensor(places)).logits[0]
        without = frozen(ids, logits_to_keep=torch.tensor(places)).logits[0]
        moved = model(changed, logits_to_keep=torch.tensor(places)).logits[0]
    scale = logits.std(-1)
    assert ((logits - without).abs().amax(-1) > 1e-2 * scale).all()
    assert ((logits - moved).abs().amax(-1) > 1e-4 * scale).all()
