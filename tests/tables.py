"""Who inherits which suite. Plain data, so that importing it costs nothing.

MODELS: model name -> fields that its tiny version needs besides TINY: chunks, segments and windows of a few tokens.
LONG: model name -> fields that replace these for streams of many thousand tokens, so that they take seconds: larger
    chunks, and one layer where it attends to all of them.
LOCAL: models that see nothing but a window of tokens.
UNBOUNDED: models that, as published, nothing holds back: AdaTransformer adds its writes up without end, SRWM grows
    to 1e13 and more where one token repeats for 16k tokens. Of them it is only asked that all numbers stay finite.
"""

TINY = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

MODELS: dict[str, dict] = {
    "adatransformer": {},
    "comba": {},
    "deltanet": {},
    "dla": {"chunk_size": 4},
    "gated-deltanet": {},
    "hope": {"chunk_size": 4, "projection_chunk_size": 8},
    "hope-attention": {
        "levels": [{"signal": "self", "chunk_size": 8, "rule": "dgd"}, {"signal": "self", "chunk_size": 4}]
    },
    "linear-attention": {},
    "lstm": {},
    "memora": {"chunk_size": 4},
    "moneta": {"chunk_size": 4},
    "ojanet": {},
    "retnet": {},
    "rwkv-7": {},
    "samba": {"sliding_window": 8, "state_size": 4},
    "sliding-window": {"sliding_window": 8},
    "srwm": {},
    "titans-lmm": {"chunk_size": 4},
    "titans-mac": {"chunk_size": 4, "segment_size": 8, "persistent_tokens": 2},
    "titans-mag": {"chunk_size": 4, "sliding_window": 8, "persistent_tokens": 2},
    "titans-mal": {"chunk_size": 4, "sliding_window": 8, "persistent_tokens": 2},
    "transformer++": {},
    "ttt-linear": {"chunk_size": 4},
    "ttt-mlp": {"chunk_size": 4},
    "yaad": {"chunk_size": 4},
}

LONG: dict[str, dict] = {
    "adatransformer": {"num_hidden_layers": 1},
    "dla": {"chunk_size": 64},
    "hope": {"chunk_size": 64, "projection_chunk_size": 64},
    "hope-attention": {
        "levels": [{"signal": "self", "chunk_size": 64, "rule": "dgd"}, {"signal": "self", "chunk_size": 32}],
        "num_hidden_layers": 1,
    },
    "memora": {"chunk_size": 32},
    "moneta": {"chunk_size": 32},
    "titans-lmm": {"chunk_size": 64},
    "titans-mac": {"chunk_size": 16, "segment_size": 64},
    "titans-mag": {"chunk_size": 16, "sliding_window": 64},
    "titans-mal": {"chunk_size": 16, "sliding_window": 64},
    "transformer++": {"num_hidden_layers": 1},
    "ttt-linear": {"chunk_size": 16},
    "ttt-mlp": {"chunk_size": 16},
    "yaad": {"chunk_size": 64},
}

LOCAL = ("sliding-window",)

UNBOUNDED = ("adatransformer", "srwm")
