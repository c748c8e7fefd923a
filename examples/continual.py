"""A model that keeps learning: it reads, writes, comes back to what it was, and is saved. Under a minute on a CPU."""

import argparse
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

from transformers import LlamaConfig, LlamaForCausalLM

import nestling
from nestling.train.config import TrainConfig
from nestling.train.loop import train

home = Path(tempfile.mkdtemp())
small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
known = TrainConfig(model="transformer++", fields=small, data=argparse.__file__, steps=100, sequence_length=128)
train(known, home / "run")  # it knows some Python beforehand
model, tokenizer = nestling.models.load_any(home / "run")

english = "\n".join(topics.values())
new, later = english[:16_000], english[16_000:20_000]
levels = [nestling.Level("fast", every=128), nestling.Level("slow", every=1024, absorb=0.5)]
learner = nestling.Learner(model, tokenizer, levels)
before, mark = learner.score(later).bits_per_byte, learner.snapshot()
print(f"English before any was read: {before:.3f} bits per byte")

reading = learner.read(new)  # any cut into calls gives the same
print(f"Read {reading.tokens:,} tokens, updates {reading.updates}, {reading.pending} tokens wait")
print(f"English that follows: {learner.score(later).bits_per_byte:.3f} bits per byte")
print(f"It writes: {learner.generate('The ', 60, seed=0)!r}")
for level in learner.report():
    print(f"{level['name']}: {level['updates']} updates, {level['distance']:.1%} away, next at {level['next_due']:,}")

learner.save(home / "memory")
learner.rollback(mark)  # bit for bit
print(f"Rolled back: {learner.score(later).bits_per_byte:.3f} bits per byte")
learner = nestling.Learner.load(home / "memory", model, tokenizer)
print(f"Loaded: {learner.score(later).bits_per_byte:.3f} bits per byte at token {learner.position:,}")

# Any causal language model of transformers does; AutoModelForCausalLM.from_pretrained gives a trained one.
llama = LlamaForCausalLM(LlamaConfig(vocab_size=256, bos_token_id=0, eos_token_id=0, **small))
stacked = nestling.stack_levels(llama, levels, tokenizer=tokenizer, where="shared")
print(f"Llama: {stacked.read(new[:4000]).bits_per_byte:.3f} bits per byte while reading")
