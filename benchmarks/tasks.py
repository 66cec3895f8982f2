"""Two tasks on one random network (paper, section 6.3 and appendix I): what the second one adds to the memory.

    python benchmarks/tasks.py                                  digits, and even or odd, searched here; minutes
    python benchmarks/tasks.py --tickets FOLDER FOLDER          tickets that are there already, of one seed

Every ticket of a task is a member of the task's R2S; all R2S share one TicketPool. Accuracies are measured through the
pool, on the task's own test images: the exact expectation over the members, PGD-20 (Linf, eps 8/255, one random start)
with the gradients of all of them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

from rst_hub import R2S, PixelModel, ThreatModel, TicketPool, r2s_from_pretrained
from rst_hub.attacks.names import named_attack
from rst_hub.console import print_anything
from rst_hub.data.images import load_images
from rst_hub.data.loader import evaluation_batches
from rst_hub.evaluation.accuracy import evaluate, join, percent

SEARCH = Path(__file__).resolve().parent.parent / "recipes" / "search.py"


def main() -> int:
    """Search if need be, put the tasks into one pool, print what each adds; return 1 if it is more than masks."""
    print_anything()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickets", nargs="+", help="ticket folders of one random network, one a task")
    parser.add_argument("--datasets", nargs="+", help="their data sets, to measure on")
    parser.add_argument("--ratios", default="0.1,0.3")
    parser.add_argument("--samples", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders, datasets = arguments.tickets, arguments.datasets
        if not folders:
            datasets = ["digits", str(even_or_odd(Path(scratch) / "even-or-odd"))]
            folders = [search(Path(scratch) / f"run{i}", name, arguments.ratios) for i, name in enumerate(datasets)]
        return measure(folders, datasets or [], arguments.samples)


def even_or_odd(folder: Path) -> Path:
    """Write the digits as an image folder of two classes: the same images, split the same way, other labels."""
    for split in ("train", "test"):
        images = load_images("digits", split)
        assert isinstance(images.rows, torch.Tensor)
        for number, (pixels, label) in enumerate(zip(images.rows, images.labels.tolist(), strict=True)):
            path = folder / split / ("odd" if label % 2 else "even") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    return folder


def search(output: Path, dataset: str, ratios: str) -> str:
    """Search the tickets of one task by recipes/search.py, from seed 0."""
    command = [sys.executable, str(SEARCH), "--preset", "digits", "--dataset", dataset, "--output", str(output)]
    subprocess.run([*command, "--remaining-ratios", ratios], check=True, stdout=subprocess.DEVNULL)
    return str(output / "ticket")


def measure(folders: list[str], datasets: list[str], samples: int) -> int:
    """Print a line for each task: what the pool holds with it, and what its R2S is worth."""
    pool, known, over = TicketPool(), 0, 0
    for number, folder in enumerate(folders):
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        before = pool.nbytes
        r2s = r2s_from_pretrained(folder, pool=pool)
        masks = sum(b.nbytes for name, b in r2s.named_buffers() if name.endswith(".mask"))
        own = sum(t.nbytes for t in (*r2s.parameters(), *r2s.buffers())) - masks
        dense = sum(t.nbytes for t in r2s_from_pretrained(folder, materialised=True).members[0].state_dict().values())
        known += masks + own
        shared = pool.nbytes - before
        print(
            f"task {number + 1}, {config['num_classes']} classes, {len(r2s.names)} tickets: "
            f"random weights +{shared:,} bytes, masks +{masks:,}, batch norms and the like +{own:,}; "
            f"all tasks {pool.nbytes + known:,} bytes, {(pool.nbytes + known) / dense:.3f} of one dense network"
        )
        classifier = 2 * r2s.num_features * config["num_classes"] // 8 + 8  # two bits a weight
        over += number > 0 and shared > classifier
        if datasets:
            print(f"  {accuracies(r2s, datasets[number], samples)}")
    return int(over > 0)


def accuracies(r2s: R2S, dataset: str, samples: int) -> str:
    """Return clean and robust accuracy of an R2S in words."""
    size = r2s.pretrained_cfg["input_size"][-1]
    images = load_images(dataset, "test", image_size=size)
    images = images.subset(torch.arange(min(samples, len(images))))
    members = [PixelModel(member) for member in r2s.members]
    attack = named_attack("pgd20", ThreatModel("Linf", 8 / 255), size)
    found = {
        name: percent(join(evaluate(members, evaluation_batches(images, 100, image_size=size), one)).correct)
        for name, one in (("clean", None), ("PGD-20 (EOT), Linf, eps 8/255", attack))
    }
    said = ", ".join(f"{name} {value:.2f}%" for name, value in found.items())
    return f"{said}; {len(images)} test images of {Path(dataset).name}, expectation over {', '.join(r2s.names)}"


if __name__ == "__main__":
    sys.exit(main())
