"""A model's reply -> labels, or the reason why it holds none.

Reasons: empty, refusal, reasoning (leaked), no_pattern (the model says that it found nothing), echo (of the prompt),
marks, wrong_language, too_long, bad_json, and bad_rules of structured replies.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from autointerp.errors import ReplyError
from autointerp.fence import restored
from autointerp.llm.structured import answer, json_in, unfenced

WORD_CHARS = 16  # of a word in a label, on average at most
ECHO_WORDS = 5  # so many words in a row of the prompt are a quotation, not a label


@dataclass(frozen=True)
class Candidate:
    """A label, or why a proposal is none."""

    label: str | None
    reason: str | None = None
    rules: str | None = None  # JSON of the structured form, where there is one


@dataclass(frozen=True)
class Given:
    """What a reply may not simply repeat."""

    texts: Sequence[str]  # all of the prompt
    answers: Sequence[str] = ()  # its example answers

    def shown(self) -> set[str]:
        """The words that the data show a feature to fire on, lower case: these may be labels, whatever they say.

        Marked ones, the lines of a list of tokens, and tokens with an activation; of the last text, which holds the
        data, because the words of an example are the first that a small model repeats.
        """
        return {word.strip().lower() for text in self.texts[-1:] for found in _SHOWN.findall(text) for word in found}


_SHOWN = re.compile(r"\*\*(.+?)\*\*|^- (\S+(?: \S+)?)$|^([^\t\n]+)\t[1-9]", re.MULTILINE)

def labels_schema(wanted: int, max_words: int) -> dict[str, Any]:
    """The schema of a reply with up to so many labels."""
    label = {"type": "string", "maxLength": WORD_CHARS * max_words}
    return {
        "type": "object",
        "properties": {"labels": {"type": "array", "items": label, "minItems": 1, "maxItems": wanted}},
        "required": ["labels"],
        "additionalProperties": False,
    }


def labels(reply: str, given: Given, wanted: int, max_words: int) -> list[Candidate]:
    """Up to `wanted` candidates: from {"labels": [...]}, a JSON list, a numbered list, or plain text (one label).

    Proposals that are no label are among them with their reason. Raises ReplyError where not one is a label.
    """
    found: dict[str, Candidate] = {}
    texts, entries = _proposals(answer(reply), wanted)
    for text in texts:
        try:
            label = clean_label(text, given, max_words, entries)
            found.setdefault(label.casefold(), Candidate(label))
        except ReplyError as problem:
            found.setdefault(f"\n{text}", Candidate(None, problem.reason))
    candidates = list(found.values())[:wanted]
    if not any(candidate.label for candidate in candidates):
        raise ReplyError(candidates[0].reason or "empty" if candidates else "empty", reply[:80])
    return candidates


def _proposals(text: str, wanted: int) -> tuple[list[str], bool]:
    """What a reply proposes; True where these are the entries of JSON."""
    value = json_in(text)
    if value is not None:
        return list(_texts(value)), True
    text = unfenced(text)
    lines = [match[1] for line in text.splitlines() if (match := _ITEM.match(line.strip()))]
    return lines if wanted > 1 and len(lines) > 1 else [text], False


_ITEM = re.compile(r"(?:\d{1,2}[.):]|[-*•])\s+(.+)")


def _texts(value: Any, depth: int = 4) -> Iterable[str]:
    """The labels in decoded JSON: lists and objects are searched, other keys than label(s) are passed over."""
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, list):
        for entry in value:
            yield from _texts(entry, depth - 1)
    elif depth and isinstance(value, dict):
        for key, entry in value.items():
            if key.lower() in {"label", "labels", "answer", "explanation"}:
                yield from _texts(entry, depth - 1)


_REFUSAL = re.compile(
    r"^(i['’]?m|i am) (sorry|unable|not able|afraid)\b|^sorry[,.!]|^(my )?apolog(ies|y)[,.!]|^i apologi[sz]e|"
    r"^i (can(not|['’]t| ?not)|could ?n[o'’]t|won['’]t|will not|do(n['’]t| not) (know|have|feel|think|see enough))|"
    r"^(unfortunately|as an ai|as a (large )?language model)\b|^i must (decline|refuse)",
    re.IGNORECASE,
)
_THINKING = re.compile(
    r"^(let (me|us) (see|look|think|analy|find|start|examine|consider|identify|go|begin|break)|"
    r"let['’]s (see|look|think|analy|find|start|examine|consider|break|go)|(okay|ok|alright|hmm+|wait|well)[,.:]|"
    r"first(ly)?,? (i|we|let)\b|so,? (the|we|i|it|let)\b|looking at|"
    r"(in order )?to (determine|find|identify) (what|the|a)|"
    r"we (need|have|are|must|can)\b|i (need|see|think|will|notice|should|would|have to|believe|am going|['’]ll)\b|"
    r"i['’](ll|m going)|the (user|task|prompt|question|instructions?)\b.*\b(is|are|want|ask|say|give|provide)|"
    r"(based on|from|given|according to) (the|these|this)\b.*\b(excerpt|example|data|text|passage|list|mark)|"
    r"(step|method) \d|analysis\b.*:|reasoning\b|thinking\b|here (is|are) (my|the) (thinking|analysis|reasoning))",
    re.IGNORECASE,
)
# An entry of JSON that begins like the above may be a label ("we must: appeals", "sorry, apologies"): it is none where
# it speaks of the task.
_TASK = re.compile(
    r"\b(excerpts?|marked|marks|label(s|l?ed)?|features?|neurons?|patterns?|tokens?|words?|examples?|passages?|answer|task"
    r"|prompt|user|json|(in )?common|shared?|these|help|assist|comply|continue|provide|determine|identify|analy[sz]e"
    r"|request|content|discuss)\b",
    re.IGNORECASE,
)
_NOTHING = re.compile(
    r"^(there (is|are|seems to be) )?(no|not any|without( any)?)( \w+){0,3} "
    r"(pattern|theme|meaning|concept|feature|commonality|connection|link|label|idea|answer|relation(ship)?)s?\b|"
    r"^(the )?(marked )?(words?|tokens?|excerpts?|texts?|patterns?|features?)? ?(is|are|seems?|appears?)? ?"
    r"(unclear|unknown|undetermined|indeterminate|n/?a|none|null|nothing( in common)?|inconclusive|unspecified|"
    r"not (clear|sure|enough|applicable|specified|available)\b.*)$|"
    r"^(an? )?(various|different|diverse|miscellaneous|assorted|random|mixed|unrelated|general|generic|arbitrary|"
    r"(wide )?(variety|range|mix|collection|set|assortment) of)( (and|or|of|various|different|diverse|random|unrelated|"
    r"common|english|tokens?|words?|texts?|topics?|contexts?|excerpts?|phrases?|concepts?|things|subjects?|patterns?|"
    r"themes?|terms?|content))*$|"
    r"^none of (the|these) .*\b(words?|tokens?|excerpts?)\b.*\b(share|have|show|fit)|"
    r"^(an? )?(unclear|unknown|ambiguous|inconsistent) (pattern|theme|meaning|concept|feature)s?$|"
    r"^(common|frequent|frequently used|marked|specific|certain|these|the) ?(english )?"
    r"(tokens?|words?|text|excerpts?|phrases?)$",
    re.IGNORECASE,
)
_OF_THE_PROMPT = {
    "excerpts", "excerpt", "words", "words or idea", "idea", "the excerpts", "marked words", "label", "labels", "data",
    "label 1", "a label", "your label", "first label", "string", "text", "feature",
}  # fmt: skip
_PREFIX = re.compile(
    r"^(sure[!,.]\s*)?((the |my |final |best |possible |suggested )*(label|answer|explanation)s?( \d)?( is| would be)?|"
    r"words or idea|(the )?(marked )?(words?|phrases?|excerpts?|tokens?)?( that)?"
    r"( (all )?(have in common|share|are|is))?( that)?|here (is|are) [\w\s]{1,40}|"
    r"explanation of [\w\s]{1,30} behavior)\s*:\s*|^sure[!,.]\s*|^(the |my )?(final |best )?(label|answer) is:?\s+|"
    r"^(this|the) (feature|neuron|unit|latent)( \w+)? (fires|activates|responds|is active|lights up|looks|detects) ?"
    r"(on|for|to|when|in)?( the)?:?\s+",
    re.IGNORECASE,
)


def clean_label(text: str, given: Given, max_words: int, entry: bool = False) -> str:
    """The label in one proposal: its first line that says something, without wrapping.

    entry  it is an entry of JSON: a label as it stands, not a line of a reply that may be anything
    Raises ReplyError with the reason when that is no label.
    """
    line, literal = _first(text, entry)
    if not any(c.isalnum() for c in line):
        # A feature of a punctuation mark may be labelled with the mark, where it is said to be a label.
        if (literal or entry) and (line.strip(" .…") or line == "."):
            return restored(line)
        raise ReplyError("empty")
    shown = given.shown()
    if line.lower() not in shown and not (literal and len(line.split()) <= 4):
        for pattern, reason in ((_REFUSAL, "refusal"), (_NOTHING, "no_pattern"), (_THINKING, "reasoning")):
            if pattern.search(line) and (not entry or pattern is _NOTHING or _TASK.search(line)):
                raise ReplyError(reason)
        if line.lower() in _OF_THE_PROMPT:
            raise ReplyError("echo")
    if line.count("**") > 1 or ("**" in line and not entry):
        raise ReplyError("marks")
    if line.lower() not in shown and _is_echo(line, given):
        raise ReplyError("echo")
    if foreign(line, given.texts):
        raise ReplyError("wrong_language")
    if len(line.split()) > max_words:
        raise ReplyError("too_long")
    return restored(line)


def _first(text: str, entry: bool) -> tuple[str, bool]:
    """The first line that is more than a heading, unwrapped; True where the whole of it was in quotation marks."""
    lines = ["".join(c for c in line if c.isprintable()) for line in text.splitlines()]
    for raw in lines:
        line = _unwrapped(raw.strip()) if entry else raw.lstrip(" \t-*•#").rstrip(" \t*")
        bare = _unwrapped(_PREFIX.sub("", line).strip(" \t" if entry else " \t*"))
        bare = re.sub(r"^\d{1,2}[.)]\s+", "", bare)
        stopped = bare if re.search(r"\.\.$|\b\w\.\w\.$", bare) else bare.removesuffix(".")
        inner = _unquoted(stopped or bare)
        if inner.strip("\"'“”") or (entry and inner):
            return inner, inner != stopped
    return "", False


def _unwrapped(line: str) -> str:
    """The line without bold or code marks around the whole of it; a mark that has no partner is part of the label."""
    for mark in ("**", "`"):
        inner = line[len(mark) : -len(mark)]
        if len(line) > 2 * len(mark) and line.startswith(mark) and line.endswith(mark) and mark not in inner:
            return inner.strip()
    return line


def _unquoted(line: str) -> str:
    """The line without quotation marks around the whole of it; marks around single words stay."""
    for opening, closing in (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("«", "»"), ("「", "」")):
        inner = line[1:-1]
        if len(line) > 2 and line[0] == opening and line[-1] == closing and not {opening, closing} & set(inner):
            return inner.strip(" .") or inner
    return line


def _is_echo(line: str, given: Given) -> bool:
    plain = _plain(line)
    if plain in {_plain(text) for text in given.answers}:
        return bool(plain)
    if len(plain.split()) < ECHO_WORDS:
        return False
    return any(f" {plain} " in f" {_plain(text)} " for text in given.texts)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def foreign(label: str, texts: Iterable[str]) -> bool:
    """True for a label all of whose letters are of scripts that occur neither in these texts nor in English.

    A model that drifts into its mother tongue names an idea that no simulator of ours reads; a label in the script of
    the corpus is fine, and so is one that quotes it.
    """
    own = {_script(c) for c in label if c.isalpha()}
    if not own or "LATIN" in own:
        return False
    return not own & {_script(c) for text in texts for c in set(text) if c.isalpha()}


_EAST_ASIAN = {"CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO"}


def _script(character: str) -> str:
    """The script of a letter, by the first word of its Unicode name."""
    name = unicodedata.name(character, "UNKNOWN").split(" ")[0].split("-")[0]
    return "CJK" if name in _EAST_ASIAN else "LATIN" if name in {"FULLWIDTH", "MODIFIER", "FEMININE"} else name
