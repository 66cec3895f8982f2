"""Data: a data set's name to batches of pixels in [0, 1]. The only room that imports datasets.

May import: networks (for random numbers that are the same on every machine).
"""

from .images import Images as Images
from .images import load_images as load_images
from .loader import evaluation_batches as evaluation_batches
from .loader import training_batches as training_batches
