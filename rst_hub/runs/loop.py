"""The adversarial loop that search.py and train.py share, and the measurement.

The recipe says what is learned (scores, or weights); this file never asks which.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import accelerate
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm

from ..attacks.common import Attack, ThreatModel, unchecked
from ..attacks.gradient import fgsm, fgsm_rs, kl_pgd, pgd
from ..attacks.names import NamedAttack
from ..data.images import Images
from ..data.loader import evaluation_batches, training_batches
from ..errors import RstHubError, SettingsError
from ..evaluation.accuracy import evaluate, join, percent
from ..networks.pixels import PixelModel
from .folder import make_folder, read_checkpoint, write_checkpoint, write_metrics
from .objectives import Objective, adversarial, climb, follow, put_back, retake_statistics, trades
from .own import Own, as_attack, as_objective
from .provenance import EVAL_STEP_SIZE, EVAL_STEPS
from .run import Run, share
from .settings import RunSettings, is_own, learning_rate
from .trial import expected_end, try_forward, try_step


@dataclass(frozen=True)
class Learner:
    """What is learned: ``learned`` tensors that the optimizer steps, and what to do around that step.

    ``before_step`` makes their gradients from the model's (or does nothing); ``after_step`` writes what they imply
    into the model (or does nothing).
    """

    model: nn.Module
    learned: Mapping[str, nn.Parameter]
    before_step: Callable[[], None]
    after_step: Callable[[], None]

    def state(self) -> dict[str, torch.Tensor]:
        """Return copies, on the CPU, of all that learning changes: the learned tensors and the model's buffers."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self._tensors().items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back what :meth:`state` returned."""
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        self.after_step()

    def _tensors(self) -> dict[str, torch.Tensor]:
        buffers = {f"buffer.{name}": buffer for name, buffer in self.model.named_buffers()}
        return {**{f"learned.{name}": tensor for name, tensor in self.learned.items()}, **buffers}


def make_attack(
    settings: RunSettings, generator: torch.Generator | None, own: Mapping[str, Own] = MappingProxyType({})
) -> Attack | None:
    """Return the attack to train against (paper, sections 3.2 and 4.6), or None for natural training.

    Unchecked, since images from 0 to 255 become its pixels and their classes its labels: a check waits for the device.
    A user's own attack, of ``own``, is checked at every step all the same.
    """
    threat_model = ThreatModel("Linf", settings.eps / 255)
    steps, step_size = (settings.steps, 2 / 255) if settings.attack == "pgd" else (1, 1.25 * threat_model.eps)
    step_size = step_size if settings.step_size is None else settings.step_size / 255
    if settings.attack == "none":
        return None
    if is_own(settings.attack):
        return functools.partial(as_attack(own["attack"]), threat_model=threat_model, generator=generator)
    if settings.loss == "trades":
        return functools.partial(
            unchecked(kl_pgd), threat_model=threat_model, steps=steps, step_size=step_size, generator=generator
        )
    if settings.attack == "fgsm":
        return functools.partial(unchecked(fgsm), threat_model=threat_model)
    if settings.attack == "fgsm-rs":
        return functools.partial(
            unchecked(fgsm_rs), threat_model=threat_model, step_size=step_size, generator=generator
        )
    return functools.partial(
        unchecked(pgd), threat_model=threat_model, steps=steps, step_size=step_size, keep="last", generator=generator
    )


def make_objective(settings: RunSettings, own: Mapping[str, Own] = MappingProxyType({})) -> Objective:
    """Return what to minimise under attack; a user's own objective is of ``own``."""
    if is_own(settings.loss):
        return as_objective(own["loss"])
    if settings.loss == "trades":
        return functools.partial(trades, beta=settings.trades_beta)
    return adversarial


def make_optimizer(settings: RunSettings, learned: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of the learned tensors: the paper's SGD, or AdamW.

    Where gradients differ by orders of magnitude between tensors (transformers, mixers), one rate of SGD suits few of
    them; AdamW divides each by its own size. Its eps is far below the smallest gradients met.
    """
    tensors, decay = list(learned.values()), settings.weight_decay
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(tensors, settings.lr, betas=(settings.momentum, 0.999), eps=1e-15, weight_decay=decay)
    return torch.optim.SGD(tensors, settings.lr, momentum=settings.momentum, weight_decay=decay)


def learn(run: Run, learner: Learner) -> tuple[list[dict[str, Any]], int]:
    """Run the adversarial loop (paper, equation 1) and leave ``learner`` as it was after its best epoch.

    The best epoch has the highest PGD-20 accuracy on the held-out images, the test images being never looked at; of
    equal ones the higher clean accuracy, then the earlier. After each epoch ``metrics.jsonl`` and ``checkpoint.pt`` are
    replaced; a resumed run continues from there to the same bits.

    Returns:
        (the lines of metrics.jsonl, the position of the best among them).

    Raises:
        RstHubError: the model cannot take the images, the checkpoint is of another model, or learning diverges.
    """
    settings, accelerator = run.settings, run.accelerator
    torch.backends.cudnn.allow_tf32 = False  # as measure() has it; float32 is float32, and bf16 is for speed
    optimizer = make_optimizer(settings, learner.learned)
    network = PixelModel(learner.model)
    _try(run, network)
    saved = read_checkpoint(run)
    for each in filter(None, (run.part_of, run)):
        make_folder(accelerator, each.output, run.recipe, each.settings, run.data)
    metrics: list[dict[str, Any]] = []
    best: dict[str, torch.Tensor] = {}
    average = {name: tensor.detach().clone() for name, tensor in learner.learned.items()} if settings.ema else {}
    if saved is not None:
        _continue(run, learner, optimizer, average, saved)
        metrics, best = saved["metrics"], saved["best"]
    network = accelerator.prepare_model(network)
    optimizer = accelerator.prepare_optimizer(optimizer)
    per_epoch = len(run.train) // settings.batch_size
    first, last = len(metrics), settings.epochs
    if settings.max_steps is not None:
        last = min(last, math.ceil(settings.max_steps / per_epoch))
    for epoch in range(first, last):
        started = time.monotonic()
        record = _epoch(run, learner, network, optimizer, average, epoch, per_epoch)
        _share_buffers(run, learner.model)
        state = learner.state()
        if average:
            _stand_in(run, learner, average, epoch)
        record.update(measure(run, learner.model, run.holdout, "held-out"))
        metrics.append(record)
        if all(_rank(earlier) < _rank(record) for earlier in metrics[:-1]):
            best = learner.state() if average else state
        if average:
            learner.restore(state)
        run.say(_in_words(record, settings))
        if record["steps"] == (epoch + 1) * per_epoch:  # a trial that stops within an epoch leaves no checkpoint of it
            found = {"state": state, "optimizer": optimizer.state_dict(), "metrics": metrics, "best": best}
            write_checkpoint(run, {**found, "average": {name: tensor.cpu() for name, tensor in average.items()}})
        write_metrics(run, metrics)
        if epoch == first and epoch + 1 < last:
            run.say(expected_end(time.monotonic() - started, last - epoch - 1, run))
    learner.restore(best)
    return metrics, max(range(len(metrics)), key=lambda i: (*_rank(metrics[i]), -i))


def _try(run: Run, network: PixelModel) -> None:
    """Raise RstHubError, before anything is written, unless a training step works; compile the network if need be."""
    settings, accelerator = run.settings, run.accelerator
    try_forward(run, network)
    x, y = (part.chunk(settings.accumulation_steps)[0] for part in next(_training_batches(run, 0)))
    attack = make_attack(
        dataclasses.replace(settings, steps=1), torch.Generator(accelerator.device).manual_seed(0), run.own
    )
    attempt = functools.partial(try_step, run, network, objective=make_objective(settings, run.own))
    attempt(attack, x=_to_device(run, x), y=y.to(accelerator.device))
    if settings.compile:
        network.compile()  # in place: names in state dicts stay
        attack = attack and functools.partial(_with_frozen_weights, attack)
        attempt(attack, x=_to_device(run, x), y=y.to(accelerator.device))
        if accelerator.num_processes > 1:
            torch.compiler.reset()  # what is compiled for one process is not what several share their gradients by


def _continue(
    run: Run, learner: Learner, optimizer: Any, average: Mapping[str, torch.Tensor], saved: Mapping[str, Any]
) -> None:
    """Put back what a checkpoint holds of the learner, the optimizer and the average, and say so."""
    try:
        learner.restore(saved["state"])
        optimizer.load_state_dict(saved["optimizer"])
        if average:
            put_back(average, saved["average"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise SettingsError(f"the checkpoint in {run.output} is of another model: start again elsewhere") from error
    write_metrics(run, saved["metrics"])
    run.say(f"resumed after epoch {len(saved['metrics'])} of {run.settings.epochs}")


def measure(run: Run, model: nn.Module, images: Images, name: str) -> dict[str, Any]:
    """Return clean and PGD-20 accuracy, in percent, with the number of samples, over all processes.

    The attack is PGD-20 of step 2/255 at the run's eps from a random start, against the float32 model in eval mode.
    Each batch has its own seed, so the numbers do not depend on the number of processes.
    """
    accelerator, settings = run.accelerator, run.settings
    torch.backends.cudnn.allow_tf32 = False  # cuDNN would take 10 bits of mantissa for float32 otherwise
    threat_model = ThreatModel("Linf", settings.eps / 255)
    torch.backends.cudnn.benchmark = False  # "enough" makes batches of any size, each of which would be tried out
    pgd20 = {"steps": EVAL_STEPS, "step_size": EVAL_STEP_SIZE / 255, "keep": "enough"}
    attacks = {"clean": None, "pgd20": NamedAttack("pgd20", pgd, threat_model, pgd20)}
    total = share(images, settings.eval_batch_size, accelerator)
    found: dict[str, Any] = {"samples": len(images)}
    for key, attack in attacks.items():
        batches = evaluation_batches(images, settings.eval_batch_size, image_size=run.image_size, shard=run.shard)
        placed = ((number, _to_device(run, x), y.to(accelerator.device)) for number, x, y in batches)
        bar = f"{key}, {name}" if accelerator.is_main_process else None
        parts = evaluate(PixelModel(model), placed, attack, seed=settings.seed, progress=bar, total=total)
        found[key] = percent(join(gather_object(parts)).correct)
    return found


def _epoch(
    run: Run,
    learner: Learner,
    network: nn.Module,
    optimizer: Any,
    average: Mapping[str, torch.Tensor],
    epoch: int,
    per_epoch: int,
) -> dict[str, Any]:
    """Take one epoch's optimizer steps, which ``average`` follows unless it is empty, and return its record."""
    settings, accelerator = run.settings, run.accelerator
    rate = learning_rate(settings, epoch)
    for group in optimizer.param_groups:
        group["lr"] = rate
    rank, _ = run.shard
    generator = torch.Generator(accelerator.device)
    attack = make_attack(settings, generator, run.own)
    if attack is not None and settings.compile:
        attack = functools.partial(_with_frozen_weights, attack)
    take = functools.partial(step, objective=make_objective(settings, run.own), uphill=settings.climb)
    torch.backends.cudnn.benchmark = True  # every batch has the same shape
    found = torch.zeros(2, device=accelerator.device)
    begun = done = epoch * per_epoch
    started = time.monotonic()
    network.train()
    batches = _training_batches(run, epoch)
    for x, y in tqdm(batches, f"epoch {epoch + 1}", per_epoch, leave=False, disable=not accelerator.is_main_process):
        step_seed = ((settings.seed % 2**20) * 2**24 + done) * 2**12 + rank
        generator.manual_seed(step_seed)
        torch.manual_seed(step_seed)  # dropout and the like, in models that have it
        if accelerator.device.type == "cuda" and not x.is_cuda:  # else the copies would wait for the GPU
            x, y = x.pin_memory(), y.pin_memory()
        x, y = _to_device(run, x), y.to(accelerator.device, non_blocking=True)
        found += take(accelerator, learner if done else _checked(learner), network, optimizer, attack, x, y)
        done += 1
        if average:
            follow(average, learner.learned, settings.ema, done)
        if settings.max_steps is not None and done >= settings.max_steps:
            break
    seconds = time.monotonic() - started
    loss_sum, right = accelerator.reduce(found).tolist()
    samples = (done - begun) * settings.batch_size
    learned_is_finite = all(bool(tensor.isfinite().all()) for tensor in learner.learned.values())
    if not math.isfinite(loss_sum) or not learned_is_finite:
        raise RstHubError(
            f"the loss or what is learned is not finite in epoch {epoch + 1}: start again with a lower --lr"
        )
    return {
        "epoch": epoch + 1,
        "steps": done,
        "lr": rate,
        "loss": loss_sum / samples,
        "train_robust": 100 * right / samples,
        "processes": accelerator.num_processes,
        "seconds": round(seconds, 2),
    }


def _training_batches(run: Run, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield this process's share of an epoch's batches: pixels and labels."""
    return training_batches(
        run.train,
        run.settings.batch_size,
        augment=run.settings.augment,
        image_size=run.image_size,
        seed=run.settings.seed,
        epoch=epoch,
        shard=run.shard,
    )


def _stand_in(run: Run, learner: Learner, average: Mapping[str, torch.Tensor], epoch: int) -> None:
    """Put the average into the place of what is learned, with batch-norm statistics of its own."""
    put_back(learner.learned, average)
    learner.after_step()
    retake_statistics(PixelModel(learner.model), (_to_device(run, x) for x, _ in _training_batches(run, epoch)))
    _share_buffers(run, learner.model)


def step(
    accelerator: Accelerator,
    learner: Learner,
    network: nn.Module,
    optimizer: Any,
    attack: Attack | None,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    objective: Objective = adversarial,
    uphill: float = 0.0,
) -> torch.Tensor:
    """Take one optimizer step (paper, equation 1): attack, backward, what is learned, what it implies for the model.

    Nothing in it asks the device for a value, so the host runs ahead of a GPU and keeps it busy.

    Args:
        accelerator: its accumulation steps are the parts that the batch is taken in.
        learner: what is learned.
        network: the prepared :class:`PixelModel` of the learner's model, in train mode.
        optimizer: the prepared optimizer of the learned tensors.
        attack: what :func:`make_attack` gives.
        x: this process's pixels on the device, float32 (N, C, H, W) in [0, 1], in the layout of channels_last.
        y: labels there, int64 (N,).
        objective: what is minimised, see :mod:`lifts`.
        uphill: share of its norm that what is learned moves uphill before the gradient is taken; with one part only.

    Returns:
        float32 (2,) on the device: the sum of the losses and the number of right answers, under attack; where the
        gradient was taken.
    """
    victim = accelerator.unwrap_model(network)  # the attack needs no gradient reduction between processes
    parts, found = accelerator.gradient_accumulation_steps, torch.zeros(2, device=x.device)
    for part_x, part_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
        with accelerator.accumulate(network):
            with accelerator.autocast():  # one context, so that a weight is cast once for attack and training
                attacked = part_x if attack is None else attack(victim, part_x, part_y)
                loss, logits = objective(network, part_x, attacked, part_y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                learner.before_step()
            if uphill:
                before = climb(learner.learned, uphill)
                learner.after_step()
                optimizer.zero_grad()
                with accelerator.autocast():  # anew, because it kept the weights that it had cast
                    loss, logits = objective(network, part_x, attacked, part_y)
                accelerator.backward(loss)
                learner.before_step()
                put_back(learner.learned, before)
            optimizer.step()
            optimizer.zero_grad()
        found += torch.stack([loss.detach() * len(part_y), (logits.argmax(1) == part_y).sum()])
    learner.after_step()
    return found


def _with_frozen_weights(attack: Attack, victim: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Attack a compiled network, whose backward would compute the gradients of all that requires one."""
    learned = [parameter for parameter in victim.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        return attack(victim, x, y)
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


def _checked(learner: Learner) -> Learner:
    """Return the learner for a first step, which raises RstHubError if nothing that is learned has a gradient."""

    def before_step() -> None:
        learner.before_step()
        if not any(tensor.grad is not None and bool(tensor.grad.any()) for tensor in learner.learned.values()):
            raise RstHubError(
                "no gradient reaches what is learned, because no signal gets through the network: keep more weights "
                "(--remaining-ratio), or choose another architecture"
            )

    return dataclasses.replace(learner, before_step=before_step)


def _to_device(run: Run, x: torch.Tensor) -> torch.Tensor:
    return x.to(run.accelerator.device, memory_format=torch.channels_last, non_blocking=True)


def _share_buffers(run: Run, model: nn.Module) -> None:
    """Give every process the main one's batch-norm statistics: a ticket has one set of them."""
    if run.accelerator.num_processes > 1:
        for buffer in model.buffers():
            accelerate.utils.broadcast(buffer, from_process=0)


def _rank(record: Mapping[str, Any]) -> tuple[float, float]:
    return record["pgd20"], record["clean"]


def _in_words(record: Mapping[str, Any], settings: RunSettings) -> str:
    where = f"eps {settings.eps:g}/255, {record['samples']} images"
    return (
        f"epoch {record['epoch']}/{settings.epochs}  loss {record['loss']:.3f}  {record['seconds']:.0f} s  "
        f"held-out: clean {record['clean']:.1f}, PGD-20 {record['pgd20']:.1f} ({where})"
    )
