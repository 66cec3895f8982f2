"""AutoAttack (Croce and Hein, 2020) through its maintained package, the extra ``rst-hub[attacks]``."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import RstHubError, SettingsError
from ..float32 import in_float32
from .common import ThreatModel, Victim, checked, evaluating, logits_of, members_of, project, unchecked
from .gradient import fgsm

VERSIONS = ("standard", "rand")


@checked
@torch.no_grad()
def autoattack(
    model: Victim,
    x: torch.Tensor,
    y: torch.Tensor,
    threat_model: ThreatModel,
    *,
    version: str = "standard",
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Attack by AutoAttack; what it cannot fool comes back as ``x``.

    Its warnings, on randomised, dynamic and gradient-masking models, go to Python's logger ``auto-attack``. The model
    runs in eval mode and is left as it was: its modes, its buffers, its gradients, torch's random numbers.

    Args:
        model: pixels in [0, 1] to at least four logits. Of a list of members the mean probability is attacked: a
            deterministic stand-in, and no more than one of the attacks that a randomised model must withstand.
        x: pixels in [0, 1], float32, (N, C, H, W).
        y: labels, int64, (N,).
        threat_model: norm and budget.
        version: "standard": APGD on cross-entropy and targeted DLR, targeted FAB, Square with 5,000 queries; one after
            the other, on what is left. "rand": APGD on both losses with gradients averaged over 20 forwards, for
            models that draw; it counts single draws as successes, so measure its examples over many.
        generator: its seed is drawn from this; seed 0 when None.

    Raises:
        SettingsError: the package is not installed, the version is unknown, or there are too few classes.
        DataError, RstHubError: as for :func:`rst_hub.pgd`; a gradient that is not finite at ``x`` is an error too.
    """
    package = _package()
    if version not in VERSIONS:
        raise SettingsError(f"AutoAttack version {version!r} is not known; give 'standard' or 'rand'")
    if not len(x) or threat_model.eps == 0:
        return x.clone()
    seed = int(torch.randint(2**31, (1,), generator=generator, device=x.device)) if generator else 0
    pixels = x.contiguous()
    with evaluating(model), _left_alone(model, x.device), in_float32():  # the package draws of the default dtype
        attacked = _Attacked(model).eval()  # like the model, which is put back
        classes = attacked(pixels[:1]).shape[1]
        require(classes)
        stepped = unchecked(fgsm)(attacked, pixels, y, threat_model)
        if not bool(stepped.isfinite().all()):  # APGD would stand still in silence
            raise RstHubError("the model's input gradient is not finite: its precision is too low, or it has diverged")
        adversary = package.AutoAttack(
            attacked, norm=threat_model.norm, eps=threat_model.eps, version=version, seed=seed, device=x.device
        )
        adversary.apgd_targeted.n_target_classes = min(9, classes - 1)
        adversary.fab.n_target_classes = min(9, classes - 1)
        adversarial, _ = adversary.run_standard_evaluation(pixels, y, batch_size=len(x))
    return project(adversarial.detach(), x, threat_model)  # the package may leave the ball by a rounding


def require(classes: int | None = None) -> None:
    """Raise SettingsError unless AutoAttack is there, and can be made on so many classes, before hours of others."""
    _package()
    if classes is not None and classes < 4:
        raise SettingsError(f"AutoAttack's targeted DLR loss needs 4 classes, the model has {classes}: use pgd100x5")


def _package() -> Any:
    try:
        import pyautoattack
    except ImportError as error:
        raise SettingsError('AutoAttack is an extra: install it with pip install "rst-hub[attacks]"') from error
    return pyautoattack


@contextmanager
def _left_alone(model: Victim, device: torch.device) -> Iterator[None]:
    """Put back what the package changes: torch's global seeds, Python's tracer, gradients on parameters (FAB)."""
    parameters = [p for member in members_of(model) if isinstance(member, nn.Module) for p in member.parameters()]
    learned = [p for p in parameters if p.requires_grad]
    tracer = sys.gettrace()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for parameter in learned:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            sys.settrace(tracer)
            for parameter in learned:
                parameter.requires_grad_(True)


class _Attacked(nn.Module):
    """What the package is given: one model's float32 logits, or the logarithm of the members' mean probability."""

    def __init__(self, model: Victim) -> None:
        super().__init__()
        self._model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The detour makes the gradient contiguous, which the package relies on and channels_last models do not give.
        outputs = logits_of(self._model, x.flatten().view(x.shape))
        if len(outputs) == 1:
            return outputs[0]
        return torch.stack([logits.log_softmax(1) for logits in outputs]).logsumexp(0) - math.log(len(outputs))
