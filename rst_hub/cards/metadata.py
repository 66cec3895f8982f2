"""A card's front matter: what the Hub's listing and search are told."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .gathered import Folder, all_measured
from .measured import Measured, Result
from .values import REPOSITORY
from .wording import budget, plain

TAGS = ["rst", "timm", "adversarial-robustness", "image-classification"]


def base_models(folder: Folder) -> list[str]:
    """Return the models that card.json or the tickets say they are made from."""
    given = [folder.about.get("base_model"), *(entry["provenance"].get("base_model") for entry in folder.entries)]
    return list(dict.fromkeys(one for one in given if isinstance(one, str) and REPOSITORY.fullmatch(one)))


def metadata(folder: Folder) -> ModelCardData:
    """Return a card's front matter."""
    rst, about = folder.config["rst"], folder.about
    dataset = folder.dataset.get("id")
    base = base_models(folder)
    measured = all_measured(folder)
    size = {one.name: one.file for one in folder.sizes}
    return ModelCardData(
        library_name="rst-hub",
        tags=TAGS,
        pipeline_tag="image-classification",
        license=plain(about["license"], 100) if about.get("license") else None,
        datasets=[dataset] if dataset else None,
        base_model=(base[0] if len(base) == 1 else base) or None,
        model_name=plain(folder.name, 100),
        eval_results=[_eval_result(folder, run, row) for run, row in measured] or None,
        rst={
            "architecture": rst["architecture"],
            "seed": rst["init"]["seed"],
            "distribution": rst["init"]["distribution"],
            "tickets": [
                {"name": one["name"], "remaining_ratio": one["remaining_ratio"], "bytes": size[one["name"]]}
                for one in folder.entries
            ],
        },
    )


def _eval_result(folder: Folder, run: Result, row: Measured) -> EvalResult:
    ratios = [entry["remaining_ratio"] for entry in folder.entries if entry["name"] in row.members]
    whose = {"tickets": list(row.members)} if row.is_set else {"ticket": row.of}
    whom = f"{row.of if row.is_set else f'ticket {row.of}'}, {row.samples:,} samples"
    arguments: dict[str, Any] = {
        **whose,
        "remaining_ratio": ratios if row.is_set else ratios[0],
        "samples": row.samples,
        "unit": "percent",
    }
    if row.interval is not None:
        arguments["interval_95"] = list(row.interval)
    if row.name != "clean":
        known = {
            key: value for key, value in (row.settings or {}).items() if isinstance(value, str | int | float | list)
        }
        limits = {"norm": row.norm} | ({} if row.eps is None else {"eps_over_255": row.eps})
        attacker = {} if row.attacker is None else {"attacker": row.attacker}
        arguments |= {"attack": known, **limits, **attacker}
    return EvalResult(
        task_type="image-classification",
        dataset_type=folder.dataset.get("id") or plain(run.dataset, 100),
        dataset_name=folder.data(run.dataset),
        dataset_split=plain(run.split, 40),
        metric_type="accuracy" if row.name == "clean" else "robust_accuracy",
        metric_value=row.accuracy,
        metric_name=plain(f"clean accuracy, {whom}" if row.name == "clean" else f"{_metric(row)}, {whom}", 500),
        metric_args=_clean(arguments),
    )


def _metric(row: Measured) -> str:
    return f"{row.words}, {budget(row.norm, row.eps)}"


def _clean(value: Any) -> Any:
    """Return JSON whose texts are single lines, so that YAML says the same to every reader."""
    if isinstance(value, dict):
        return {plain(key, 60): _clean(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value[:100]]
    return plain(value) if isinstance(value, str) else value
