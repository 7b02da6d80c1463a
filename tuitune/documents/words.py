"""The terms that a text is found by: words, the parts of names, and pairs of characters where words have no spaces."""

import re
import unicodedata
from functools import lru_cache

_TERM = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\u0e00-\u0e7f\u1780-\u17ff"
    "\u1000-\u109f]+"
)
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


_OF_QUESTIONS = {
    *("a", "about", "an", "and", "any", "are", "as", "at", "be", "been", "by", "can", "could", "did", "do"),
    *("does", "for", "from", "get", "had", "has", "have", "how", "i", "if", "in", "into", "is", "it", "its"),
    *("me", "much", "many", "my", "no", "not", "of", "on", "or", "our", "should", "so", "than", "that", "the"),
    *("their", "them", "then", "there", "these", "they", "this", "to", "was", "we", "were", "what", "when"),
    *("where", "whether", "which", "who", "whom", "whose", "why", "will", "with", "would", "you", "your"),
}  # fmt: skip


def question_terms(question: str) -> list[str]:
    """The terms that a question is searched by: each once, without the words that any question has."""
    terms = list(dict.fromkeys(terms_of(question)))
    return [term for term in terms if term not in _STEMS_OF_QUESTIONS] or terms


def terms_of(text: str) -> list[str]:
    """The terms of a text, in order. Names such as `max_length` and `maxLength` are found by their parts too."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    terms: list[str] = []
    for word in _TERM.findall(text):
        if not word.isascii() and _UNSPACED.search(word):
            terms += _unspaced(word)
            continue
        lower = word.lower()
        terms.append(_stem(lower))
        if lower != word and word[1:] != lower[1:] and len(parts := _PARTS.findall(word)) > 1:
            terms += [_stem(part.lower()) for part in parts]
    return terms


def _unspaced(word: str) -> list[str]:
    """Of Japanese, Chinese, Thai and the like every pair of neighbours, and ideographs alone; other parts as words."""
    terms: list[str] = []
    at = 0
    for run in _UNSPACED.finditer(word):
        if run.start() > at:
            terms.append(_stem(word[at : run.start()].lower()))
        letters = run[0]
        terms += [letters[place : place + 2] for place in range(len(letters) - 1)] or [letters]
        if len(letters) > 1:
            terms += [letter for letter in letters if "\u3400" <= letter <= "\u9fff"]
        at = run.end()
    if at < len(word):
        terms.append(_stem(word[at:].lower()))
    return terms


@lru_cache(200_000)
def _stem(word: str) -> str:
    """The word without the endings that English puts on most: a question seldom uses the text's own forms."""
    if len(word) <= 3 or not word.isascii():
        return word
    for ending, replacement in (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)] + replacement
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


_STEMS_OF_QUESTIONS = {_stem(word) for word in _OF_QUESTIONS}
