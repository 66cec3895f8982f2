"""A data set's name to its splits of encoded images with class labels: a folder here, or a data set on the Hub.

Class folders of images are listed by :mod:`~.folders`; tables, metadata files, archives and the Hub are read by
the datasets library, which is given names of files and no patterns.
"""

import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, cause, chain, foreign, nearest, printable
from .decoding import Decoder
from .folders import SPLITS, ClassFolders, class_folders, is_image, visible_files

_MAX_CLASSES = 100_000
_LOOKED_AT = 10_000
"""So many files say what kind of folder it is; to list those of ImageNet takes half a minute."""
_TABLES = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json"}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SAVED = ("dataset_dict.json", "state.json")
_SAYS_LABEL = re.compile(r"(fine_|class_)?(labels?|class|classes|class_name|category|target|y)(_names?|_ids?)?", re.I)


@dataclass(frozen=True)
class Split:
    """One split: its own name, encoded images, the class of each (int64 (N,), -1 where it has none), and notes."""

    name: str
    rows: Decoder
    numbers: np.ndarray
    notes: tuple[str, ...] = ()


def read_splits(
    name: str, image_column: str | None = None, label_column: str | None = None
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Return (splits by their names, class names), the classes being those of all splits.

    Args:
        name: a folder, or a name on the Hub.
        image_column: needed only where several columns hold images.
        label_column: needed only where several columns hold class labels.

    Raises:
        DataError: there is no such data set, image or label column.
    """
    name = os.path.expanduser(name)
    is_folder = os.path.isdir(name)
    if not is_folder and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise DataError(
            f"data set {printable(name, 300)!r} is neither a folder here, nor 'digits', nor a name on the Hub such as "
            "org/name: give one by --dataset"
        )
    if is_folder and _holds_class_folders(Path(name)):
        return _of_folders(class_folders(Path(name)))
    return _of_tables(name, _tables(name, is_folder), image_column, label_column)


def _of_folders(found: Mapping[str, ClassFolders]) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Return class folders as splits; nothing is copied, and no cache is needed."""
    import datasets

    classes = sorted({label for split in found.values() for _, label in split.files})
    number = {label: i for i, label in enumerate(classes)}
    splits = {}
    for name, split in found.items():
        paths = [os.fspath(path) for path, _ in split.files]
        rows = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image(decode=False))
        numbers = np.array([number[label] for _, label in split.files], np.int64)
        splits[name] = Split(name, Decoder(rows, "image", datasets.Image()), numbers, split.notes)
    return splits, tuple(classes)


def _of_tables(
    name: str, found: Mapping[str, Any], image_column: str | None, label_column: str | None
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Return what the datasets library has read as splits."""
    import datasets

    features = next(iter(found.values())).features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    image = _column(name, "image", images, image_column, list(features))
    labels = _label_columns(found, image)
    _check_no_gaps(name, features, labels, label_column)
    label = _column(name, "label", labels, label_column, list(features))
    values = {split: _values(rows, label) for split, rows in found.items()}
    numbers, classes = _numbered(name, label, features[label], values)
    splits, feature = {}, datasets.Image(mode=getattr(features[image], "mode", None))
    for split, rows in found.items():
        encoded = rows.with_format(None).select_columns([image]).cast_column(image, datasets.Image(decode=False))
        splits[split] = Split(split, Decoder(encoded, image, feature), numbers[split], (_found(name, split, rows),))
    return splits, classes


def _found(name: str, split: str, rows: Any) -> str:
    """Say how many rows a split has and, of a folder of images beside metadata, how many images no line is of."""
    said = f"{name}, split {split}: {len(rows):,} rows"
    metadata = [path for path in (Path(name) / split).rglob("metadata.*") if path.name in _METADATA]
    beside = sum(is_image(path) for path in visible_files(metadata[0].parent)) if metadata else 0
    return said + (
        f"; left out {beside - len(rows):,} images that {metadata[0].name} has no line of" if beside > len(rows) else ""
    )


def _numbered(
    name: str, label: str, feature: Any, values: Mapping[str, list[Any]]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return (class numbers by split, class names); without names, the classes are the values of all splits."""
    names = getattr(feature, "names", None)
    if names is not None:
        whole = {split: np.array([-1 if v is None else v for v in found], np.int64) for split, found in values.items()}
        for split, numbers in whole.items():
            if len(numbers) and numbers.max() >= len(names):
                raise DataError(
                    f"data set {name}: a {label} of split {split} is missing or beyond its {len(names)} classes"
                )
        return whole, tuple(names)
    if not _is_whole(feature) and not _is_text(feature):
        raise DataError(
            f"column {label!r} of data set {name} holds no class labels: they are names of classes or numbers"
        )
    has_no_label = (lambda v: v is None or v < 0) if _is_whole(feature) else (lambda v: v is None or not v.strip())
    present = sorted({v for found in values.values() for v in found if not has_no_label(v)})
    if _is_whole(feature) and present and present[-1] >= _MAX_CLASSES:
        raise DataError(
            f"column {label!r} of data set {name} reaches {present[-1]}: choose the labels by --label-column"
        )
    number = {value: i for i, value in enumerate(present)}
    counted = {split: np.array([number.get(v, -1) for v in found], np.int64) for split, found in values.items()}
    return counted, tuple(str(int(value)) if _is_whole(feature) else value for value in present)


def _label_columns(found: Mapping[str, Any], image: str) -> list[str]:
    """Return the columns that may hold class labels, by what they hold, and then by what they are called.

    Columns of named classes come first, then numbers and texts that are called "label" or the like, then other numbers
    and texts that are few and come again and again.
    """
    import datasets

    features = {column: kind for column, kind in next(iter(found.values())).features.items() if column != image}
    named = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    others = [column for column, feature in features.items() if _is_whole(feature) or _is_text(feature)]
    called = [column for column in others if _SAYS_LABEL.fullmatch(column)]
    likely = [column for column in others if _is_whole(features[column]) or _comes_again(found.values(), column)]
    return named or called or likely


def _check_no_gaps(name: str, features: Mapping[str, Any], labels: Sequence[str], chosen: str | None) -> None:
    """Raise DataError where the labels are fractions: a table of whole numbers is read so where one is missing."""
    called = [column for column in features if _SAYS_LABEL.fullmatch(column)]
    for column in [chosen] if chosen in features else [] if labels else called:
        if "float" in str(getattr(features[str(column)], "dtype", None)):
            raise DataError(
                f"data set {name} has no label column: {column!r} holds no class labels but fractions, or whole "
                "numbers of which one is missing. Add it, or choose another column by --label-column"
            )


def _comes_again(splits: Iterable[Any], column: str) -> bool:
    """Say whether a column's values in the largest split are few, as names of classes are."""
    values = _values(max(splits, key=len), column)
    return len(set(values)) <= min(len(values) // 2, _MAX_CLASSES)


def _values(rows: Any, column: str) -> list[Any]:
    return rows.with_format(None).select_columns([column])[column][:]


def _is_whole(feature: Any) -> bool:
    dtype = getattr(feature, "dtype", None)
    return type(feature).__name__ == "Value" and (str(dtype) == "bool" or "int" in str(dtype))


def _is_text(feature: Any) -> bool:
    return type(feature).__name__ == "Value" and "string" in str(getattr(feature, "dtype", None))


def _holds_class_folders(folder: Path) -> bool:
    """Say whether a folder's images are files without a table: none in parquet, archives or beside a metadata file."""
    if _says(folder, "configs") or any((folder / name).exists() for name in _SAVED):
        return False
    if any(path.name in _METADATA for above in (folder, *folder.glob("*")) for path in above.glob("metadata.*")):
        return False
    count: Counter[str] = Counter()
    for path in islice(visible_files(folder), _LOOKED_AT):
        count["image"] += is_image(path)
        count["table"] += path.suffix.lower() in _TABLES
        count["archive"] += path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz")
    return count["image"] >= max(1, count["table"]) or not count["table"] + count["archive"]


def _says(folder: Path, *keys: str) -> bool:
    """Say whether a folder's README.md has one of these in its front matter, as data sets on the Hub do."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return (folder / ".huggingface.yaml").exists() or (folder / "dataset_infos.json").exists()
    front = re.match(r"\ufeff?---\s*\n(.*?)\n---", text, re.S)
    return front is not None and re.search(rf"^({'|'.join(keys)}):", front[1], re.M) is not None


def _tables(name: str, is_folder: bool) -> dict[str, Any]:
    """Return the splits of a data set that the datasets library reads, by their names."""
    import datasets

    datasets.disable_progress_bars()
    folder = Path(name).resolve()
    if is_folder and any((folder / saved).exists() for saved in _SAVED):
        return _read(name, lambda: _saved(folder))
    if not is_folder:
        return _read(name, lambda: _built(name, datasets.load_dataset_builder(name)))
    files = list(visible_files(folder))
    kind, chosen = _kind_of(files)
    if kind is None or _says(folder, "configs", "dataset_info"):
        if glob.has_magic(str(folder)):
            raise DataError(f"{folder} has a name that would be read as a pattern: rename it, without any of *?[]")
        return _read(name, lambda: _built(name, datasets.load_dataset_builder(str(folder))))
    by_split = _by_split(folder, chosen)
    if kind == "imagefolder":
        by_split = _by_split(
            folder, [path for path in files if is_image(path) or path.name in _METADATA], by_name=False
        )
        bare = [split for split, paths in by_split.items() if not any(path.name in _METADATA for path in paths)]
        if bare:
            raise DataError(
                f"data set {name} has no metadata file among the images of split {bare[0]}: put the lines of each "
                "split into its own folder, as in test/metadata.csv, with file names from there on"
            )
    _check_same_classes(name, [path for paths in by_split.values() for path in paths] if kind == "parquet" else [])
    escaped = {split: [glob.escape(str(path)) for path in paths] for split, paths in by_split.items()}
    return _read(name, lambda: _built(name, datasets.load_dataset_builder(kind, data_files=escaped)))


def _check_same_classes(name: str, files: Sequence[Path]) -> None:
    """Raise DataError where two parquet files number their classes differently: one's names would be taken for all."""
    import datasets
    import pyarrow.parquet

    first: dict[str, tuple[list[str], Path]] = {}
    for path in files:
        try:
            features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(path))
        except Exception:  # what is wrong with it, its reader says
            continue
        for column, feature in features.items():
            if isinstance(feature, datasets.ClassLabel):
                names, other = first.setdefault(column, (feature.names, path))
                if names != feature.names:
                    odd = next((pair for pair in zip(names, feature.names, strict=False) if pair[0] != pair[1]), None)
                    how = (
                        f"{len(names)} and {len(feature.names)} of them"
                        if odd is None
                        else f"{odd[0]!r} and {odd[1]!r}"
                    )
                    raise DataError(
                        f"data set {name}: {other.name} and {path.name} name the classes of {column!r} differently "
                        f"({how}): write them with one list of names"
                    )


def _kind_of(files: Sequence[Path]) -> tuple[str | None, list[Path]]:
    """Return (the datasets library's name of what reads these files, the files): the kind that most of them are of."""
    if any(path.name in _METADATA for path in files):
        return "imagefolder", [path for path in files if path.name in _METADATA]
    kinds = Counter(_TABLES[path.suffix.lower()] for path in files if path.suffix.lower() in _TABLES)
    if not kinds:
        return None, []
    kind = kinds.most_common(1)[0][0]
    return kind, [path for path in files if _TABLES.get(path.suffix.lower()) == kind]


def _by_split(folder: Path, files: Iterable[Path], *, by_name: bool = True) -> dict[str, list[Path]]:
    """Return files by the split that a folder on their way, or else their own name, is called after; else "train"."""
    found: dict[str, list[Path]] = defaultdict(list)
    known = {alias: alias for names in SPLITS.values() for alias in names}
    for path in files:
        parts = path.relative_to(folder).parts
        above = [part.lower() for part in parts[:-1] if part.lower() in known]
        within = [word for word in re.split(r"[^a-z]+", path.stem.lower()) if word in known]
        words = list(dict.fromkeys(above[:1] or (within if by_name else [])))
        if len(words) > 1:
            raise DataError(f"{path} is called after two splits, {' and '.join(words)}: rename it")
        found[words[0] if words else "train"].append(path)
    return dict(found)


def _saved(folder: Path) -> dict[str, Any]:
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}


def _built(name: str, builder: Any) -> dict[str, Any]:
    """Return what a builder of the datasets library makes, unless it puts a file into two splits."""
    seen: dict[Any, str] = {}
    for split, files in (builder.config.data_files or {}).items():
        for file in files:
            other = seen.setdefault(_identity(str(file)), str(split))
            if other != str(split):
                raise DataError(
                    f"data set {name}: {printable(file, 300)} is in two splits, {other} and {split}: say "
                    "which files are which split in the data set's README.md (configs: data_files), or move them into "
                    "folders called train and test"
                )
    builder.download_and_prepare()
    return dict(builder.as_dataset())


def _identity(file: str) -> tuple[int, int] | str:
    """Return what two names of one file have in common."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):  # on the Hub
        return file
    return found.st_dev, found.st_ino


def _read(name: str, work: Any) -> dict[str, Any]:
    """Return what ``work`` reads, if it is a data set; say what is wrong if it is not."""
    try:
        found = work()
    except DataError:
        raise
    except Exception as error:  # the library raises a dozen unrelated kinds
        _blame_the_cache(error)
        reason = foreign(error, 1000)
        raise DataError(f"data set {name} cannot be read as images with labels: {reason}") from cause(error)
    empty = [split for split, rows in found.items() if not len(rows)]
    if not found or len(empty) == len(found):
        raise DataError(f"data set {name} holds no rows: give one that is not empty")
    return found


def _blame_the_cache(error: BaseException) -> None:
    """Raise DataError where the cache of the datasets library, and not the data set, is at fault."""
    import datasets

    cache = Path(datasets.config.HF_DATASETS_CACHE)
    above = next(parent for parent in (cache, *cache.absolute().parents) if parent.exists())
    files = [getattr(link, "filename", None) for link in chain(error) if isinstance(link, OSError)]
    caches = (cache, Path(datasets.config.HF_CACHE_HOME))
    within = any(str(file).startswith(str(each)) for file in files if file for each in caches)
    if within or not above.is_dir() or not os.access(above, os.W_OK):
        raise DataError(
            f"the cache of data sets, {cache}, cannot be written ({foreign(error, 300)}): set HF_HOME or "
            "HF_DATASETS_CACHE to a folder that can be, with room for the data"
        ) from cause(error)


def _column(name: str, kind: str, candidates: Sequence[str], chosen: str | None, columns: Sequence[str]) -> str:
    if chosen is not None and chosen not in columns:
        raise DataError(f"data set {name} has no column {chosen!r}. {nearest(chosen, columns)}")
    if chosen is not None:
        return chosen
    if not candidates:
        raise DataError(
            f"data set {name} has no {kind} column among {', '.join(columns)}: give a labelled image data set, or "
            f"choose the column by --{kind}-column"
        )
    if len(candidates) > 1:
        raise DataError(
            f"data set {name} has several {kind} columns: choose one of {', '.join(candidates)} by --{kind}-column"
        )
    return candidates[0]
