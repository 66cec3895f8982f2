"""Search a random network for robust scratch tickets (paper, section 3): nothing but the scores is learned.

    python recipes/search.py                             the digits, in minutes on two cores
    python recipes/search.py --dataset my_photos         your own images, a folder for each class
    accelerate launch recipes/search.py --model resnet101 --dataset FOLDER
    python recipes/search.py --help                      every setting

What it does is in rst_hub/runs/search.py.
"""

from rst_hub.runs.commands import leave

if __name__ == "__main__":
    leave("search")
