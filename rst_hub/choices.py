"""What there is to choose from, by name: known without torch, so that --help and a wrong setting take no seconds."""

from .errors import SettingsError

NORMS = ("Linf", "L2")
AUGMENTATIONS = ("none", "crop", "cifar", "imagenet")
DISTRIBUTIONS = ("signed_kaiming_constant", "kaiming_normal", "xavier_normal", "kaiming_uniform")
PATTERNS = ("element",)
LAYER_RATIOS = ("uniform", "erk")
"""How the remaining ratio is shared among layers, see :func:`rst_hub.masks.patterns.kept_counts`."""
FORMATS = ("safetensors", "onnx")
"""What a ticket is exported to."""
NAMES = {
    "fgsm": "one step of eps",
    "fgsm_rs": "one step of 1.25 eps from a random start",
    "pgd20": "PGD-20; any number of steps, and x5 for five restarts: pgd100x5",
    "margin20": "PGD-20 on the margin instead of the cross-entropy; also margin100x5",
    "logit_ensemble20": "PGD-20 on the members' mean logits; also logit_ensemble100x5",
    "probability_ensemble20": "PGD-20 on the members' mean probabilities; also probability_ensemble100x5",
    "margin_sum20": "PGD-20 on the members' margins, of those not fooled yet; also margin_sum100x5",
    "arc20": "ARC, 20 rounds through the members; also arc100",
    "cw_linf": "100 steps of PGD on the margin, Linf; also cw_linf20, cw_linf100x5",
    "cw_l2": "Carlini and Wagner's L2 attack with the paper's settings; it has no budget",
    "bandits": "black-box, 10,000 queries; also bandits1000",
    "square": "black-box, 5,000 queries; also square1000",
    "autoattack": "AutoAttack, standard; needs rst-hub[attacks]",
    "autoattack_rand": "AutoAttack for randomised models",
}
"""The attacks that are built in, and what each is."""
IN_A_SEARCH = {
    "pgd": "--steps steps of --step-size from a random start (the paper, CIFAR)",
    "fgsm": "one step of eps",
    "fgsm-rs": "one step of 1.25 eps, or of --step-size, from a random start (the paper, ImageNet)",
}
"""What search.py and train.py take as --attack; train.py takes "none" too."""


def check_remaining_ratio(remaining_ratio: float) -> None:
    """Raise SettingsError unless the ratio is from 0.001 to 1.

    With less no signal passes, and a file of some bytes could claim a network of gigabytes.
    """
    if (
        isinstance(remaining_ratio, bool)
        or not isinstance(remaining_ratio, int | float)
        or not 0.001 <= remaining_ratio <= 1
    ):
        raise SettingsError(
            f"remaining ratio {remaining_ratio!r}: give the share of weights to keep, from 0.001 to 1 (0.05 keeps 5%)"
        )
