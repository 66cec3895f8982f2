"""Put tickets and what was measured of them into one folder, write its card, publish it on the Hub.

    python recipes/publish.py --tickets runs/A/ticket,runs/B/ticket --folder model_cards/rst-x
    python recipes/publish.py --folder model_cards/rst-x --repo org/rst-x
    python recipes/publish.py --help                     every setting

What it does is in rst_hub/runs/publish.py.
"""

import sys

from rst_hub.runs.launch import main_of
from rst_hub.runs.publish import main

if __name__ == "__main__":
    sys.exit(main_of(main))
