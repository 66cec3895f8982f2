"""Networks: a timm name and a seed to a network with random weights, described and checked.

May import: errors, files. With :mod:`rst_hub.hub` the only room that imports timm.
"""

import timm as timm  # first: as soon as it is imported, rst_hub registers with it, which imports this room's files

from .build import create_model as create_model
from .inputs import UndescribedInputWarning as UndescribedInputWarning
from .inputs import describe_input as describe_input
from .pixels import PixelModel as PixelModel
from .weights import Init as Init
from .weights import SeededTensor as SeededTensor
