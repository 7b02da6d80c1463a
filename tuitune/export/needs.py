"""What each kind of export would need here, and whether it is there, before anything is begun."""

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from pathlib import Path

from tuitune.backends.loading import require_adapter, weights_folder
from tuitune.errors import TuituneError, UnusableInput
from tuitune.export import llama_cpp, place, shards, times
from tuitune.export.card import fingerprint, marked
from tuitune.export.kinds import KINDS, Kind, require_known
from tuitune.export.script import require_repeatable
from tuitune.language import Sentence, _, in_language
from tuitune.model.config import require_weights, training_config
from tuitune.recipe import Recipe
from tuitune.recipe_sections import HUB
from tuitune.runs.folder import Run, default_runs_folder
from tuitune.text import one_line
from tuitune.train.checkpoints import require_whole_adapter


@dataclass(frozen=True)
class Readiness:
    """Whether `kind` can be made: `missing` is the sentence that says why not.

    `bytes` is about what the export will take on disk, None where that cannot be known; `disk_bytes` is what it takes
    while it is made, and `memory_bytes` the host's memory meanwhile. `parts` has the seconds of each part of the work;
    several kinds share parts of one name. `measured` says that each was done on this machine before: else they are
    what writing takes at the least. `question` is what the user will be asked (whether a download is allowed), None
    where nothing is.
    """

    kind: str
    about: str
    ready: bool
    missing: str | None
    bytes: int | None
    question: str | None
    disk_bytes: int | None = None
    memory_bytes: int | None = None
    parts: dict[str, float] = field(default_factory=dict)
    measured: bool = False

    def takes(self) -> str:
        """Time, disk and memory in words; empty where nothing is known."""
        return times.takes(asdict(self)) if self.disk_bytes is not None else ""

    def in_words(self) -> str:
        """A line of its own: the kind, whether it can be made, and what that takes or what is missing."""
        if self.missing:
            return f"{self.kind} ✘ {self.missing}"
        return f"{self.kind} ✔ {self.takes() or _('can be made.')}"


@dataclass(frozen=True)
class Room:
    """What making some kinds takes at once: bytes on the disk, and in the host's memory to merge and to ask."""

    disk_bytes: int
    merge_bytes: int
    ask_bytes: int


def preflight(subject: Run | Recipe, out: Path | None = None, kinds: Sequence[Kind] = KINDS) -> list[Readiness]:
    """Each of `kinds`, looked at for a finished run, or for a recipe whose run is still to come.

    Nothing is downloaded or loaded, and a file is written only to see how fast the disk is. `out` is the folder to
    export to, by default the run's own.
    """
    run = subject if isinstance(subject, Run) else None
    recipe = run.resolved() if run else subject
    assert isinstance(recipe, Recipe)
    out = out or (run.exports if run else default_runs_folder())
    sizes, unreadable = {}, None
    try:
        if run and run.adapter.is_dir():
            sizes = {"adapter": place.size(run.adapter)}
        require_weights(recipe.model)
        sizes = bytes_of(recipe, run, kinds)
    except TuituneError as error:
        unreadable = error.sentence
    by_shard = unreadable is None and merges_by_shard(recipe, run)
    damaged = _damage(run) if run else None
    readiness = [_looked_at(kind, run, out, sizes, damaged, unreadable, by_shard=by_shard) for kind in kinds]
    if unreadable is None:
        recorded = times.recorded()
        readiness = [
            _with_needs(entry, kind, sizes, run, out, recorded, by_shard=by_shard)
            for entry, kind in zip(readiness, kinds, strict=True)
        ]
    paths = [recipe.data.path, *(source.path for source in recipe.data.also)]
    missing = [path for path in paths if not path.startswith(HUB) and not Path(path).is_file()]
    if missing:
        problem = _("The dataset {file} is no longer there: put it back.", file=one_line(missing[0]))
        readiness = [
            replace(entry, ready=False, missing=problem) if entry.kind in ("script", "notebook") else entry
            for entry in readiness
        ]
    for require, names in ((require_repeatable, ("script", "notebook")), (require_lora_alone, ("adapter_gguf",))):
        try:
            require(recipe)
        except TuituneError as error:
            readiness = [
                replace(entry, ready=False, missing=error.sentence) if entry.kind in names else entry
                for entry in readiness
            ]
    return readiness


def preflight_with_hub(
    subject: Run | Recipe, repository: str | None, out: Path | None = None, kinds: Sequence[Kind] = KINDS
) -> list[Readiness]:
    """As `preflight`, and what the Hub says of writing to the repository, where kinds of the Hub are among them."""
    from tuitune.hub.upload import require_writable

    readiness, refused = preflight(subject, out, kinds), None
    if any(kind.of for kind in kinds):
        try:
            require_writable(repository)
        except TuituneError as error:
            refused = error.sentence
    return [
        replace(entry, ready=False, missing=entry.missing or refused) if kind.of and refused else entry
        for entry, kind in zip(readiness, kinds, strict=True)
    ]


def wanted_kinds(recipe: Recipe) -> list[Kind]:
    """The kinds that `recipe.export` wants, an upload where it only names a repository. Raises UnusableInput for a kind
    that there is not."""
    names = [*recipe.export.to]
    if recipe.export.hub_repo and not any(name.startswith("hub:") for name in names):
        names.append("hub:adapter")
    return require_known(names) if names else []


def wanted_exports(recipe: Recipe, runs_folder: Path) -> list[Readiness]:
    """What `recipe.export` wants, looked at before its run; the Hub is asked about a repository that it names. Raises
    UnusableInput as `wanted_kinds` does."""
    kinds = wanted_kinds(recipe)
    return preflight_with_hub(recipe, recipe.export.hub_repo, runs_folder, kinds) if kinds else []


def require_exportable(recipe: Recipe, runs_folder: Path) -> None:
    """Refuse a run whose result could not become what `recipe.export` wants. Raises UnusableInput."""
    for readiness in wanted_exports(recipe, runs_folder):
        if readiness.missing:
            raise UnusableInput(
                "The recipe's export ({kind}) could not be made here, so training did not begin. {missing} Or take it "
                "out of export in the recipe.",
                kind=one_line(readiness.kind, max_length=60),
                missing=readiness.missing,
            )


def _damage(run: Run) -> Sentence | None:
    """Why nothing can be made of the run's adapter."""
    try:
        require_adapter(str(run.adapter))
        require_whole_adapter(run)
    except TuituneError as error:
        return error.sentence
    return None


def _looked_at(
    kind: Kind,
    run: Run | None,
    out: Path,
    sizes: dict[str, int],
    damaged: Sentence | None,
    unreadable: Sentence | None,
    *,
    by_shard: bool,
) -> Readiness:
    question, missing = None, None
    try:
        if damaged:
            raise TuituneError(damaged)
        if kind.name not in sizes and unreadable:
            raise TuituneError(unreadable)
        require_room([kind], sizes, run, out, by_shard=by_shard)
        if kind.gguf:
            require_quantiser(kind.gguf)
        if kind.gguf or kind.form == "adapter_gguf":
            question = _download_question()
    except TuituneError as error:
        missing = error.sentence
    return Readiness(kind.name, in_language(kind.what_for), missing is None, missing, sizes.get(kind.name), question)


def bytes_of(recipe: Recipe, run: Run | None, kinds: Sequence[Kind] = KINDS) -> dict[str, int]:
    """About what each kind takes on disk. Raises UnusableInput where the model's config cannot be read."""
    from tuitune.plan.memory import shape_of

    shape = shape_of(recipe)
    models = {kind.name: int(kind.bytes_per_weight * shape.total_parameters) for kind in kinds}
    adapter = place.size(run.adapter) if run and run.adapter.is_dir() else 4 * shape.adapter_parameters
    data = Path(recipe.data.path)
    script = data.stat().st_size if data.is_file() else 0
    bytes_without_model = {
        "adapter": adapter,
        "hub:adapter": adapter,
        "adapter_gguf": adapter // 2,
        "script": script,
        "notebook": script,
    }
    return {**models, **{name: size for name, size in bytes_without_model.items() if name in models}}


def room_of(kinds: list[Kind], sizes: dict[str, int], run: Run | None, out: Path, *, by_shard: bool) -> Room:
    """What making the kinds takes, their intermediate merged model included.

    `by_shard` says whether the merge needs only a part of the model in memory.
    """
    names = [kind.name for kind in kinds]
    merged, merges = int(2 * _weights(kinds, sizes)), _merges(kinds, run, out)
    written = sum(sizes[name] for name in names) + (merged if merges and "merged_16bit" not in names else 0)
    types = {kind.gguf for kind in kinds if kind.gguf}
    if types - {"f16", "bf16", "q8_0"} or len(types) > 1:
        written += merged  # the 16-bit GGUF that the others are made from
    merge = (min(shards.MEMORY_BYTES, merged) if by_shard else merged) if merges else 0
    return Room(written, merge, int(1.1 * merged))


def require_room(kinds: list[Kind], sizes: dict[str, int], run: Run | None, out: Path, *, by_shard: bool) -> None:
    """Refuse kinds that disk or memory cannot take, as `room_of` says. Raises TuituneError."""
    room = room_of(kinds, sizes, run, out, by_shard=by_shard)
    place.require_space(out, room.disk_bytes, _("Exporting {kinds}", kinds=_all_of([kind.name for kind in kinds])))
    if room.merge_bytes:
        place.require_memory(room.merge_bytes, _("Merging the adapter into the model"))


def _all_of(names: list[str]) -> str:
    return reduce(lambda before, name: _("{before} and {name}", before=before, name=name), names)


def _merges(kinds: list[Kind], run: Run | None, out: Path) -> bool:
    """Whether the adapter must be merged for the kinds, and was not before."""
    names = [kind.name for kind in kinds]
    return any(kind.whole_model for kind in kinds) and (
        "merged_16bit" in names or run is None or earlier_merged(run, out) is None
    )


def _with_needs(
    readiness: Readiness,
    kind: Kind,
    sizes: dict[str, int],
    run: Run | None,
    out: Path,
    recorded: list[times.PartTime],
    *,
    by_shard: bool,
) -> Readiness:
    """With what making the kind takes: room, and the seconds of its parts."""
    room = room_of([kind], sizes, run, out, by_shard=by_shard)
    parts = parts_of(kind, sizes, merges=_merges([kind], run, out))
    known = {part.name: times.seconds_of(part, recorded) for part in parts}
    measured = all(seconds is not None for seconds in known.values())
    if not measured:
        speed = times.written_bytes_a_second(out)
        known = {part.name: part.written_bytes / speed if speed else 0.0 for part in parts}
    return replace(
        readiness,
        disk_bytes=room.disk_bytes,
        memory_bytes=max(room.merge_bytes, room.ask_bytes),
        parts={name: seconds or 0.0 for name, seconds in known.items()},
        measured=measured,
    )


def parts_of(kind: Kind, sizes: dict[str, int], *, merges: bool) -> list[times.Part]:
    """The parts of making one kind; several kinds share those of one name."""
    whole, own = int(2 * _weights([kind], sizes)), sizes[kind.name]
    if kind.of is not None:
        before = parts_of(kind.of, {**sizes, kind.of.name: own}, merges=merges)
        return [*before, times.Part("upload", own, 0)]
    if not kind.whole_model:
        return [times.Part(f"make {kind.name}", own, own)]
    parts = [times.Part("merge", whole, whole)] if merges else []
    if kind.gguf in ("f16", "bf16", "q8_0"):
        parts.append(times.Part(f"convert {kind.gguf}", whole, own))
    elif kind.gguf:
        parts.append(times.Part("convert bf16", whole, whole))
        parts.append(times.Part(f"quantise {kind.gguf}", whole, own))
    elif kind.form == "merged_4bit":
        parts.append(times.Part("quantise nf4", whole, own))
    asked = f"ask {kind.gguf or kind.form}"
    parts += [times.Part("ask the adapter", whole, 0), times.Part(asked, whole, 0)]
    return [*parts, times.Part(f"sums of {kind.name}", own, 0)]


def merges_by_shard(recipe: Recipe, run: Run | None) -> bool:
    """Whether the merge needs no more than a part of the model in memory at a time."""
    if recipe.lora.init_lora_weights == "loftq":
        return False
    try:
        config, base = training_config(recipe), weights_folder(recipe.model)
        return shards.plan(config, base, run.adapter if run else None) is not None
    except (TuituneError, OSError, ValueError):  # it is not here yet, or not any more
        return False


def _weights(kinds: list[Kind], sizes: dict[str, int]) -> float:
    """The number of the model's weights, by what a whole model of these kinds takes."""
    return max((sizes[kind.name] / kind.bytes_per_weight for kind in kinds if kind.whole_model), default=0)


def require_quantiser(type_: str) -> None:
    """Refuse a type of GGUF that nothing on this machine can write. Raises TuituneError."""
    from tuitune.export.gguf import no_quantiser
    from tuitune.export.quantise import DEFAULT_TYPES

    if type_ in ("f16", "bf16", "q8_0") or (type_ in DEFAULT_TYPES and llama_cpp.kernels()) or llama_cpp.quantiser():
        return
    raise TuituneError(no_quantiser(type_))


def earlier_merged(run: Run, out: Path) -> Path | None:
    """The merged model in `out`, if it was made from this very adapter."""
    folder = out / "merged_16bit"
    fields = marked(folder)
    return folder if fields and fields.get("adapter_sha256") == fingerprint(run) else None


def require_lora_alone(recipe: Recipe) -> None:
    """Refuse a run that trained more than LoRA, for a form that holds LoRA alone. Raises UnusableInput."""
    fields = {"model.new_tokens": recipe.model.new_tokens, "lora.modules_to_save": recipe.lora.modules_to_save}
    if trained := [name for name, value in fields.items() if value]:
        raise UnusableInput(
            "A GGUF adapter holds LoRA matrices alone, and this run trains what {fields} names as well: export a GGUF "
            "of the whole model, such as gguf:q8_0.",
            fields=trained,
        )


def _download_question() -> str | None:
    if llama_cpp.find() is not None:
        return None
    if importlib.util.find_spec("pip") is None:
        raise TuituneError(llama_cpp.NO_PIP)
    return llama_cpp.download_question()
