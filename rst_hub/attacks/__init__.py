"""Attacks: pure functions of (model, x, y, threat model) in pixel space, each in one file and named in names.py.

May import: errors, files.
"""

from .arc import arc as arc
from .autoattack import autoattack as autoattack
from .bandits import bandits as bandits
from .carlini_wagner import cw_l2 as cw_l2
from .common import ThreatModel as ThreatModel
from .gradient import cw_linf as cw_linf
from .gradient import fgsm as fgsm
from .gradient import fgsm_rs as fgsm_rs
from .gradient import pgd as pgd
from .square import square as square
