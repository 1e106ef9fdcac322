"""Distillation without a teacher at hand: soft labels, computed once and kept with the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from torch_geninit.training.classifier import logits_of
from torch_geninit.training.data import Split
from torch_geninit.training.networks import resnet20


def soften(split: Split, teachers: Sequence[nn.Module], *, temperature: float = 2.0) -> Split:
    """Return ``split`` with probabilities (N, classes) for labels: half the truth, half the teachers' view.

    The teachers' view is softmax(mean logits / temperature), averaged over each image and its mirror image,
    since training sees either (Hinton, Vinyals & Dean 2015, without their gradient scale). Any loss that
    takes class probabilities, as :func:`torch.nn.functional.cross_entropy`, trains on it unchanged.
    """
    mirrored = replace(split, images=split.images.flip(-1))
    views = [
        torch.stack([logits_of(teacher, view) for teacher in teachers]).mean(0) / temperature
        for view in (split, mirrored)
    ]
    believed = torch.stack([view.softmax(1) for view in views]).mean(0)
    truth = F.one_hot(split.labels.cpu(), len(split.classes)).float()
    return replace(split, labels=((truth + believed) / 2).to(split.labels.device))


def teachers_from(files: Sequence[str | Path], classes: int) -> list[nn.Module]:
    """Load trained ResNet-20s of a zoo."""
    teachers = []
    for file in files:
        teacher = resnet20(classes)
        teacher.load_state_dict(load_file(str(file)))
        teachers.append(teacher)
    return teachers
