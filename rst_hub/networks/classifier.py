"""A new classifier behind what a network has learned, for another number of classes, as timm gives one."""

from typing import Any

import torch

from ..errors import ArchitectureError
from ..float32 import in_float32
from .architectures import check_architecture
from .inputs import set_input


def give_classes(model: Any, architecture: str, classes: int | None) -> None:
    """Give a timm model a new classifier of so many classes; None, or as many as it has, leaves it its own.

    The classifier is dense and in float32, on the CPU, and drawn by timm from torch's global random numbers; 0 classes
    leave the pooled features. The model stays in its mode, and its labels' names are forgotten.

    Raises:
        ArchitectureError: the number is none that timm takes, or the architecture has no classifier.
    """
    if classes is None or (classes == model.num_classes and not isinstance(classes, bool)):
        return
    check_architecture(architecture, {"num_classes": classes})
    if not hasattr(model, "reset_classifier"):
        raise ArchitectureError(f"{architecture} has no classifier, so num_classes={classes} cannot be given")
    with in_float32(), torch.device("cpu"):
        model.reset_classifier(classes)
    model.train(model.training)  # timm's new layers are in train mode, and some drop at random
    input_of = {key: value for key, value in model.pretrained_cfg.items() if key != "label_names"}
    set_input(model, {**input_of, "num_classes": classes})
