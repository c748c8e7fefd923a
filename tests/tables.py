"""Who inherits which suite. Plain data, so that importing it costs nothing.

MODELS: model name -> fields that its tiny version needs besides TINY.
"""

TINY = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

MODELS: dict[str, dict] = {
    "deltanet": {},
    "gated-deltanet": {},
    "dla": {"chunk_size": 4},
    "hope": {"chunk_size": 4, "projection_chunk_size": 8},
    "hope-attention": {
        "levels": [{"signal": "self", "chunk_size": 8, "rule": "dgd"}, {"signal": "self", "chunk_size": 4}]
    },
    "linear-attention": {},
    "retnet": {},
    "rwkv-7": {},
    "memora": {"chunk_size": 4},
    "moneta": {"chunk_size": 4},
    "titans-lmm": {"chunk_size": 4},
    "samba": {"sliding_window": 8, "state_size": 4},
    "sliding-window": {"sliding_window": 8},
    "transformer++": {},
    "yaad": {"chunk_size": 4},
    "ttt-linear": {"chunk_size": 4},
    "ttt-mlp": {"chunk_size": 4},
}
