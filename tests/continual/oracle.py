"""The definition of a learner as one plain loop, for one stream: deviations, textbook rules, consolidation.

Nothing of the package but the model itself and, for delta momentum, Muon and M3, the optimizers.
"""

import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from nestling import optim


class Gradient:
    """Gradient descent, with momentum m if there is one: u <- m u + g, D <- D - lr u."""

    def __init__(self, lr, momentum=0.0):
        self.lr, self.momentum, self.u = lr, momentum, {}

    def step(self, name, factor, g, gram):
        self.u[name] = self.momentum * self.u.get(name, 0) + g
        return factor - self.lr * self.u[name]


class AdamW:
    """m <- b m + (1 - b) g, v <- c v + (1 - c) g^2, D <- D - lr m' / (sqrt(v') + eps), without the start's bias."""

    def __init__(self, lr, b=0.9, c=0.95, eps=1e-8):
        self.lr, self.b, self.c, self.eps, self.m, self.v, self.t = lr, b, c, eps, {}, {}, {}

    def step(self, name, factor, g, gram):
        t = self.t[name] = self.t.get(name, 0) + 1
        m = self.m[name] = self.b * self.m.get(name, 0) + (1 - self.b) * g
        v = self.v[name] = self.c * self.v.get(name, 0) + (1 - self.c) * g**2
        return factor - self.lr * (m / (1 - self.b**t)) / ((v / (1 - self.c**t)).sqrt() + self.eps)


class DeltaGradient:
    """D <- D - lr g (I + lr X^T X / n)^-1, or with D damped too ("surprise")."""

    def __init__(self, lr, value="corrected"):
        self.lr, self.value = lr, value

    def step(self, name, factor, g, gram):
        damped = torch.linalg.inv(torch.eye(len(gram), dtype=gram.dtype) + self.lr * gram)
        if self.value == "surprise":
            return (factor - self.lr * g) @ damped
        return factor - self.lr * g @ damped


class Other:
    """An optimizer of the package, on the same gradients."""

    def __init__(self, kind, lr, **options):
        self.kind, self.options, self.own = kind, options | {"lr": lr, "weight_decay": 0.0}, {}

    def step(self, name, factor, g, gram):
        if name not in self.own:
            parameter = factor.clone().requires_grad_()
            self.own[name] = parameter, self.kind([parameter], **self.options)
        parameter, optimizer = self.own[name]
        parameter.data.copy_(factor)
        parameter.grad = g.clone()
        optimizer.step()
        return parameter.detach().clone()


def _rule(level):
    known = {
        "gd": lambda lr: Gradient(lr),
        "momentum": lambda lr: Gradient(lr, 0.9),
        "adamw": AdamW,
        "dgd": DeltaGradient,
        "delta": lambda lr, **o: Other(optim.DeltaMomentum, lr, **o),
        "muon": lambda lr, **o: Other(optim.Muon, lr, **o),
        "m3": lambda lr, **o: Other(optim.M3, lr, **o),
    }
    return known[level.rule](level.lr, **level.options)


class Oracle:
    """`run` reads ids; afterwards `factors[level][layer]` are [D], or [B, A], all (out, in), (out, r), (r, in).

    Args:
        layers: by level, the names of its layers, and whether their weights are (in, out).
        factors: where they begin.
        size: what a growing cache may hold; None: it goes on forever.
    """

    def __init__(self, model, levels, layers, factors, size):
        self.model, self.levels, self.layers, self.factors, self.size = model, levels, layers, factors, size
        self.rules = {level.name: _rule(level) for level in levels}
        self.turned = {name: turned for own in layers.values() for name, turned in own.items()}
        self.initial = {name: model.get_submodule(name).weight.detach() for name in self.turned}
        self.sums = {level.name: {} for level in levels}
        self.grams = {level.name: {} for level in levels}
        self.tokens = dict.fromkeys(self.sums, 0)
        self.position, self.losses = 0, []

    def whole(self, level, name):
        first, *second = self.factors[level][name]
        return first @ second[0] if second else first

    def weights(self):
        found = {}
        for name, initial in self.initial.items():
            total = sum(self.whole(level, name) for level in self.factors if name in self.factors[level])
            found[name] = initial + (total.T if self.turned[name] else total)
        return {f"{name}.weight": weight for name, weight in found.items()}

    def forward(self, inputs, cache):
        seen, handles = {}, []
        for name in self.turned:
            module = self.model.get_submodule(name)
            handles.append(module.register_forward_hook(lambda m, a, o, name=name: seen.update({name: a[0].detach()})))
        out = functional_call(
            self.model, self.weights(), (), {"input_ids": inputs[None], "cache": cache, "use_cache": True}
        )
        for handle in handles:
            handle.remove()
        return out.logits[0], out.cache, {name: x.flatten(0, -2).T @ x.flatten(0, -2) for name, x in seen.items()}

    def run(self, ids):
        segment = min(level.every for level in self.levels)
        last, cache, seen, recent = None, None, 0, torch.empty(0, dtype=torch.int64)
        for part in ids[: len(ids) // segment * segment].split(segment):
            known = part if last is None else torch.cat((last, part))
            inputs, targets, last = known[:-1], known[1:], part[-1:]
            if self.size is not None and seen + len(inputs) > self.size:
                cache, seen = None, 0
                if len(recent) + len(inputs) <= self.size:
                    with torch.no_grad():
                        cache, seen = self.forward(recent, None)[1], len(recent)
            flat = [f for own in self.factors.values() for both in own.values() for f in both]
            for factor in flat:
                factor.requires_grad_()
            logits, cache, grams = self.forward(inputs, cache)
            loss = cross_entropy(logits, targets, reduction="sum")
            gradients = iter(torch.autograd.grad(loss, flat))
            for factor in flat:
                factor.requires_grad_(False)
            cache = _detached(cache)
            seen, recent = seen + len(inputs), torch.cat((recent, inputs))[-segment:]
            self.losses.append(loss.item())
            for level, own in self.factors.items():
                for name, both in own.items():
                    for i in range(len(both)):
                        self.sums[level][name, i] = self.sums[level].get((name, i), 0) + next(gradients)
                    self.grams[level][name] = self.grams[level].get(name, 0) + grams[name]
                self.tokens[level] += len(targets)
            self.position += len(part)
            self.update()

    def update(self):
        due = [level for level in self.levels if self.position % level.every == 0]
        for level in due:
            self.step(level)
        for fast, slow in reversed(list(zip(self.levels[1:], self.levels[:-1], strict=True))):
            if slow in due:
                for name in self.factors[slow.name]:
                    if slow.absorb and name in self.factors[fast.name]:
                        self.factors[slow.name][name][0] += slow.absorb * self.whole(fast.name, name)
                        self.factors[fast.name][name][0] *= 1 - slow.absorb
                if slow.absorb:
                    self.hold(slow)
                for both in self.factors[fast.name].values():
                    both[0] *= 1 - fast.restart

    def step(self, level):
        n, own = self.tokens[level.name], self.factors[level.name]
        mean = {key: total / n for key, total in self.sums[level.name].items()}
        norm = sum((g**2).sum() for g in mean.values()) ** 0.5
        scale = min(1.0, level.clip / norm) if level.clip else 1.0
        for (name, i), g in mean.items():
            gram = self.grams[level.name][name] / n
            own[name][i] = self.rules[level.name].step((name, i), own[name][i], g * scale, gram)
        for both in own.values():
            both[0] *= level.retention
        self.hold(level)
        self.sums[level.name], self.grams[level.name], self.tokens[level.name] = {}, {}, 0

    def hold(self, level):
        for name, both in self.factors[level.name].items() if level.limit else ():
            radius, size = level.limit * self.initial[name].norm(), self.whole(level.name, name).norm()
            both[0] *= min(1.0, radius / size)


def _detached(cache):
    """The cache without a history of gradients, whichever kind it is."""
    if hasattr(cache, "detach"):
        return cache.detach()
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
    return cache
