"""Masks: scores to masks, and masks to bytes.

May import: networks.
"""

from .. import networks as networks  # first: it imports timm, with which rst_hub registers by this room's files
from .edge_popup import EdgePopup as EdgePopup
from .packed import PackedMasks as PackedMasks
