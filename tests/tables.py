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

_CONSOLIDATING = [
    {"name": "slow", "every": 16, "absorb": 0.5, "retention": 0.9},
    {"name": "middle", "every": 8, "absorb": 0.25, "restart": 0.5, "rule": "momentum", "lr": 0.1},
    {"name": "fast", "every": 4, "restart": 1.0, "retention": 0.8, "limit": 0.02, "lr": 0.01},
]
_DISJOINT = [{"name": f"block {i}", "every": 4 << i, "where": (i,), "rule": "gd", "lr": 0.3} for i in range(2)]
_PAIR = [{"name": "slow", "every": 8}, {"name": "fast", "every": 4, "rule": "gd", "lr": 0.1}]

LEARNERS: dict[str, dict] = {
    "frozen": {"levels": [], "context": 8},
    "one": {"levels": [{"name": "only", "every": 5, "clip": 0.05}]},
    "three": {"levels": _CONSOLIDATING},
    "disjoint": {"levels": _DISJOINT},
    "low-rank": {"levels": [_PAIR[0] | {"absorb": 1.0}, _PAIR[1] | {"rank": 2, "retention": 0.9, "limit": 0.05}]},
    "momentum": {"levels": [_PAIR[0] | {"rule": "momentum"}]},
    "delta": {"levels": [_PAIR[0] | {"rule": "delta"}]},
    "muon": {"levels": [_PAIR[0] | {"rule": "muon", "lr": 0.01}]},
    "m3": {"levels": [{"name": "m3", "every": 4, "rule": "m3", "lr": 0.01, "options": {"frequency": 2}}]},
    "dgd": {"levels": [_PAIR[0] | {"rule": "dgd", "lr": 0.5}, _PAIR[1]]},
    "surprise": {"levels": [_PAIR[1] | {"rule": "dgd", "options": {"value": "surprise"}}]},
    "replay": {"levels": _PAIR, "replay": {"segments": 3, "share": 1.5}},
    "protect": {"levels": _PAIR, "protect": 100.0},
    "mixture": {"levels": _PAIR, "recall": "mixture"},
    "context": {"levels": _PAIR, "context": 11},
    "bfloat16": {"levels": _PAIR, "dtype": "bfloat16"},
    "hope": {"model": "hope", "levels": _CONSOLIDATING},
    "hope-attention": {"model": "hope-attention", "levels": _PAIR},
    "llama": {"model": "llama", "levels": _CONSOLIDATING},
    "gpt2": {"model": "gpt2", "levels": _CONSOLIDATING},
    "gpt2-dgd": {"model": "gpt2", "levels": [_PAIR[0] | {"rule": "dgd"}, _PAIR[1] | {"rank": 2}]},
    "gemma3": {"model": "gemma3", "levels": _PAIR, "context": 40},
    "qwen3": {
        "model": "qwen3",
        "fields": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        "levels": _PAIR,
    },
}
"""Learner -> model (transformer++ if nothing is said) and its fields, levels, and what else it is made of."""
