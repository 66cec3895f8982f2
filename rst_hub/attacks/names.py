"""Attacks by short names, such as "pgd20" or "autoattack", with every setting that a result must carry."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..choices import NAMES
from ..errors import SettingsError, nearest
from ..spelling import spelled_attack
from .arc import arc, arc_step
from .autoattack import autoattack, require
from .bandits import BANDITS, bandits, default_tile
from .carlini_wagner import cw_l2
from .common import ThreatModel, Victim
from .gradient import cw_linf, fgsm, fgsm_rs, pgd
from .square import square

ADAPTIVE = ("pgd20", "logit_ensemble20", "probability_ensemble20", "margin_sum20", "arc20")
"""What an R2S must always be measured with: attacks of one who knows all members. The first is exact EOT, and each
sample's lowest outcome under all of them counts."""
_PGD: dict[str, dict[str, str]] = {
    "pgd": {},
    "margin": {"loss": "margin"},
    "margin_sum": {"loss": "clipped_margin"},
    "logit_ensemble": {"average": "logits"},
    "probability_ensemble": {"average": "probabilities"},
}
_ITERATIVE = re.compile(
    rf"(?P<kind>{'|'.join(_PGD)}|cw_linf)(?P<steps>[1-9]\d{{0,5}})?(x(?P<restarts>[1-9]\d{{0,3}}))?"
)
_ARC = re.compile(r"arc(?P<steps>[1-9]\d{0,5})")
_QUERYING = re.compile(r"(?P<kind>bandits|square)(?P<queries>[1-9]\d{0,6})?")
_SIZES = ("eps", "step_size")
_NOT_SETTINGS = ("model", "x", "y", "threat_model", "generator", "queries")


@dataclass(frozen=True)
class NamedAttack:
    """An attack with its settings; ``threat_model`` is None where there is no budget. Call it as :func:`evaluate` does.

    ``settings`` are all keyword arguments of ``function`` but those of its random numbers and its count of queries;
    ``source_sha256`` is the digest of the file of a user's own attack, and None for those of this table.
    """

    name: str
    function: Callable[..., torch.Tensor]
    threat_model: ThreatModel | None
    settings: Mapping[str, Any]
    source_sha256: str | None = None

    def __call__(
        self,
        model: Victim,
        x: torch.Tensor,
        y: torch.Tensor,
        generator: torch.Generator | None = None,
        queries: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return adversarial pixels, and fill ``queries`` (int64, (N,)) if this is a black-box attack."""
        given = {"threat_model": self.threat_model, "generator": generator, "queries": queries}
        taken = {key: value for key, value in given.items() if key in inspect.signature(self.function).parameters}
        return self.function(model, x, y, **taken, **self.settings)

    def keeping(self, keep: str) -> "NamedAttack":
        """Return this attack with another ``keep``, see :func:`rst_hub.pgd`; itself where it has none."""
        return replace(self, settings={**self.settings, "keep": keep}) if "keep" in self.settings else self

    @property
    def counts_queries(self) -> bool:
        """Whether this is a black-box attack."""
        return "queries" in inspect.signature(self.function).parameters

    def described(self) -> dict[str, Any]:
        """Return name, function, norm, budget and every setting, for JSON; sizes of pixels are over 255."""
        budget = self.threat_model
        described = {
            "name": self.name,
            "function": self.function.__name__,
            "norm": "L2" if budget is None else budget.norm,
            "eps_over_255": None if budget is None else round(255 * budget.eps, 6),
        }
        described |= {} if self.source_sha256 is None else {"source_sha256": self.source_sha256}
        for key, value in self.settings.items():
            described |= {f"{key}_over_255": round(255 * value, 6)} if key in _SIZES else {key: value}
        return described


def named_attack(name: str, threat_model: ThreatModel, image_size: int) -> NamedAttack:
    """Return the attack that a name of :data:`NAMES`, or a variant of it, stands for.

    Args:
        name: as in "pgd20", "pgd100x5", "arc20", "cw_linf", "square1000", "autoattack"; "PGD-20" is "pgd20" too.
        threat_model: norm and budget; ``cw_l2`` ignores it.
        image_size: side of the images in pixels, which the tile of ``bandits`` depends on.

    Raises:
        SettingsError: the name is not known, or what it needs is not installed.
    """
    given_name, name = name, spelled_attack(name, NAMES)
    iterative, rounds, querying = (kind.fullmatch(name) for kind in (_ITERATIVE, _ARC, _QUERYING))
    quarter = threat_model.eps / 4
    given: dict[str, Any] = {}
    function: Callable[..., torch.Tensor]
    if iterative and (iterative["steps"] or iterative["kind"] == "cw_linf"):
        function = cw_linf if iterative["kind"] == "cw_linf" else pgd
        given = {"steps": int(iterative["steps"] or 100), "restarts": int(iterative["restarts"] or 1)}
        given |= {"step_size": quarter, "random_start": True, "keep": "best"}
        if function is cw_linf and threat_model.norm != "Linf":
            raise SettingsError(f"attack {name} has a budget in Linf, not {threat_model.norm}: give margin100 instead")
        given |= _PGD.get(iterative["kind"], {})
    elif rounds:
        function, given = arc, {"steps": int(rounds["steps"]), "step_size": arc_step(threat_model)}
    elif querying:
        function = bandits if querying["kind"] == "bandits" else square
        given = {"max_queries": int(querying["queries"])} if querying["queries"] else {}
        if querying["kind"] == "bandits":
            given |= {"tile": default_tile(image_size), **BANDITS[threat_model.norm]}
    elif name == "fgsm":
        function = fgsm
    elif name == "fgsm_rs":
        function, given = fgsm_rs, {"step_size": 1.25 * threat_model.eps}
    elif name == "cw_l2":
        function = cw_l2
    elif name in ("autoattack", "autoattack_rand"):
        require()
        function, given = autoattack, {"version": "rand" if name.endswith("_rand") else "standard"}
    else:
        raise SettingsError(
            f"attack {given_name!r} is not known. {nearest(name.lower(), NAMES)} Known: {', '.join(NAMES)}."
        )
    return NamedAttack(name, function, None if name == "cw_l2" else threat_model, {**_defaults(function), **given})


def _defaults(function: Callable[..., torch.Tensor]) -> dict[str, Any]:
    """Return the function's own defaults, so that a result says them too."""
    parameters = inspect.signature(function).parameters
    return {key: p.default for key, p in parameters.items() if key not in _NOT_SETTINGS and p.default is not None}
