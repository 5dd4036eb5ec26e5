"""The training task of a recovery: a merged model learns to do what the plain one does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from patchmerger.acceleration.rear_half import RearHalf
from patchmerger.acceleration.settings import RecoverySettings
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.hosts import find_host
from patchmerger.mechanism.blocks import is_merging
from patchmerger.mechanism.modes import eval_mode
from patchmerger.models.classifier import Classifier, divergence, feature_error
from patchmerger.reducers.names import METHODS, method_of
from patchmerger.training.optimizer import parameter_groups, timm_optimizer
from patchmerger.training.settings import Precision
from patchmerger.training.task import TrainingTask, score


class DistillationTask(TrainingTask):
    """Trains a merged model to do what the plain one does.

    ``loss = w_t T² KL(teacher ‖ student) + w_f ‖f_s − f_t‖² / variance of f_t + w_l (cross-entropy with the labels)``,
    where f are the pooled features before the last layer. The mergers learn first and at a higher rate, then all. With
    ``recovery.mixup`` both models see mixtures of two images, and the last term weighs the labels of both.

    timm's ``LogitDistillationTask`` has the same first and last term; it needs a label for every image and a
    ``pretrained_cfg``, and so takes neither unlabelled images nor models of other libraries.

    The teacher is not changed, and is no part of the task's state. Without ``labels`` accuracy is agreement with it.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        recovery: RecoverySettings,
        *,
        precision: Precision,
        labels: bool,
        total_steps: int,
        seed: int,
        steps_per_epoch: int,
        multi_label: bool = False,
        preprocessing: Preprocessing,
    ) -> None:
        recovery.weight_of_labels(labels)
        classifier = Classifier(student)
        super().__init__(
            classifier,
            recovery.as_training(precision, dim=find_host(student).dim, multi_label=multi_label),
            seed=seed,
            steps_per_epoch=steps_per_epoch,
            num_classes=classifier.num_outputs,
            multi_label=multi_label,
            preprocessing=preprocessing,
        )
        self.recovery = recovery
        self.labels = labels
        self.total_steps = total_steps
        self.alone = recovery.merger_first
        """Share of the steps in which only mergers learn; none where no merger must."""
        self._teacher = [Classifier(teacher).eval()]  # in a list, so that it is neither trained nor in checkpoints

    @property
    def teacher(self) -> Classifier:
        """The plain model, on the device of the student."""
        place = next(self.model.parameters()).device
        if next(self._teacher[0].parameters()).device != place:
            self._teacher[0].to(place)
        return self._teacher[0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One batch: both models see the same images."""
        loss = self.distillation_loss(batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at {self._where(batch_idx)}: {_WAY_OUT}")
        self.note_loss(loss)
        return loss

    def distillation_loss(self, batch: Any) -> Tensor:
        """The loss of a batch; see the class."""
        share = self.drawn_share()
        scores, features, wanted, wanted_features, targets = self.outputs(batch, share)
        r, parts = self.recovery, []
        if r.teacher_weight and self.teacher.head is not None:
            gap = divergence(scores, wanted, temperature=r.temperature, multi_label=self.multi_label)
            parts.append(r.teacher_weight * gap)
        if r.feature_weight:
            parts.append(r.feature_weight * feature_error(features, wanted_features))
        weight = r.weight_of_labels(self.labels)
        if weight:
            of_labels = self.loss(scores.float(), targets)
            if share < 1:
                of_labels = share * of_labels + (1 - share) * self.loss(scores.float(), targets.flip(0))
            parts.append(weight * of_labels)
        return torch.stack(parts).sum()

    def drawn_share(self) -> float:
        """The share of each image in its mixture with another one; 1 without mixup."""
        alpha = self.recovery.mixup
        return float(torch.distributions.Beta(alpha, alpha).sample()) if alpha else 1.0

    def outputs(self, batch: Any, share: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Scores and features of the student, those of the teacher, and targets, which are those of the first images.

        ``share`` is that of each image in its mixture with the one as far from the end of the batch.
        """
        images, targets = batch
        images = _mixed(self.normalize(images), share)
        with torch.no_grad():
            like = next(self.teacher.parameters())
            wanted, wanted_features = self.teacher.with_features(images.to(like.dtype))
        student: Any = self.model
        return *student.with_features(images), wanted, wanted_features, targets

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """As in training; without labels, what the teacher predicts takes their place."""
        images, targets = batch
        if not self.labels:
            targets = self.predicted(self.teacher(self.normalize(images)))
        super().validation_step((images, targets), batch_idx)

    def watch(self, batches: Iterable[Any]) -> float:
        """The metric of validation over ``batches``, outside of a trainer."""
        device = next(self.parameters()).device
        self.on_validation_epoch_start()
        with eval_mode(self), torch.no_grad():
            for batch in batches:
                self.validation_step([part.to(device) for part in batch], 0)
        scores, targets = (torch.cat(part) for part in zip(*self._scores, strict=True))
        return score(scores, targets)

    def predicted(self, scores: Tensor) -> Tensor:
        """What scores (B, C) predict, as targets: (B,), or (B, C) with several labels an image."""
        return (scores > 0).float() if self.multi_label else scores.argmax(dim=1)

    def configure_optimizers(self) -> Any:
        """Timm's optimiser and weight decay; mergers and the rest have schedules of their own."""
        student: Any = self.model
        groups: list[dict[str, Any]] = []
        schedules: list[Callable[[int], float]] = []
        found = parameter_groups(student.net, self.settings)
        working = _of_working_mergers(student.net)
        unlearned = any(id(p) not in working for group in found if group["merger"] for p in group["params"])
        self.alone = self.recovery.merger_first if unlearned else 0.0
        for group in found:
            ours = group["merger"]
            rate = self.settings.lr * (self.recovery.merger_lr if ours else 1.0)
            rate = self.recovery.prior_lr if group["prior"] else rate
            groups.append({**group, "lr": rate, "weight_decay": 0.0 if ours else group["weight_decay"]})
            schedules.append(self.merger_rate if ours else self.rest_rate)
        optimizer = timm_optimizer(groups, self.settings)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedules)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """As torch's schedulers want it."""
        scheduler.step()

    def merger_rate(self, step: int) -> float:
        """Share of its highest learning rate that the mergers have at ``step``: a warm-up, then a cosine.

        What they learn alone is a training of its own, whose share the warm-up is of; without it, of all steps.
        """
        return _rate(step, 0.0, self.recovery.warmup * (self.recovery.merger_first or 1.0), self.total_steps)

    def rest_rate(self, step: int) -> float:
        """The same of all else, which begins later."""
        return _rate(step, self.alone, self.recovery.warmup, self.total_steps)


class KeptTask(DistillationTask):
    """The same on kept tokens: batches are tokens, the teacher's scores and features, and targets.

    ``rear`` runs the student from its first merge on, where ``RearHalf.front`` has run; what computes the tokens does
    not. With mixup ``rear_of_teacher`` runs on the student's tokens, which must be its own.
    """

    def __init__(self, rear: RearHalf, rear_of_teacher: RearHalf, *arguments: Any, **further: Any) -> None:
        super().__init__(*arguments, **further)
        self.rear, self.rear_of_teacher = rear, rear_of_teacher

    def outputs(self, batch: Any, share: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """As of images; without a mixture, the teacher's are kept too."""
        tokens, wanted, wanted_features, targets = batch
        student: Any = self.model
        if share < 1:
            tokens = _mixed(tokens, share)
            with torch.no_grad():
                like = next(self.teacher.parameters())
                wanted, wanted_features = self.rear_of_teacher.run(self.teacher, tokens.to(like.dtype))
        return *self._run(student, tokens), wanted, wanted_features, targets

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Collect scores; without labels, what the teacher predicts takes their place."""
        tokens, wanted, _, targets = batch
        student: Any = self.final_model
        scores, _ = self._run(student, tokens)
        self._scores.append((scores.float().cpu(), (targets if self.labels else self.predicted(wanted)).cpu()))

    def _run(self, student: Classifier, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.rear.run(student, tokens.to(next(student.parameters()).dtype))


def _of_working_mergers(net: nn.Module) -> set[int]:
    """The ids of the parameters of mergers that work without training, such as DPC-KNN's."""
    reducers = [module.merger for module in net.modules() if is_merging(module)]
    methods = [(reducer, method_of(reducer)) for reducer in reducers]
    return {
        id(p)
        for reducer, name in methods
        if name is not None and not METHODS[name].learned
        for p in reducer.parameters()
    }


def _mixed(inputs: Tensor, share: float) -> Tensor:
    """``share`` of each image, or of its tokens, and the rest of the one as far from the end of the batch."""
    return inputs if share == 1 else share * inputs + (1 - share) * inputs.flip(0)


def _rate(step: int, begin: float, warmup: float, total: int) -> float:
    """Zero before ``begin`` (a share of all steps), a rise over ``warmup``, then half a cosine to the end."""
    done = (step + 1) / (total + 1)
    if done <= begin and begin > 0:
        return 0.0
    if done < begin + warmup:
        return (done - begin) / warmup
    left = max(1e-12, 1 - begin - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - begin - warmup) / left)))


_WAY_OUT = "lower recovery.lr, set recovery.clip_grad, or use recovery.precision '32-true'"
