"""Which files are documents, by their names."""

from pathlib import Path

_MARKDOWN = {".md", ".markdown", ".mdown", ".mkd", ".qmd"}
_HTML = {".html", ".htm", ".xhtml"}
_PLAIN = {".txt", ".text", ".log", ".rst", ".adoc", ".org", ".tex", ".csv", ".tsv", ".json", ".jsonl", ".srt", ".vtt"}
_SOURCE = {
    *(".py", ".pyi", ".js", ".jsx", ".mjs", ".cjs", ".ts", ".tsx", ".java", ".kt", ".kts", ".c", ".h", ".cc"),
    *(".cpp", ".cxx", ".hpp", ".hh", ".cs", ".go", ".rs", ".rb", ".php", ".swift", ".scala", ".m", ".mm", ".r"),
    *(".jl", ".lua", ".pl", ".pm", ".sh", ".bash", ".zsh", ".fish", ".ps1", ".sql", ".proto", ".yaml", ".yml"),
    *(".toml", ".ini", ".cfg", ".conf", ".tf", ".css", ".scss", ".less", ".vue", ".svelte", ".dart", ".ex"),
    *(".exs", ".erl", ".hs", ".ml", ".clj", ".el", ".vim", ".cmake", ".gradle", ".groovy", ".zig", ".nim"),
    *(".f90", ".asm", ".s", ".cu", ".tcss", ".jinja"),
}  # fmt: skip
_NAMED = {"makefile", "dockerfile", "readme", "license", "changelog", "contributing", "authors", "notice"}


def is_document(path: Path) -> bool:
    """Whether a file of a folder is one, by its name; a file that is named itself is read whatever it is called."""
    return kind_of(path) is not None or path.name.lower() in _NAMED


def kind_of(path: Path) -> str | None:
    """`pdf`, `html`, `markdown`, `python`, `source` or `text`; None where the name tells nothing."""
    suffix = path.suffix.lower()
    if suffix == ".pdf":
        return "pdf"
    if suffix in _HTML:
        return "html"
    if suffix in _MARKDOWN:
        return "markdown"
    if suffix in (".py", ".pyi"):
        return "python"
    return "source" if suffix in _SOURCE else "text" if suffix in _PLAIN else None
