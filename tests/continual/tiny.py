"""Tiny language models with random weights, one of every family; nothing is downloaded."""

from functools import cache

import torch

LLAMAS = ("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma", "gemma2", "gemma3")
TRANSFORMERS = (*LLAMAS, "phi", "gpt2", "opt", "gpt-neox")
OURS = ("transformer++", "hope", "hope-attention", "rwkv-7")
NAMES = (*TRANSFORMERS, *OURS)

_SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
_SHORT = {"max_position_embeddings": 256}
_TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_OWN = {
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 256},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 16},
    "mistral": {"num_key_value_heads": 1, "head_dim": 16},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"num_key_value_heads": 1},
    "gemma": {"num_key_value_heads": 1, "head_dim": 16},
    "gemma2": {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 16},
    "gemma3": {
        "num_key_value_heads": 1,
        "head_dim": 16,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
    "hope": {"chunk_size": 4, "projection_chunk_size": 8},
    "hope-attention": {"levels": [{}, {"form": "plain"}]},
}


@cache
def _classes(name: str):
    """Configuration and model class: importing transformers' lazily keeps the others' modules out."""
    import transformers

    stem = {"gpt2": "GPT2", "opt": "OPT", "gpt-neox": "GPTNeoX"}.get(name, name.capitalize())
    text = "TextConfig" if name == "gemma3" else "Config"
    head = "LMHeadModel" if name == "gpt2" else "ForCausalLM"
    return getattr(transformers, stem + text), getattr(transformers, stem + head)


def tiny(name: str, vocab_size: int = 61, seed: int = 0, **fields):
    """Model `name` with weights of this seed, large enough that every part matters, in evaluation mode."""
    torch.manual_seed(seed)
    fields = {"vocab_size": vocab_size, "initializer_range": 0.1} | _OWN.get(name, {}) | fields
    if name in OURS:
        import nestling.models

        return nestling.models.create(name, **_SHAPE | fields).eval()
    config, model = _classes(name)
    shape = {} if name == "gpt2" else _SHAPE | _SHORT
    return model(config(**shape | _TOKENS | fields)).eval()


def tokens(batch: int, length: int, vocab_size: int = 61, seed: int = 1) -> torch.Tensor:
    """Random tokens (batch, length), never 0."""
    return torch.randint(1, vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))
