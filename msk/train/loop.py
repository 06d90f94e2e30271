"""The training loop, as a generator of steps: whoever iterates owns the `for`, and may stop at any time."""
from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..kit import best_dtype


@dataclass(frozen=True)
class Step:
    """One update: the loss and whatever the loss function wished to report."""
    index: int
    loss: float
    logs: dict[str, float]
    progress: float             # share of the budget spent, 0 to 1


class Budget:
    """How long to train: a number of steps, or seconds of wall clock (time spent before a resume counts)."""

    def __init__(self, steps: int | None = None, seconds: float | None = None):
        if (steps is None) == (seconds is None):
            raise ValueError("give a budget in steps or in seconds, not both")
        self.steps, self.seconds, self.spent, self.done = steps, seconds, 0., 0

    @property
    def progress(self) -> float:
        return min(1., self.done / max(1, self.steps) if self.steps is not None else self.spent / max(1e-9, self.seconds))


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal (Newton-Schulz) before each step: about three times fewer steps than AdamW here.

    For weights of two or more axes, taken as [out, everything else]; torch's own (since 2.9) takes plain matrices only.
    The step is scaled to AdamW's size, so one learning rate serves both. Jordan et al. 2024; scale: 2502.16982.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                velocity = state.setdefault("velocity", torch.zeros_like(p))
                velocity.lerp_(p.grad, 1 - group["momentum"])
                step = orthogonal(p.grad.lerp(velocity, group["momentum"]).flatten(1))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(step.view(p.shape), alpha=-group["lr"] * 0.2 * max(step.shape) ** 0.5)


def orthogonal(x: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrix with all singular values about one, by a quintic Newton-Schulz iteration in bfloat16."""
    y = x.bfloat16() if x.device.type == "cuda" or best_dtype(x.device) == torch.bfloat16 else x
    y = y / (y.norm() + 1e-7)
    tall = y.shape[0] > y.shape[1]
    y = y.T if tall else y
    for _ in range(steps):
        gram = y @ y.T
        y = 3.4445 * y + (2.0315 * gram @ gram - 4.7750 * gram) @ y
    return (y.T if tall else y).to(x.dtype)


class Learner:
    """Parameters with their optimizers and their running average (EMA).

    Those for which `muon(name, parameter)` holds go to Muon, the others to AdamW.
    """

    def __init__(self, module: nn.Module, lr: float, *, betas=(0.9, 0.99), weight_decay: float = 0.01, clip: float = 1.0,
                 ema: float = 0.999, warmup: float = 0.02, decay_from: float = 0.5, floor: float = 0.05,
                 muon: Callable[[str, Tensor], bool] = lambda name, p: False, muon_lr: float | None = None):
        self.module, self.clip, self.ema_decay = module, clip, ema
        self.warmup, self.decay_from, self.floor = warmup, decay_from, floor
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        self.params = [p for _, p in named]
        turned, plain = [p for n, p in named if muon(n, p)], [p for n, p in named if not muon(n, p)]
        self.optimizers: list[torch.optim.Optimizer] = []
        if plain:
            self.optimizers.append(torch.optim.AdamW(plain, lr=lr, betas=betas, weight_decay=weight_decay, foreach=True))
        if turned:
            self.optimizers.append(Muon(turned, lr=muon_lr or lr, weight_decay=weight_decay))
        self.rates = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.average = [p.detach().clone() for p in self.params]
        self.updates = 0

    def restart(self) -> None:
        """The average begins anew from the parameters as they are."""
        self.average = [p.detach().clone() for p in self.params]

    def update(self, loss: Tensor, progress: float) -> float:
        """One step down `loss`; returns the norm of the gradient before clipping. A loss that is not finite is refused."""
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss.item()} at update {self.updates}: lower the learning rate, "
                                     f"or resume from the last checkpoint")
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.params, self.clip)
        if not torch.isfinite(norm):                                    # before any weight is touched: what is kept is good
            for p in self.params:
                p.grad = None
            raise FloatingPointError(f"the gradient became {norm.item()} at update {self.updates}: lower the learning rate, "
                                     f"or resume from the last checkpoint")
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * self.schedule(progress)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        decay = min(self.ema_decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.params], 1 - decay)
        return norm.item()

    def schedule(self, progress: float) -> float:
        """Linear warm-up, flat, then a cosine down to `floor`."""
        if progress < self.warmup:
            return max(progress / self.warmup, 0.02)
        down = max(0., progress - self.decay_from) / (1 - self.decay_from) if self.decay_from < 1 else 0.
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * down))

    def averaged(self) -> dict[str, Tensor]:
        """State dict of the module with the averaged parameters."""
        state = {n: t.detach().clone() for n, t in self.module.state_dict().items()}
        names = [n for n, p in self.module.named_parameters() if p.requires_grad]
        return state | {n: a.clone() for n, a in zip(names, self.average, strict=True)}

    def state_dict(self) -> dict:
        return {"module": self.module.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
                "average": self.average, "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        self.module.load_state_dict(state["module"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for mine, saved in zip(self.average, state["average"], strict=True):
            mine.copy_(saved)
        self.updates = state["updates"]


def atomic_save(data, path: Path) -> None:
    """torch.save that an interrupt cannot leave half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + f".{os.getpid()}.part")
    torch.save(data, part)
    os.replace(part, path)


class Checkpoint:
    """Where a stage stands on disk. `parts` have state_dict / load_state_dict."""

    def __init__(self, path: Path, budget: Budget, every: float = 60., **parts):
        self.path, self.budget, self.every, self.parts, self.last = Path(path), budget, every, parts, time.monotonic()

    def resume(self) -> bool:
        """Continue from the file if there is one; says whether it did."""
        if not self.path.exists():
            return False
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{self.path} cannot be read as a checkpoint ({error}): delete it to start this stage anew"
                             ) from error
        try:
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"{self.path} was begun with other settings ({error}): go on with the same --preset and "
                             "--init, or delete it to start this stage anew") from error
        self.budget.done, self.budget.spent = saved["done"], saved["spent"]
        torch.set_rng_state(saved["rng"])
        for i, state in enumerate(saved.get("gpu_rng", [])[:torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, i)
        return True

    def save(self) -> None:
        atomic_save({name: part.state_dict() for name, part in self.parts.items()}
                    | {"done": self.budget.done, "spent": self.budget.spent, "rng": torch.get_rng_state(),
                       "gpu_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []}, self.path)
        self.last = time.monotonic()

    def maybe_save(self) -> None:
        if time.monotonic() - self.last > self.every:
            self.save()


def autocast(device: torch.device | str):
    """bf16 autocast where the device computes in it faster, else nothing."""
    device = torch.device(device)
    dtype = best_dtype(device)
    return torch.autocast(device.type, dtype) if dtype == torch.bfloat16 else nullcontext()


def train(learner: Learner, loss_of: Callable[[object], tuple[Tensor, dict]], batches: Iterator, budget: Budget,
          checkpoint: Checkpoint | None = None) -> Iterator[Step]:
    """Update until the budget is spent. `loss_of(batch)` returns (loss, logs).

    The checkpoint is written now and then, at the end, and when the caller stops early or presses Ctrl-C.
    """
    device, last = learner.params[0].device, time.monotonic()
    try:
        while budget.progress < 1:
            batch = next(batches)
            with autocast(device):
                loss, logs = loss_of(batch)
            norm = learner.update(loss, budget.progress)
            budget.done += 1
            now = time.monotonic()
            budget.spent, last = budget.spent + now - last, now
            yield Step(budget.done, loss.item(), logs | {"norm": norm}, budget.progress)
            if checkpoint is not None:
                checkpoint.maybe_save()
    finally:
        if checkpoint is not None:
            checkpoint.save()
