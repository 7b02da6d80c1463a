"""Make the kinds of one export one after the other; what they share, the merged model and its GGUF, is made once."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuitune.atomic import publish
from tuitune.backends.loading import explained, weights_folder
from tuitune.errors import TuituneError, UnusableInput
from tuitune.export import llama_cpp, place
from tuitune.export.card import beside_gguf, fingerprint, gguf_card, is_ours, mark, marked, say_in_card
from tuitune.export.commands import commands_for, hub_lines
from tuitune.export.kinds import KINDS, Cancelled, Exported, ExportOptions, Kind, NotExported
from tuitune.export.needs import (
    bytes_of,
    earlier_merged,
    merges_by_shard,
    require_lora_alone,
    require_quantiser,
    require_room,
)
from tuitune.export.ollama import GGUF_NAME
from tuitune.export.packing import pack, require_own_places
from tuitune.export.parity import FILE as PARITY
from tuitune.export.parity import write as write_parity
from tuitune.export.proof import Proof
from tuitune.export.sums import sum_file, write_sums
from tuitune.export.times import timed
from tuitune.hub.upload import require_writable, upload
from tuitune.language import N_, _
from tuitune.runs.folder import Run
from tuitune.text import one_line

if TYPE_CHECKING:
    from tuitune.export.parity import Parity

Progress = Callable[[str, str, int | None, int | None], None]
"""Called with the kind, what is being done, and how much of how much where that can be counted."""

_IMATRIX = "imatrix.gguf"
_CONVERTED = ("f16", "bf16", "q8_0")  # what llama.cpp's converter writes by itself


class Making:
    """One call of `tuitune.export.export`."""

    def __init__(
        self,
        run: Run,
        out: Path,
        staging: Path,
        progress: Progress,
        cancelled: Callable[[], bool],
        options: ExportOptions,
    ) -> None:
        self._run = run
        self._out = out
        self._staging = staging
        self._progress = progress
        self._cancelled = cancelled
        self._options = options
        self._llama_cpp: Path | None = None
        self._merged: Path | None = None
        self._merge_notices: tuple[str, ...] = ()
        self._merge_failure: TuituneError | OSError | None = None
        self._ggufs: dict[str, Path] = {}
        self._done: dict[str, Exported] = {}
        self._proof = Proof(run, lambda: self._run_tokenizer, lambda: self._whole_bytes, cancelled)
        self._types: set[str] = set()
        self._kinds: list[Kind] = []
        self._importance_notice = ""
        self._source: Path | None = None

    def prepare(self, kinds: list[Kind], allow_download: Callable[[str], bool]) -> dict[str, NotExported]:
        """Ask for what the kinds need before the long work, while the user is still there; what cannot be made."""
        self._kinds = kinds
        refused: dict[str, NotExported] = {}

        @contextlib.contextmanager
        def needed_by(kinds_in_need: list[Kind]) -> Iterator[None]:
            try:
                yield
            except Cancelled:
                raise
            except TuituneError as error:
                refused.update((kind.name, NotExported(kind.name, error)) for kind in kinds_in_need)

        for kind in kinds:
            if kind.of is not None:
                with needed_by([kind]):
                    require_writable(self._options.hub_repo)
            with needed_by([kind]):
                if kind.form == "adapter_gguf":
                    require_lora_alone(self._run.resolved())
                final = self._out / file_name(self._run, kind)
                _require_ours(final)
                require_own_places(final, self._options, is_folder=final.suffix != ".gguf")
                if kind.gguf:
                    require_quantiser(kind.gguf)
        whole_models = [kind for kind in kinds if kind.whole_model and kind.name not in refused]
        if whole_models:
            with needed_by(whole_models):
                by_shard = merges_by_shard(self._run.resolved(), self._run)
                require_room(whole_models, self._sizes, self._run, self._out, by_shard=by_shard)
        ggufs = [kind for kind in kinds if _needs_converter(kind) and kind.name not in refused]
        if ggufs:
            with needed_by(ggufs):
                self._llama_cpp = llama_cpp.obtain(
                    allow_download,
                    lambda done, total: self._progress(
                        ggufs[0].name, _("Downloading llama.cpp's converter"), done, total
                    ),
                    self._cancelled,
                )
        self._types = {kind.gguf for kind in kinds if kind.gguf and kind.name not in refused}
        return refused

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """About what each kind takes on disk."""
        return bytes_of(self._run.resolved(), self._run, [*KINDS, *self._kinds])

    @property
    def _whole_bytes(self) -> int:
        return self._sizes["merged_16bit"]

    def make(self, kind: Kind) -> Exported:
        """Make one kind, prove it and give it its place. Raises TuituneError; what others need stays."""
        if self._cancelled():
            raise Cancelled
        if kind.of is not None:
            return self._upload(kind, kind.of)
        name = file_name(self._run, kind)
        final, staged = self._out / name, self._staging / name
        try:
            with (
                contextlib.nullcontext() if kind.whole_model else timed(f"make {kind.name}", lambda: place.size(staged))
            ):
                notices = self._make(kind, staged)
                parity, later_notices = self._prove(kind, staged)
            proof = parity.words() if parity else ""
            figures_file = staged.with_name(f"{staged.name}.{PARITY}") if staged.suffix == ".gguf" else staged / PARITY
            if parity:
                write_parity(parity, figures_file)
            if staged.is_dir():
                mark(staged, self._run, kind.name, proof)
                say_in_card(staged, proof)
            self._progress(kind.name, _("Writing its SHA-256 sums"), None, None)
            with timed(f"sums of {kind.name}", lambda: place.size(staged)):
                sums = write_sums(staged, self._cancelled)
            if final.suffix == ".gguf":
                sum_file(final).unlink(missing_ok=True)  # none for a moment, rather than that of another file
            publish(staged, final)
            if final.suffix == ".gguf":
                publish(sums, sum_file(final))
                if parity:
                    publish(figures_file, final.with_name(figures_file.name))
                mark(final, self._run, kind.name, proof)
        except Exception:
            self._make_room()
            raise
        if kind.name == "merged_16bit":
            self._merged = final
        elif kind.gguf and final.is_file():
            self._ggufs[kind.gguf] = final
        packed = pack(
            final,
            self._options,
            self._staging,
            lambda text: self._progress(kind.name, text, None, None),
            self._cancelled,
        )
        self._make_room()
        later_notices = (*later_notices, *packed)
        if kind.form == "ollama":
            later_notices = (*later_notices, *self._try_in_ollama(kind, final))
        model = self._run.resolved().model
        commands = commands_for(kind.name, final, self._run.name, base=model.name, new_tokens=bool(model.new_tokens))
        self._done[kind.name] = Exported(
            kind.name, final, place.size(final), commands, (*notices, *later_notices), proof
        )
        return self._done[kind.name]

    def _upload(self, kind: Kind, of: Kind) -> Exported:
        """Upload what another kind makes; it is made here first, unless it was made now or before from this adapter."""
        name = file_name(self._run, of)
        earlier = marked(self._out / name)
        exported = self._done.get(of.name)
        if exported is None and earlier is not None and earlier.get("adapter_sha256") == fingerprint(self._run):
            path, proof = self._out / name, str(earlier.get("proof", ""))
        else:
            exported = exported or self.make(of)
            path, proof = exported.path, exported.proof
        files = sorted(path.iterdir()) if path.is_dir() else [path, *beside_gguf(path)]
        if path.is_file():
            card = self._staging / "README.md"
            card.write_text(gguf_card(self._run, of.name, path.name, proof), encoding="utf-8")
            files.append(card)
        with timed("upload", lambda: sum(file.stat().st_size for file in files)):
            uploaded = upload(
                files,
                self._options.hub_repo,
                public=self._options.hub_public,
                message=f"{self._run.name} by tuitune",
                progress=lambda file, done, total: self._progress(
                    kind.name, _("Uploading {file}", file=file) if file else _("Uploading"), done, total
                ),
                cancelled=self._cancelled,
            )
        commands = hub_lines(of.name, uploaded.repository.name, path.name)
        notices = (_("Uploaded: {address}", address=uploaded.commit_url),)
        return Exported(kind.name, path, place.size(path), commands, notices, proof)

    def _make(self, kind: Kind, path: Path) -> tuple[str, ...]:
        makers = {
            "adapter": self._make_adapter,
            "adapter_gguf": self._make_adapter_gguf,
            "merged_16bit": self._make_merged,
            "merged_4bit": self._make_merged_4bit,
            "gguf": self._make_gguf,
            "ollama": self._make_ollama,
            "script": self._make_script,
            "notebook": self._make_script,
        }
        return makers[kind.form](kind, path)

    @property
    def _run_tokenizer(self) -> Any:
        """The tokenizer that was saved with the adapter, opened anew."""
        from transformers import AutoTokenizer

        with explained(self._run.resolved(), N_("opening the tokenizer of the run of")):
            return AutoTokenizer.from_pretrained(self._run.adapter, trust_remote_code=False)

    @cached_property
    def _exported_tokenizer(self) -> tuple[Any, tuple[str, ...]]:
        """The run's tokenizer with replies beginning as in its training, and notices for the user."""
        from tuitune.chat_template.reply_start import begin_as_trained

        tokenizer = self._run_tokenizer
        if not tokenizer.chat_template or self._run.thinks():
            return tokenizer, ()
        return tokenizer, begin_as_trained(tokenizer)

    def _make_room(self) -> None:
        """Remove what a kind that failed left half made, for those that are still to come."""
        paths_to_keep = (self._merged, self._source, self._staging / "base-bf16.gguf", self._staging / _IMATRIX)
        for path in self._staging.iterdir():
            if path in paths_to_keep:
                continue
            if path.is_file():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)

    def _counted(self, kind: Kind, text: str) -> Callable[[int, int], None]:
        self._progress(kind.name, text, None, None)
        return lambda done, total: self._progress(kind.name, text, done, total)

    def _prove(self, kind: Kind, path: Path) -> tuple["Parity | None", tuple[str, ...]]:
        """How what was made compares with the adapter, and notices for the user. Raises TuituneError."""
        if kind.form in ("adapter", "script", "notebook"):
            return None, ()
        self._progress(kind.name, _("Asking the adapter and the export the same"), None, None)
        template_told = bool(self._exported_tokenizer[1])
        return self._proof.of(kind, path, self._base_gguf, template_told=template_told)

    def _base_gguf(self, kind: Kind) -> Path:
        """The base model as a GGUF, made to try the adapter's on."""
        path = self._staging / "base-bf16.gguf"
        if not path.exists():
            place.require_space(self._staging, self._base_bytes(), _("Trying the adapter on a GGUF of its base"))
            self._convert(kind, path, "bf16", weights_folder(self._run.resolved().model))
        return path

    def _base_bytes(self) -> int:
        return sum(file.stat().st_size for file in weights_folder(self._run.resolved().model).glob("*.safetensors"))

    # --- adapters and scripts ---------------------------------------------------------------------------------

    def _make_adapter(self, kind: Kind, path: Path) -> tuple[str, ...]:
        from tuitune.export.adapter import copy_adapter

        self._progress(kind.name, _("Copying the adapter"), None, None)
        copy_adapter(self._run, self._exported_tokenizer[0], path)
        if not self._run.resolved().model.new_tokens:
            return self._exported_tokenizer[1]
        told = _(
            "The adapter brings rows for its new tokens, which the base must be resized for: its README.md says how."
        )
        return (*self._exported_tokenizer[1], told)

    def _make_adapter_gguf(self, kind: Kind, path: Path) -> tuple[str, ...]:
        from tuitune.export.gguf import convert_adapter

        assert self._llama_cpp is not None
        with explained(self._run.resolved(), N_("finding the base model of")):
            base = weights_folder(self._run.resolved().model)
        convert_adapter(
            self._run.adapter,
            base,
            path,
            llama_cpp=self._llama_cpp,
            log=self._staging / "convert.log",
            progress=self._counted(kind, _("Converting the adapter to GGUF")),
            cancelled=self._cancelled,
        )
        return ()

    def _make_script(self, kind: Kind, path: Path) -> tuple[str, ...]:
        from tuitune.export.script import write_script

        is_notebook = kind.form == "notebook"
        text = _("Writing the notebook and its rows") if is_notebook else _("Writing the script and its rows")
        self._progress(kind.name, text, None, None)
        write_script(self._run, path, as_notebook=is_notebook)
        mark(path, self._run, kind.name)
        return ()

    # --- whole models -----------------------------------------------------------------------------------------

    def _make_merged(self, kind: Kind, path: Path) -> tuple[str, ...]:
        from tuitune.export.merged import merge

        if self._merge_failure is not None:  # it takes minutes, and would fail again
            raise self._merge_failure
        try:
            with timed("merge", lambda: self._whole_bytes):
                self._merge_notices = merge(
                    self._run,
                    self._exported_tokenizer[0],
                    path,
                    lambda text, done=None, total=None: self._progress(kind.name, text, done, total),
                    self._cancelled,
                )
        except (TuituneError, OSError) as error:
            self._merge_failure = error
            raise
        return (*self._merge_notices, *self._exported_tokenizer[1])

    def _make_merged_4bit(self, kind: Kind, path: Path) -> tuple[str, ...]:
        from tuitune.export.merged_4bit import quantise

        merged = self._merged_model(kind)
        self._progress(kind.name, _("Quantising to 4-bit"), None, None)
        with timed("quantise nf4", lambda: self._whole_bytes):
            quantise(self._run, merged, path)
        return (*self._merge_notices, *self._exported_tokenizer[1])

    def _merged_model(self, kind: Kind) -> Path:
        """The merged model of this very adapter: exported here, now or before, or made for this call alone."""
        if self._merged is None:
            self._merged = earlier_merged(self._run, self._out)
        if self._merged is None:
            folder = self._staging / "merged"
            self._make_merged(kind, folder)
            self._merged = folder
        return self._merged

    # --- GGUF -------------------------------------------------------------------------------------------------

    def _make_gguf(self, kind: Kind, path: Path) -> tuple[str, ...]:
        from tuitune.export.gguf import left_out, quantise

        assert kind.gguf is not None
        merged = self._merged_model(kind)
        notices = (*self._merge_notices, *left_out(merged), *self._exported_tokenizer[1])
        if kind.gguf in self._ggufs:
            _link(self._ggufs[kind.gguf], path)
            return notices
        if len(self._types) == 1 and kind.gguf in _CONVERTED:
            self._convert(kind, path, kind.gguf)
            return notices
        source, source_type = self._source_gguf(kind)
        if kind.gguf == source_type:
            _link(source, path)
            return notices
        weighs = self._options.imatrix and kind.gguf not in _CONVERTED
        imatrix = self._importance(kind, source) if weighs else None
        if imatrix:
            notices = (*notices, self._importance_notice)
        with timed(f"quantise {kind.gguf}", lambda: self._whole_bytes):
            quantise(
                source,
                path,
                kind.gguf,
                merged,
                imatrix=imatrix,
                log=self._staging / "quantise.log",
                progress=self._counted(kind, _("Writing the GGUF as {kind}", kind=kind.gguf)),
                cancelled=self._cancelled,
            )
        return notices

    def _importance(self, kind: Kind, source: Path) -> Path:
        """The importance matrix of the merged model, which all types of one export share."""
        from tuitune.export.importance import write_importance

        path = self._staging / _IMATRIX
        if not path.exists():
            progress = self._counted(kind, _("Looking at what the weights see in the training rows"))
            with timed("importance", lambda: self._whole_bytes):
                self._importance_notice = write_importance(
                    self._merged_model(kind), self._run, source, path, progress, self._cancelled
                )
        return path

    def _source_gguf(self, kind: Kind) -> tuple[Path, str]:
        """The merged model as a GGUF in its own 16-bit type, from which all others are made, and that type."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self._merged_model(kind), trust_remote_code=False)
        type_ = "f16" if str(config.dtype).endswith("float16") and "bfloat" not in str(config.dtype) else "bf16"
        if self._source is None:
            earlier = self._ggufs.get(type_)
            source = earlier or self._staging / f"source-{type_}.gguf"
            if earlier is None:
                self._convert(kind, source, type_)
            self._source = source
        return self._source, type_

    def _convert(self, kind: Kind, path: Path, type_: str, model: Path | None = None) -> None:
        from tuitune.export.gguf import convert

        assert self._llama_cpp is not None
        source = model or self._merged_model(kind)
        with timed(f"convert {type_}", lambda: self._whole_bytes):
            convert(
                source,
                path,
                type_,
                llama_cpp=self._llama_cpp,
                name=self._run.name,
                log=self._staging / "convert.log",
                progress=self._counted(kind, _("Converting to GGUF")),
                cancelled=self._cancelled,
            )

    def _try_in_ollama(self, kind: Kind, final: Path) -> tuple[str, ...]:
        from tuitune.export.ollama import tried

        self._progress(kind.name, _("Trying it in Ollama, where there is one"), None, None)
        prompt = next(iter(self._run.resolved().samples.prompts), "Hello!")
        return tried(final, prompt, self._staging, self._cancelled)

    def _make_ollama(self, kind: Kind, path: Path) -> tuple[str, ...]:
        from tuitune.export.ollama import write_modelfile

        path.mkdir()
        # The Modelfile first: a template that cannot be written as one is known before the long work.
        template_notices = write_modelfile(path, self._run)
        mark(path, self._run, kind.name)
        return (*self._make_gguf(kind, path / GGUF_NAME), *template_notices)


def file_name(run: Run, kind: Kind) -> str:
    """The name of an export's file or folder; what is uploaded is that of the kind it is made as."""
    if kind.of is not None:
        return file_name(run, kind.of)
    if kind.form == "gguf":
        return f"{run.name}-{kind.gguf}.gguf"
    return f"{run.name}-adapter.gguf" if kind.form == "adapter_gguf" else kind.name.replace(":", "-")


def _needs_converter(kind: Kind) -> bool:
    return kind.gguf is not None or kind.form == "adapter_gguf"


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, path)


def _require_ours(final: Path) -> None:
    """Refuse to take the place of a file or folder that is not an earlier export. Raises UnusableInput."""
    if os.path.lexists(final) and not is_ours(final):
        raise UnusableInput(
            "{path} exists and is not an export of tuitune's: move it away, or choose another folder.",
            path=one_line(final),
        )
