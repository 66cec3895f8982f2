"""Train a dense network, naturally or adversarially: the baseline that a ticket is compared with.

    python recipes/train.py --attack none                natural training on the digits
    accelerate launch recipes/train.py --model preact_resnet18 --dataset FOLDER --attack pgd
    python recipes/train.py --help                       every setting

What it does is in rst_hub/runs/train.py.
"""

from rst_hub.runs.commands import leave

if __name__ == "__main__":
    leave("train")
