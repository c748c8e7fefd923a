"""The one language model: embedding, blocks of a token mixer and a channel mixer, final norm, head.

A block is h = x + mixer(norm(x)); y = h + channel(norm(h)) (Nested Learning, Sec. 8.3). What the mixers are, the
configuration says; what else a token mixer may hand on, layers/residual.py says (`Handed`).
Letters: B batch, T new tokens, D model width, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from nestling.errors import InputError
from nestling.layers.norm import RMSNorm
from nestling.layers.residual import Handed, Output
from nestling.models.cache import MemoryCache, State
from nestling.models.config import NestlingConfig
from nestling.models.padding import predictable, read


class Block(GradientCheckpointingLayer):
    """One block. Its state is {"mixer": ..., "channel": ...}; its mixer may hand more on, see `Handed`."""

    def __init__(self, config: NestlingConfig, layer: int):
        super().__init__()
        self.mixer_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mixer = config.mixer(layer)
        self.channel_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.channel = config.channel(layer)
        self.segment = config.checkpoint_tokens

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        lengths: Tensor | None = None,
        keep: bool = False,
        first: Tensor | None = None,
    ) -> tuple[Tensor, State | None, Tensor | None]:
        """x (B, T, D) -> (B, T, D), as every mixer; `first` is what the first block handed on, the third result."""
        if not self.segment or x.shape[1] <= self.segment or not torch.is_grad_enabled():
            return self._advance(x, state, lengths, keep, first)
        outputs, handed, parts = [], [], x.split(self.segment, 1)
        firsts = [None] * len(parts) if first is None else first.split(self.segment, 1)
        for i, (part, given) in enumerate(zip(parts, firsts, strict=True)):
            real = None if lengths is None else (lengths - i * self.segment).clamp(0, part.shape[1])
            kept = keep or i + 1 < len(parts)
            y, state, rows = checkpoint(self._advance, part, state, real, kept, given, use_reentrant=False)  # pyright: ignore[reportGeneralTypeIssues]
            outputs.append(y)
            handed.append(rows)
        return torch.cat(outputs, 1), state, None if handed[0] is None else torch.cat(handed, 1)

    def _advance(
        self, x: Tensor, state: State | None, lengths: Tensor | None, keep: bool, first: Tensor | None
    ) -> tuple[Tensor, State | None, Tensor | None]:
        before, given = state or {}, () if first is None else (first,)
        mixed, mixer, *more = self.mixer(self.mixer_norm(x), before.get("mixer"), lengths, keep, *given)
        handed = more[0] if more else Handed()
        x = x + mixed
        changed, channel = self.channel(self.channel_norm(x), before.get("channel"), lengths, keep, *handed.channel)
        return x + changed, {"mixer": mixer, "channel": channel} if keep else None, handed.later


class NestlingPreTrainedModel(PreTrainedModel):
    """What transformers needs to know, and how weights start."""

    config: NestlingConfig
    config_class = NestlingConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["cache"]  # noqa: RUF012
    _supports_sdpa = True
    _is_stateful = True

    def _init_weights(self, module: nn.Module) -> None:
        """Start one module; transformers comes here for children before their parents.

        A module with special values sets them in `reset_parameters`, which isn't called when all its parameters were
        loaded. As parents come last, a mixer's own `reset_parameters` also has the say over its children.
        """
        # Held down where the model is wide, so that its first predictions stay near the uniform ones.
        deviation = min(self.config.initializer_range, (2 / (5 * self.config.hidden_size)) ** 0.5)
        if isinstance(module, Output):
            nn.init.normal_(module.weight, std=deviation * (2 * self.config.num_hidden_layers) ** -0.5)
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=deviation)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif hasattr(module, "reset_parameters") and not _loaded(module):
            module.reset_parameters()  # pyright: ignore[reportCallIssue]

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For code outside its own tree transformers passes over modules without direct parameters, mixers among them.
        super()._initialize_weights(module, is_custom_code=False)


def _loaded(module: nn.Module) -> bool:
    """Whether every parameter came from a file."""
    return all(getattr(parameter, "_is_hf_initialized", False) for parameter in module.parameters())


def _given(cache: MemoryCache | None, past_key_values: MemoryCache | None) -> MemoryCache | None:
    """The cache under whichever of its two names."""
    if cache is not None and past_key_values is not None:
        raise InputError("cache and past_key_values are two names of one thing: give only cache.")
    return past_key_values if cache is None else cache


class NestlingModel(NestlingPreTrainedModel):
    """Embedding, blocks, final norm."""

    def __init__(self, config: NestlingConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.fingerprint = config.fingerprint()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: MemoryCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        past_key_values: MemoryCache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states (B, T, D) of input_ids (B, T) or inputs_embeds (B, T, D); see NestlingForCausalLM.forward."""
        x = self._embedded(input_ids, inputs_embeds)
        past = _given(cache, past_key_values)
        past = MemoryCache() if past is None else past
        self._check(past, x.shape[0], use_cache)
        padding = read(attention_mask, past.seen, *x.shape[:2])
        seen = past.seen + x.shape[1]
        x, lengths = (padding.roll(x), padding.lengths) if padding else (x, None)
        states, hidden, first = [], [], None
        for block, before in zip(self.layers, past.states or [None] * len(self.layers), strict=True):
            if output_hidden_states:
                hidden.append(x)
            x, state, handed = block(x, before, lengths, bool(use_cache), first)
            first = handed if first is None else first
            states.append(state)
        hidden.append(self.norm(x))
        if padding:
            hidden = [padding.unroll(y) for y in hidden]
        return BaseModelOutputWithPast(
            last_hidden_state=hidden[-1],
            cache=MemoryCache(states, seen, self.fingerprint) if use_cache else None,
            hidden_states=tuple(hidden) if output_hidden_states else None,
        )

    def _embedded(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("input_ids or inputs_embeds is needed, and only one of the two: give exactly one.")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if x.dim() != 3 or x.shape[1] == 0:
            raise InputError(
                f"the input has shape {tuple(x.shape[:2])}, but needs a batch of at least one token a row."
            )
        return x

    def _check(self, past: MemoryCache, batch: int, use_cache: bool | None) -> None:
        if not isinstance(past, MemoryCache):
            raise InputError(f"cache is a {type(past).__name__}, but must be what an earlier call returned.")
        if past.states is not None and past.model != self.fingerprint:
            raise InputError(
                f"cache comes from the model {past.model}, not from this one, {self.fingerprint}: use a "
                "state of the same model and sizes."
            )
        if past.states is not None and past.batch_size not in (batch, -1):
            raise InputError(f"cache holds {past.batch_size} sequences, but the input {batch}: make them equal.")
        first = self.layers[0]
        reentrant = getattr(getattr(first, "_gradient_checkpointing_func", None), "keywords", {}).get("use_reentrant")
        if self.training and first.gradient_checkpointing and reentrant and (use_cache or past.states is not None):
            raise InputError("a carried state gets no gradient through use_reentrant=True: set use_reentrant=False.")


class NestlingForCausalLM(NestlingPreTrainedModel, GenerationMixin):
    """The language model: NestlingModel and a head, by default tied to the embedding."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    base_class: type[NestlingModel] = NestlingModel

    def __init__(self, config: NestlingConfig):
        super().__init__(config)
        self.model = self.base_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: MemoryCache | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: MemoryCache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V), and the loss where labels are given.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), or (B, seen + T) with a cache, of which the last T columns count; 0 is padding, on
                the left or on the right of a row's real tokens. Padding writes nothing, and its logits mean nothing.
            cache: what an earlier call returned as `.cache`, left as it was.
            labels: (B, T), equal to input_ids and shifted here; -100 is left out, and so is what padding would have to
                predict (a row's first real token behind padding on the left). The loss is in nats a token.
            inputs_embeds: (B, T, D) in place of input_ids.
            use_cache: return a cache; None: as the configuration says, but not in training or with labels.
            logits_to_keep: only the last so many positions, or these positions; 0: all.
            past_key_values: the older name of `cache`.
            kwargs: `num_items_in_batch` for the loss, `output_hidden_states`.

        Raises:
            InputError: a mask, cache or input that doesn't fit.
        """
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and labels is None
        cache = _given(cache, past_key_values)
        outputs = self.model(input_ids, attention_mask, cache, inputs_embeds, use_cache, **kwargs)
        positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, positions])
        loss = None
        if labels is not None:
            labels = predictable(labels, attention_mask)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
        )

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args) -> None:
        """Let generate() start from an empty MemoryCache, whatever the class is called."""
        if generation_config.cache_implementation is not None:
            raise InputError(
                f"cache_implementation='{generation_config.cache_implementation}' is not possible, because the cache "
                "is the state of the memories: leave it out."
            )
        if generation_config.use_cache and model_kwargs.get("cache") is None:
            model_kwargs["cache"] = MemoryCache()
