"""Run: one run of a recipe, its settings, its processes, its images and its folder."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from ..data.images import Images
from .own import Own
from .settings import RunSettings


@dataclass(frozen=True)
class Run:
    """One run of a recipe: its settings, its processes, its images and its folder."""

    recipe: str
    settings: RunSettings
    accelerator: Accelerator
    output: Path
    train: Images
    holdout: Images
    test: Images
    image_size: int
    mean: list[float]
    std: list[float]
    part_of: "Run | None" = None
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    own: Mapping[str, Own] = dataclasses.field(default_factory=dict)

    def say(self, text: str) -> None:
        """Print on the main process."""
        if self.accelerator.is_main_process:
            tqdm.write(text)

    @property
    def shard(self) -> tuple[int, int]:
        """(rank, processes)."""
        return self.accelerator.process_index, self.accelerator.num_processes

    def part(self, name: str, settings: RunSettings) -> "Run":
        """Return a run with settings of its own in a sub-folder of this one's, on the same processes and images.

        The accelerator forgets what another part has left in it: the models and optimizers that it was given, and the
        factor by which it scales losses in fp16.
        """
        self.accelerator.free_memory()
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**16, "_growth_tracker": 0})  # torch's defaults
        return dataclasses.replace(self, settings=settings, output=self.output / name, part_of=self)


def share(images: Images, batch_size: int, accelerator: Accelerator) -> int:
    """Return how many of the images this process gets, of which every processes-th batch is its own."""
    step = batch_size * accelerator.num_processes
    starts = range(batch_size * accelerator.process_index, len(images), step)
    return sum(min(batch_size, len(images) - start) for start in starts)
