"""One tar of an export that is a folder, and parts of an export for slow links, beside the export itself."""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from tuitune.atomic import publish
from tuitune.errors import TuituneError, UnusableInput, explain
from tuitune.export import place
from tuitune.export.kinds import Cancelled, ExportOptions
from tuitune.export.sums import FILE, is_our_tar, line_of, sum_file, tar_file, write_sums, write_tar
from tuitune.language import _
from tuitune.text import one_line

_MOST_PARTS = 999
_CHUNK_BYTES = 1 << 22


def parts_folder(export: Path) -> Path:
    """Where the parts of an export lie: of the file, or of the tar of a folder."""
    whole = tar_file(export) if export.is_dir() else export
    return whole.with_name(f"{whole.name}.parts")


def is_our_parts(folder: Path) -> bool:
    """Whether a folder holds parts of an export and nothing else."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    name = folder.name.removesuffix(".parts")
    of_ours = re.compile(rf"{re.escape(name)}\.(?:part-\d{{3}}|sha256)|{FILE}")
    names = os.listdir(folder)
    return FILE in names and all(of_ours.fullmatch(name) for name in names)


def require_own_places(export: Path, options: ExportOptions, *, is_folder: bool) -> None:
    """Refuse where the tar or the parts would take the place of something else. Raises UnusableInput."""
    tar = tar_file(export)
    parts = (tar if is_folder else export).with_name(f"{(tar if is_folder else export).name}.parts")
    for wanted, path, ours in (
        (options.tar and is_folder, tar, is_our_tar),
        (options.split_bytes, parts, is_our_parts),
    ):
        if wanted and os.path.lexists(path) and not ours(path):
            raise UnusableInput(
                "{path} exists and is not an export of tuitune's: move it away, or choose another folder.",
                path=one_line(path),
            )


def pack(
    export: Path,
    options: ExportOptions,
    staging: Path,
    progress: Callable[[str], None],
    cancelled: Callable[[], bool],
) -> tuple[str, ...]:
    """Write the tar and the parts that are wanted, in place of earlier ones, which are removed in any case.

    The export is there already, so what could not be written is a notice. Raises Cancelled.
    """
    tar, parts = tar_file(export), parts_folder(export)
    if is_our_tar(tar):
        for old in (sum_file(tar), tar):
            old.unlink(missing_ok=True)
    if is_our_parts(parts):
        shutil.rmtree(parts)
    whole = export
    try:
        if export.is_dir() and (options.tar or options.split_bytes):
            progress(_("Writing it as one tar"))
            place.require_space(export.parent, place.size(export) * (2 if options.split_bytes else 1), _("The tar"))
            whole = staging / tar.name
            write_tar(export, whole, cancelled)
        if options.split_bytes:
            progress(_("Writing it in parts"))
            staged = staging / parts.name
            place.require_space(export.parent, place.size(whole), _("The parts"))
            split(whole, staged, options.split_bytes, cancelled)
            publish(staged, parts)
        if options.tar and export.is_dir():
            sums = write_sums(whole, cancelled)
            publish(whole, tar)
            publish(sums, sum_file(tar))
    except Cancelled:
        raise
    except (TuituneError, OSError) as error:
        reason = one_line(explain(error), max_length=300)
        if options.split_bytes:
            return (_("The export is whole, but no parts of it was written: {reason}", reason=reason),)
        return (_("The export is whole, but no tar of it was written: {reason}", reason=reason),)
    return ()


def split(whole: Path, folder: Path, part_bytes: int, cancelled: Callable[[], bool]) -> None:
    """Write a file into the new `folder` as parts of so many bytes, with their SHA-256 sums and that of the whole.

    Raises TuituneError where there would be too many; Cancelled, OSError.
    """
    size = whole.stat().st_size
    if size > part_bytes * _MOST_PARTS:
        raise TuituneError(
            "{file} would be in more than {most} parts: give --split a larger size.",
            file=one_line(whole.name),
            most=_MOST_PARTS,
        )
    folder.mkdir()
    digest, lines = hashlib.sha256(), []
    with whole.open("rb") as file:
        for number in range(1, -(-size // part_bytes) + 1):
            part, of_part = folder / f"{whole.name}.part-{number:03}", hashlib.sha256()
            left = part_bytes
            with part.open("wb") as written:
                while left and (chunk := file.read(min(_CHUNK_BYTES, left))):
                    if cancelled():
                        raise Cancelled
                    written.write(chunk)
                    of_part.update(chunk)
                    digest.update(chunk)
                    left -= len(chunk)
            lines.append(line_of(of_part.hexdigest(), part.name))
    (folder / FILE).write_text("".join(lines), encoding="utf-8")
    (folder / f"{whole.name}.sha256").write_text(line_of(digest.hexdigest(), whole.name), encoding="utf-8")
