"""Who inherits which suite. Plain data, so that importing it costs nothing.

MODELS: model name -> fields that its tiny version needs besides TINY.
"""

TINY = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

MODELS: dict[str, dict] = {
    "comba": {},
    "deltanet": {},
    "gated-deltanet": {},
    "hope": {"chunk_size": 4, "projection_chunk_size": 8},
    "hope-attention": {
        "levels": [{"signal": "self", "chunk_size": 8, "rule": "dgd"}, {"signal": "self", "chunk_size": 4}]
    },
    "linear-attention": {},
    "ojanet": {},
    "retnet": {},
    "rwkv-7": {},
    "transformer++": {},
}
