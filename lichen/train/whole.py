"""Whether a folder that Lichen has written, or a model from elsewhere, is as it was written."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from lichen.data.dataset import TokenDataset
from lichen.data.manifest import MANIFEST_FILE, PREPARATION_FILE, SOURCES_FILE, TOKENIZER_FILE
from lichen.errors import LichenError
from lichen.files.bounded import read_json
from lichen.files.sealed import MANIFEST
from lichen.serve.open import EXPORT_MARK, check_whole
from lichen.train.run import open_run
from lichen.weights.checkpoints import doubt_about, find_checkpoint_damage, is_checkpoint, list_checkpoints
from lichen.weights.folder import read_headers


@dataclass(frozen=True)
class Checked:
    """A folder, what it is, what is wrong with it (None: nothing), its files that no hash vouches for, and of
    a checkpoint what there is to doubt about its weights."""

    path: Path
    what: str
    problem: str | None
    unchecked: tuple[str, ...]
    doubt: str | None = None


def check_folder(folder: Path) -> Iterator[Checked]:
    """What lies in `folder`, or not far below it, each compared with what was written as soon as it is asked
    for. Raises LichenError where there is nothing that Lichen knows."""
    if not (found := list(_below(folder, 3))):
        raise LichenError(f"{folder} is no run, checkpoint, export, prepared data or model, and holds none")
    return chain.from_iterable(found)


def _below(folder: Path, levels: int) -> Iterator[Iterator[Checked]]:
    if (found := _checked(folder)) is not None:
        yield found
    elif levels:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                yield from _below(path, levels - 1)


def _checked(folder: Path) -> Iterator[Checked] | None:
    """By what lies in it, for what tells one kind from another may be what is missing."""

    def holds(*patterns: str) -> bool:
        return any(True for pattern in patterns for _ in folder.glob(pattern))

    if is_checkpoint(folder) or folder.parent.name == "checkpoints":
        return _checkpoint(folder)
    if holds("recipe.toml", "run.json", "checkpoints/"):
        return _run(folder)
    if holds(MANIFEST_FILE, PREPARATION_FILE, "*.tokens.npy"):
        return _data(folder)
    if holds("config.json", EXPORT_MARK, "*.safetensors"):
        return _model(folder)
    return None


def _run(run: Path) -> Iterator[Checked]:
    checkpoints = list_checkpoints(run / "checkpoints")
    apart = [path.relative_to(run).as_posix() for path in checkpoints]
    known = {"recipe.toml", *_listed(run, "run.json")}
    if not checkpoints and not (run / "recipe.toml").exists():  # which comes last (`start_run`)
        what = "a run that was stopped before it began, and that its command begins anew"
        yield Checked(run, what, None, _others(run, known))
        return
    yield Checked(run, "a run", _problem(lambda: open_run(run)), _others(run, known, apart))
    for checkpoint in checkpoints:
        yield from _checkpoint(checkpoint)


def _checkpoint(checkpoint: Path) -> Iterator[Checked]:
    def check() -> None:
        if reason := find_checkpoint_damage(checkpoint):
            raise LichenError(reason)

    others = _others(checkpoint, _listed(checkpoint, MANIFEST))
    problem = _problem(check)
    doubt = None if problem else doubt_about(checkpoint)
    yield Checked(checkpoint, "a checkpoint", problem, others, doubt)


def _data(data: Path) -> Iterator[Checked]:
    shards: list[str] = []

    def check() -> None:
        dataset = TokenDataset.open(data)
        shards.extend(name for shard in dataset.manifest.shards for name in shard.files)
        dataset.verify()

    problem = _problem(check)
    known = (MANIFEST_FILE, TOKENIZER_FILE, SOURCES_FILE, *shards)
    yield Checked(data, "prepared data", problem, _others(data, known))


def _model(model: Path) -> Iterator[Checked]:
    def check() -> None:
        check_whole(model)
        read_json(model / "config.json")
        read_headers(model)

    is_export = (model / EXPORT_MARK).exists()
    what = "an export" if is_export else "a model, of whose weights the headers were read"
    yield Checked(model, what, _problem(check), _others(model, _listed(model, EXPORT_MARK)))


def _problem(check: Callable[[], object]) -> str | None:
    try:
        check()
    except LichenError as error:
        return str(error)
    return None


def _listed(folder: Path, manifest: str) -> set[str]:
    """What the manifest vouches for, and itself; nothing where it cannot be read."""
    try:
        files = read_json(folder / manifest).get("files")
    except LichenError:
        return set()
    return {manifest, *files} if isinstance(files, dict) else set()


def _others(folder: Path, known: Collection[str], apart: Collection[str] = ()) -> tuple[str, ...]:
    """The files in `folder` that are not `known`, but for those in folders that stand `apart`."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    outside = (name for name in names if not any(name.startswith(f"{each}/") for each in apart))
    return tuple(sorted(set(outside) - set(known)))
