"""The outer loop of few-shot learning: steps, validations, early stopping, and a state that can be saved exactly."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from pybilevel.data.cache import DataError
from pybilevel.data.episodes import Episodes, EpisodeSampler, EpisodeShape, EpisodeTable
from pybilevel.experiments.checkpoint import Checkpoint, copy_into
from pybilevel.experiments.evaluation import VALIDATION_SEED, Accuracy, evaluate
from pybilevel.experiments.meta_learner import MetaLearner, correct
from pybilevel.experiments.settings import FewShotSettings
from pybilevel.experiments.workers import Workers

# Loss and accuracy are read from the device once in so many iterations.
WINDOW = 10


@dataclass
class Progress:
    """What a training run has been through; plain values, saved with every checkpoint."""

    iteration: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    best_loss: float = math.inf
    best_iteration: int = 0
    stale: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    validations: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Adam on the encoder and the inner step size, over meta-batches of episodes.

    The learning rate is lr / (1 + lr_decay * iteration). A running average of the weights follows them; it is what is
    validated, and the best validated one is kept. `checkpoint` and `restore` carry everything: after a restore the
    run goes on bitwise as if it had never stopped.
    """

    def __init__(
        self, settings: FewShotSettings, train: EpisodeTable, validation: EpisodeTable, source: str = ""
    ) -> None:
        self.settings = settings
        self.source = source
        self.progress = Progress()
        torch.manual_seed(settings.seed)
        self.learner = new_learner(settings)
        self.average = copy.deepcopy(self.learner)
        self.best = copy.deepcopy(self.learner)
        self.workers = Workers(_worker_count(settings))
        self.optimizer = torch.optim.Adam(self.learner.parameters(), lr=settings.lr)
        ways = settings.train_ways or settings.ways
        shape = EpisodeShape(ways, settings.shots, settings.train_queries)
        self._sampler = EpisodeSampler(train.classes, train.drawings, shape, settings.seed)
        self._train = train
        self._validation = validation
        self._window = torch.zeros(2, dtype=torch.float64, device=settings.device)

    def run(self, after: Callable[[], bool]) -> str:
        """Train until a budget is spent or validation stops improving; `after` is called after every iteration.

        Returns why it ended; "interrupted" if `after` returned True.
        """
        while (reason := self._spent()) is None:
            start = time.perf_counter()
            self._step()
            if self.progress.iteration % self.settings.validate_every == 0:
                self._validate()
            self.progress.seconds += time.perf_counter() - start
            if after():
                return "interrupted"
        if self.progress.iteration % self.settings.validate_every:
            self._validate()
        return reason

    def fraction(self) -> float:
        """How much of the budget is spent, 0 to 1."""
        settings, progress = self.settings, self.progress
        spent = max(
            progress.seconds / settings.budget_seconds, progress.iteration / settings.budget_iterations
        )
        return min(1.0, spent)

    def checkpoint(self) -> Checkpoint:
        """Everything needed to go on."""
        tensors = {"window": self._window}
        for name, module in self._modules().items():
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        tensors |= self._moments()
        state = {
            "settings": self.settings.to_json(),
            "source": self.source,
            "progress": asdict(self.progress),
            "sampler": self._sampler.state(),
        }
        return Checkpoint(tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of a run with the same settings.

        Errors: DataError where the checkpoint is of other data, or does not fit.
        """
        source = checkpoint.state["source"]
        if source != self.source:
            raise DataError(
                f"the run was trained on {source}, but the data now are {self.source}; give it the same."
            )
        targets = {"window": self._window}
        for name, module in self._modules().items():
            targets |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        if any(name.startswith("adam.") for name in checkpoint.tensors):
            self._allocate_moments()
        copy_into(targets | self._moments(), checkpoint.tensors)
        self.progress = Progress(**checkpoint.state["progress"])
        self._sampler.restore(checkpoint.state["sampler"])

    def _step(self) -> None:
        settings, progress = self.settings, self.progress
        batch = self._train.gather(self._sampler.indices(settings.meta_batch))
        parts = self.workers.map(self._gradients, batch.chunks(self.workers.count))
        totals, *gradients = (sum(terms[1:], terms[0]) for terms in zip(*parts, strict=True))
        for parameter, gradient in zip(self.learner.parameters(), gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), settings.clip)
        self.optimizer.param_groups[0]["lr"] = settings.lr / (1 + settings.lr_decay * progress.iteration)
        self.optimizer.step()
        progress.iteration += 1
        self._follow()
        self._window += totals
        if progress.iteration % WINDOW == 0:
            self._record()

    def _gradients(self, part: Episodes) -> tuple[Tensor, ...]:
        """The share of some episodes in the meta-batch's mean loss and accuracy [2], and in its gradients."""
        loss, logits = self.learner(part)
        share = loss.sum() / self.settings.meta_batch
        right = correct(logits.detach(), part.query_y).sum() / self.settings.meta_batch
        gradients = torch.autograd.grad(share, list(self.learner.parameters()))
        return torch.stack([share.detach(), right]), *gradients

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the running average towards the weights; quickly at first."""
        seen = self.progress.iteration
        decay = min(self.settings.averaging, (1 + seen) / (10 + seen))
        average, weights = (list(module.state_dict().values()) for module in (self.average, self.learner))
        torch._foreach_lerp_(average, weights, 1 - decay)

    def _record(self) -> None:
        """Put the means of the last window on the learning curve: the one host synchronisation."""
        loss, accuracy, step = torch.cat(
            [self._window / WINDOW, self.learner.inner_lr.detach().double()[None]]
        ).tolist()
        self._window.zero_()
        progress = self.progress
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the outer loss is {loss} at iteration {progress.iteration}; "
                "lower --lr or --inner-lr, and start again."
            )
        progress.curve.append(
            {
                "iteration": progress.iteration,
                "seconds": progress.seconds,
                "loss": loss,
                "accuracy": accuracy,
                "step": step,
            }
        )

    def _validate(self) -> None:
        settings, progress = self.settings, self.progress
        shape = EpisodeShape(settings.ways, settings.shots, settings.queries)
        count = settings.validation_episodes
        result = evaluate(
            self.average, self._validation, shape, episodes=count, seed=VALIDATION_SEED, workers=self.workers
        )
        progress.validations.append(
            {
                "iteration": progress.iteration,
                "accuracy": result.mean,
                "interval": result.interval,
                "loss": result.loss,
            }
        )
        if self._better(result):
            progress.best, progress.best_loss, progress.best_iteration = (
                result.mean,
                result.loss,
                progress.iteration,
            )
            progress.stale = 0
            self.best.load_state_dict(self.average.state_dict())
        else:
            progress.stale += 1

    def _better(self, result: Accuracy) -> bool:
        """More accurate, or as accurate with a lower loss."""
        return (result.mean, -result.loss) > (self.progress.best, -self.progress.best_loss)

    def _spent(self) -> str | None:
        settings, progress = self.settings, self.progress
        if progress.iteration >= settings.budget_iterations:
            return "all episodes seen"
        if progress.seconds >= settings.budget_seconds:
            return "time spent"
        if settings.patience and progress.stale >= settings.patience:
            return f"no better validation in {progress.stale}"
        return None

    def _modules(self) -> dict[str, MetaLearner]:
        return {"learner": self.learner, "average": self.average, "best": self.best}

    def _moments(self) -> dict[str, Tensor]:
        """Adam's state by name; empty before the first step."""
        moments = {}
        for name, parameter in self.learner.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                moments[f"adam.{key}.{name}"] = value
        return moments

    def _allocate_moments(self) -> None:
        """Give Adam the state it has after a first step, to copy into."""
        for parameter in self.learner.parameters():
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


def new_learner(settings: FewShotSettings) -> MetaLearner:
    """A meta-learner with fresh weights, as the settings say."""
    learner = MetaLearner(
        steps=settings.steps,
        filters=settings.filters,
        inner_lr=settings.inner_lr,
        batch_norm=settings.batch_norm,
        precision=settings.precision,
    )
    return learner.to(settings.device)


def _worker_count(settings: FewShotSettings) -> int:
    """A thread a core on the CPU where episodes are independent; one where they share statistics or a GPU."""
    if settings.batch_norm != "episode" or torch.device(settings.device).type != "cpu":
        return 1
    return min(settings.meta_batch, settings.threads or torch.get_num_threads())
