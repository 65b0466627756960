"""The data model: one record per table, one line per field.

The line beside a field is also the comment on its column in the database (`autointerp sql "FROM duckdb_columns()"`).
Splits are the words explain, select, score; lists over splits are in that order. NULL means "there is none", never 0.
A passage's positions count its tokens from 0; sparse activations are two lists of one length, positions ascending.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar, Literal, get_type_hints

Split = Literal["explain", "select", "score"]
Status = Literal["ok", "unparsed", "refused", "failed", "skipped"]
Stratum = Literal["A", "B", "C"]


class Row:
    """Base of all records; `table` names the table that holds them."""

    table: ClassVar[str]

    @classmethod
    def comments(cls) -> dict[str, str]:
        """Column name -> the sentence that says what it holds."""
        hints = get_type_hints(cls, include_extras=True)
        return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}


@dataclass(frozen=True, slots=True)
class Run(Row):
    """What was asked, with which code."""

    table: ClassVar[str] = "run"
    run_id: Annotated[str, "hash of settings, prompts and code version"]
    name: Annotated[str, "run.name of the settings"]
    settings: Annotated[str, "all settings as JSON, defaults filled in"]
    code_version: Annotated[str, "version of autointerp"]
    collection_id: Annotated[str, "the collection that these settings ask for"]
    explainer_ids: Annotated[list[str], "explainers that these settings ask for, and people whose labels joined them"]
    simulator_id: Annotated[str, "simulator that these settings ask for"]
    scorer_id: Annotated[str, "scoring design that these settings ask for"]
    features: Annotated[list[int] | None, "selected features; NULL until the collection exists"]
    dictionary: Annotated[str, "name of the dictionary; a configuration with several has one run for each"]
    place: Annotated[int, "place of the dictionary in the configuration, from 0"]
    chooser_id: Annotated[str | None, "simulator whose grades on select choose the label; NULL: simulator_id"] = None
    judge_ids: Annotated[list[str] | None, "judges that these settings ask for; NULL where there are none"] = None
    detector_id: Annotated[
        str | None, "judge whose detection_f1 on select chooses the label, before r_rank; NULL: r_rank alone"
    ] = None
    grouping_id: Annotated[
        str | None, "categories of its chosen labels, all dictionaries together; NULL: not grouped"
    ] = None

    def grader(self, split: Split) -> str:
        """The id of the simulator that grades on a split."""
        return self.chooser_id if split == "select" and self.chooser_id is not None else self.simulator_id


@dataclass(frozen=True, slots=True)
class Stage(Row):
    """One execution of a stage: how long it took and how it ended. The only table that a second run adds to."""

    table: ClassVar[str] = "stage"
    run_id: Annotated[str, "the run that was asked for"]
    stage: Annotated[str, "collect, import, relate, lens, explain, simulate, score, judge, categories"]
    seconds: Annotated[float, "wall-clock time"]
    tokens: Annotated[int, "tokens that the stage processed: subject tokens, or passage tokens predicted"]
    ok: Annotated[int, "units of work that ended well"]
    failed: Annotated[str, "JSON object: reason -> number of units that did not"]
    peak_memory_mb: Annotated[float, "largest resident memory of the process so far, MB"]


@dataclass(frozen=True, slots=True)
class Collection(Row):
    """Which subject, dictionary, corpus, splits and keeper settings; the hash of them is collection_id."""

    table: ClassVar[str] = "collection"
    collection_id: Annotated[str, "hash of everything that determines the kept rows"]
    subject: Annotated[str, "model whose activations were read"]
    hookpoint: Annotated[str, "what was encoded: full module path (its output, or `:input`) and transforms, `|center`"]
    dictionary: Annotated[str, "name of the dictionary, the prefix of its feature ids"]
    architecture: Annotated[str, "topk, standard"]
    width: Annotated[int, "number of features, dead ones included"]
    corpus: Annotated[str, "corpus.source of the settings"]
    settings: Annotated[str, "JSON of the settings that decide what is kept"]
    context_tokens: Annotated[int, "tokens that the subject saw at once"]
    passage_tokens: Annotated[int, "tokens of a full passage"]
    n_tokens: Annotated[list[int], "usable token positions per split (masked ones excluded)"]
    n_passages: Annotated[list[int], "passages per split"]
    n_documents: Annotated[list[int], "documents per split"]
    n_panel: Annotated[list[int], "panel passages per split"]
    n_masked: Annotated[int, "positions masked: special tokens and attention sinks"]
    whole_id: Annotated[str, "collection that this is a part of; itself where it is whole"]
    shards: Annotated[list[str] | None, "shards of the corpus that it covers, as i/n; NULL where it is whole"]


@dataclass(frozen=True, slots=True)
class Fit(Row):
    """How well a dictionary encodes its subject: what the check before collection found. No row: it was off."""

    table: ClassVar[str] = "fit"
    collection_id: Annotated[str, "collection that it was asked for, the whole of it"]
    outcome: Annotated[Literal["fits", "misfits", "unchecked"], "unchecked where nothing was trained to reconstruct"]
    fvu: Annotated[float | None, "share of the variance that is not explained as configured; NULL where unchecked"]
    l0: Annotated[float | None, "features that fire per usable token; NULL where unchecked"]
    n_tokens: Annotated[int, "usable positions of the sample"]
    n_masked: Annotated[int, "positions of the sample that do not count: special tokens and attention sinks"]
    reasons: Annotated[list[str], "why it does not fit; empty where it does"]
    notes: Annotated[list[str], "what is in order and worth knowing, such as folded norms"]
    trials: Annotated[str, "JSON: every hypothesis tried {what, hookpoint, fvu, l0}, best first"]


@dataclass(frozen=True, slots=True)
class Document(Row):
    """A text with its split."""

    table: ClassVar[str] = "document"
    collection_id: Annotated[str, "collection that read it"]
    document_id: Annotated[str, "first 16 hex digits of the md5 of the text; duplicates share one"]
    source: Annotated[str, "file it came from, with line or row number where the file holds many"]
    split: Annotated[Split, "md5(document_id + salt): explain 40 %, select 20 %, score 40 %"]
    n_tokens: Annotated[int, "tokens read from it, masked ones included"]


@dataclass(frozen=True, slots=True)
class Passage(Row):
    """A kept window of a document."""

    table: ClassVar[str] = "passage"
    collection_id: Annotated[str, "collection that kept it"]
    passage_id: Annotated[int, "hash of (document, start): 63 bits"]
    document_id: Annotated[str, "document it was cut from"]
    split: Annotated[Split, "split of its document"]
    start: Annotated[int, "index of its first token within the document"]
    tokens: Annotated[list[int], "token ids, at most passage_tokens; in the database LEB128 bytes"]
    masked: Annotated[list[int], "positions that do not count: special tokens and attention sinks"]


@dataclass(frozen=True, slots=True)
class Token(Row):
    """A token of the subject's vocabulary that occurs in a kept passage."""

    table: ClassVar[str] = "token"
    collection_id: Annotated[str, "collection that met it"]
    token_id: Annotated[int, "id in the subject's vocabulary"]
    piece: Annotated[bytes, "the bytes it stands for; several tokens may be needed to complete a character"]
    n_explain: Annotated[int, "usable occurrences in the explain split (exact)"]


@dataclass(frozen=True, slots=True)
class Feature(Row):
    """Exact counters of one feature over the whole pass."""

    table: ClassVar[str] = "feature"
    collection_id: Annotated[str, "collection that counted it"]
    feature: Annotated[int, "index within the dictionary"]
    feature_id: Annotated[str, "dictionary/index, accepted by every command"]
    n_tokens: Annotated[list[int], "firing token positions per split"]
    n_passages: Annotated[list[int], "firing passages per split"]
    n_documents: Annotated[list[int], "firing documents per split"]
    sum: Annotated[list[float], "sum of activations per split (accumulated in fixed point, 2^-20)"]
    max: Annotated[list[float], "largest activation per split; 0 where it never fired"]
    histogram: Annotated[list[int], "firing tokens per bin of log2(activation): bin i holds [2^(i/2-8), 2^(i/2-7.5))"]
    top_tokens: Annotated[list[int], "token ids with the most activation in kept explain passages, heaviest first"]


@dataclass(frozen=True, slots=True)
class Excerpt(Row):
    """A firing passage kept for a feature. Strata A are drawn from why = sample, never from the top list."""

    table: ClassVar[str] = "excerpt"
    collection_id: Annotated[str, "collection that kept it"]
    feature: Annotated[int, "index of the feature"]
    split: Annotated[Split, "split of the passage"]
    why: Annotated[Literal["top", "sample"], "top: strongest by peak; sample: uniform, by smallest keyed hash"]
    rank: Annotated[int, "0 is the strongest (top) or the smallest hash (sample)"]
    passage_id: Annotated[int, "the passage"]
    peak: Annotated[float, "largest activation of the feature in the passage"]
    positions: Annotated[list[int], "positions where the feature fires"]
    activations: Annotated[list[float], "activation at each of them, > 0"]


@dataclass(frozen=True, slots=True)
class Panel(Row):
    """A background passage with all activations of the dictionary; a feature absent from it was silent."""

    table: ClassVar[str] = "panel"
    collection_id: Annotated[str, "collection that kept it"]
    split: Annotated[Split, "split of the passage"]
    passage_id: Annotated[int, "the passage; a uniform sample of the split by smallest keyed hash"]
    features: Annotated[list[int], "firing features, one entry per firing (feature, position), ascending"]
    positions: Annotated[list[int], "position of each entry"]
    activations: Annotated[list[float], "activation of each entry, > 0"]


@dataclass(frozen=True, slots=True)
class Neighbour(Row):
    """A feature that is near another one of the same dictionary."""

    table: ClassVar[str] = "neighbour"
    collection_id: Annotated[str, "collection that the firings were counted in"]
    feature: Annotated[int, "index of the feature"]
    kind: Annotated[Literal["firing", "decoder"], "firing: on the same tokens; decoder: rows alike"]
    rank: Annotated[int, "0 is the nearest"]
    other: Annotated[int, "index of the neighbour"]
    similarity: Annotated[float, "cosine, of firing patterns or of decoder rows; above 0"]


@dataclass(frozen=True, slots=True)
class Lens(Row):
    """The logit lens of one feature: tokens that its decoder row makes likelier, and less likely."""

    table: ClassVar[str] = "lens"
    collection_id: Annotated[str, "collection whose subject and dictionary were read"]
    feature: Annotated[int, "index of the feature"]
    promoted: Annotated[list[str], "tokens of the largest logits, largest first; tokens that are no text left out"]
    promoted_by: Annotated[list[float], "logit of each, standard deviations above the mean of all tokens that are text"]
    suppressed: Annotated[list[str], "tokens of the smallest logits, smallest first"]
    suppressed_by: Annotated[list[float], "logit of each, in the same unit; negative"]


@dataclass(frozen=True, slots=True)
class Explanation(Row):
    """One candidate label, or why there is none."""

    table: ClassVar[str] = "explanation"
    explanation_id: Annotated[str, "hash of feature, collection, explainer (prompt, model, parameters) and draw"]
    collection_id: Annotated[str, "collection whose excerpts were shown"]
    feature: Annotated[int, "index of the feature"]
    explainer_id: Annotated[str, "hash of method, prompt, model and parameters"]
    method: Annotated[
        str, "as in explainer.methods: mined, marks, marks:my-prompt ...; revise-1 ...; of people human, imported:..."
    ]
    model: Annotated[str | None, "model asked; NULL where none was"]
    draw: Annotated[int, "0 is the first candidate of this explainer for this feature"]
    status: Annotated[Status, "ok, or why there is no label"]
    label: Annotated[str | None, "the label; NULL unless ok"]
    reason: Annotated[str | None, "machine-readable reason; NULL when ok"]
    call_id: Annotated[str | None, "the request and reply behind it; NULL where no model was asked"]
    rules: Annotated[str | None, "the structured form as JSON, as in rules.py; NULL where there is none"] = None
    excerpts: Annotated[int | None, "passages shown to a model; fewer where its context is short"] = None
    author: Annotated[str | None, "of a label from outside: whoever says so; NULL: an explainer made it"] = None
    made_at: Annotated[datetime | None, "of such a label: when it was made (UTC); NULL where nobody said"] = None


@dataclass(frozen=True, slots=True)
class OutputLabel(Row):
    """What a feature makes the subject say, or why nothing is said of it. Never a candidate, and graded apart."""

    table: ClassVar[str] = "output_label"
    output_id: Annotated[str, "hash of feature, collection, labeller and KL; `explanation_id` of its rows in score"]
    collection_id: Annotated[str, "collection whose subject and dictionary were read"]
    feature: Annotated[int, "index of the feature"]
    labeller_id: Annotated[str, "hash of method, prompt, model and everything that decides the evidence"]
    method: Annotated[
        str, "vocab-proj: by the logit lens; token-change: by turning it up; output: a model was shown both"
    ]
    model: Annotated[str | None, "model asked; NULL where none was"]
    kl: Annotated[float, "nats per token that turning it up cost; of the causal score that grades the label"]
    status: Annotated[Status, "ok, or why there is no label"]
    label: Annotated[str | None, "the label; NULL unless ok"]
    reason: Annotated[str | None, "machine-readable reason; NULL when ok"]
    promoted: Annotated[list[str], "words that the method found likelier, most first; the label is made of these"]
    suppressed: Annotated[list[str], "words that it found less likely, most first"]
    call_id: Annotated[str | None, "the request and reply behind it; NULL where no model was asked"]


@dataclass(frozen=True, slots=True)
class LabelEdit(Row):
    """What somebody said of a feature's label: a label from outside, or a vote. Never changed by what is made of it."""

    table: ClassVar[str] = "label_edit"
    edit_id: Annotated[str, "hash of all that was said; what is said again is not said twice"]
    feature_id: Annotated[str, "dictionary/index"]
    kind: Annotated[Literal["label", "up", "down"], "label: a label of theirs; up, down: a vote on one that is there"]
    label: Annotated[str, "the label's text"]
    method: Annotated[str, "human, or imported:... where another tool made the label"]
    model: Annotated[str | None, "model that the other tool asked; NULL where none is known"]
    author: Annotated[str, "whoever they say they are; may be empty"]
    made_at: Annotated[datetime | None, "when it was said (UTC); NULL where nobody said"]
    source: Annotated[str, "name of the file that it came in"]
    reason: Annotated[str | None, "why it cannot be graded: empty, too_long, unknown_feature ...; NULL where it can"]


@dataclass(frozen=True, slots=True)
class Draw(Row):
    """A passage in the scoring set of one label."""

    table: ClassVar[str] = "draw"
    explanation_id: Annotated[str, "the label under test"]
    scorer_id: Annotated[
        str, "scoring design (its seed, its sizes, and the simulator that claims hard negatives); +n: joined by n"
    ]
    split: Annotated[Split, "split the passage is from"]
    passage_id: Annotated[int, "the passage"]
    stratum: Annotated[Stratum, "A fires; B silent hard negative; C other silent"]
    kind: Annotated[
        str, "cell within the stratum: fires; claimed, token, neighbour, rival (B of another candidate); silent"
    ]
    population: Annotated[
        float, "passages of the split that the cell stands for; 0 for rival, which is for ranking only"
    ]
    weight: Annotated[float, "population over passages drawn from the cell"]
    panel: Annotated[
        int | None, "panel passages of the cell, which its population is the share of; NULL: it is exact"
    ] = None


@dataclass(frozen=True, slots=True)
class Simulation(Row):
    """Predicted activations of one passage under one label, or why none."""

    table: ClassVar[str] = "simulation"
    explanation_id: Annotated[str, "the label"]
    simulator_id: Annotated[str, "hash of the simulator and its parameters"]
    split: Annotated[Split, "split the passage is from"]
    passage_id: Annotated[int, "the passage"]
    status: Annotated[Status, "ok, or why there is no prediction"]
    reason: Annotated[str | None, "machine-readable reason; NULL when ok"]
    positions: Annotated[list[int] | None, "positions predicted above zero; NULL unless ok"]
    predicted: Annotated[list[float] | None, "prediction at each of them, in the simulator's own unit; NULL unless ok"]


@dataclass(frozen=True, slots=True)
class Judgement(Row):
    """What a judge says of one passage under one label, or why nothing."""

    table: ClassVar[str] = "judgement"
    explanation_id: Annotated[str, "the label"]
    judge_id: Annotated[str, "hash of the judge: kind, prompt, model and parameters"]
    scorer_id: Annotated[str, "scoring design whose scoring set the passage is from"]
    split: Annotated[Split, "split the passage is from"]
    passage_id: Annotated[int, "the passage"]
    kind: Annotated[Literal["detection", "fuzzing"], "what was asked: does it fire here; are the marks right"]
    stratum: Annotated[Stratum, "A fires; B silent, claimed by a candidate or with own tokens; C other silent"]
    status: Annotated[Status, "ok, or why there is no verdict"]
    reason: Annotated[str | None, "machine-readable reason; NULL when ok"]
    says: Annotated[bool | None, "that the label fits; NULL unless ok"]
    marked: Annotated[bool | None, "fuzzing: the marks were on firing tokens (true) or on silent ones; NULL: detection"]


@dataclass(frozen=True, slots=True)
class Score(Row):
    """One number for one label and split: value, interval, n, or why there is none."""

    table: ClassVar[str] = "score"
    score_id: Annotated[str, "hash of explanation, simulations, design and metric"]
    explanation_id: Annotated[str, "the label; for metrics of output labels an output_id"]
    collection_id: Annotated[str, "its collection"]
    feature: Annotated[int, "its feature"]
    split: Annotated[Split, "passages it was computed on"]
    simulator_id: Annotated[str, "who predicted, or judged"]
    scorer_id: Annotated[str, "scoring design"]
    metric: Annotated[
        str, "METRICS in grades.py; of judges detection_f1 ..., fuzzing_accuracy; METRICS in causal.py, causal_choice; "
        "of output labels METRICS in store_outputs.py"
    ]
    status: Annotated[Status, "ok, or why there is no value"]
    value: Annotated[float | None, "the number; NULL unless ok"]
    lo: Annotated[float | None, "lower end of the 95 % interval; NULL where the metric has none"]
    hi: Annotated[float | None, "upper end"]
    n: Annotated[int, "what it was computed over: passages; labels for null, null_p, discrimination; tests for null_q"]
    reason: Annotated[str | None, "machine-readable reason; NULL when ok"]


@dataclass(frozen=True, slots=True)
class Verdict(Row):
    """What is the matter with the chosen label of a feature, and what shows it."""

    table: ClassVar[str] = "verdict"
    verdict_id: Annotated[str, "hash of explanation, simulator, design and thresholds"]
    explanation_id: Annotated[str, "the label"]
    collection_id: Annotated[str, "its collection"]
    feature: Annotated[int, "its feature"]
    simulator_id: Annotated[str, "who predicted"]
    scorer_id: Annotated[str, "scoring design"]
    thresholds_id: Annotated[str, "hash of the section [verdict] that it was judged by"]
    verdict: Annotated[
        str | None,
        "good, too_broad, too_narrow, token_only, collides, no_pattern, dense, insufficient_data; NULL: no grade",
    ]
    reason: Annotated[str | None, "why there is none; NULL where there is a verdict"]
    evidence: Annotated[str, "JSON: the numbers that decided against their thresholds, and passages that show it"]


@dataclass(frozen=True, slots=True)
class Grouped(Row):
    """The category that a chosen label belongs to by its meaning, among the labels that it was grouped with."""

    table: ClassVar[str] = "category"
    grouping_id: Annotated[str, "hash of the labels that were grouped, the encoder, and the version of the grouping"]
    feature: Annotated[int, "the feature"]
    explanation_id: Annotated[str, "its chosen label"]
    category: Annotated[str, "name of the category: its most central labels"]
    similarity: Annotated[float, "cosine of the label to the mean of its category's different labels"]


@dataclass(frozen=True, slots=True)
class Certified(Row):
    """What a simulator was found able to do on planted truth: `autointerp certify --simulator`."""

    table: ClassVar[str] = "certificate"
    simulator_id: Annotated[str, "the simulator: its kind, model, prompt and parameters"]
    scorer: Annotated[str, "its kind"]
    model: Annotated[str | None, "model asked, or encoder"]
    prompt_hash: Annotated[str | None, "hash of its prompt; NULL where it has none"]
    date: Annotated[str, "ISO day"]
    code_version: Annotated[str, "version of autointerp"]
    certificate: Annotated[str, "the whole of it as JSON: gates, tables, figures"]


@dataclass(frozen=True, slots=True)
class Call(Row):
    """One request to a model, its reply and its cost. Asked again, the reply comes from here."""

    table: ClassVar[str] = "call"
    call_id: Annotated[str, "hash of provider, model, messages, parameters and draw"]
    provider: Annotated[str, "who ran the model: local, openai, anthropic"]
    base_url: Annotated[str | None, "the server asked; NULL where it is the provider's own"]
    model: Annotated[str, "model asked"]
    model_answered: Annotated[str, "model that answered, as the provider names it"]
    purpose: Annotated[str, "stage and unit it was made for"]
    draw: Annotated[int, "0 is the first sample of this request"]
    request: Annotated[str, "messages as JSON"]
    reply: Annotated[str, "the reply, raw"]
    status: Annotated[Status, "ok, or why the reply itself is none: refused, unparsed (cut off, empty)"]
    reason: Annotated[str | None, "machine-readable reason; NULL when ok"]
    repair_of: Annotated[str | None, "the call whose reply could not be used, where this asked for a better one"]
    input_tokens: Annotated[int | None, "tokens sent, cached ones included; NULL where the server does not count"]
    cached_tokens: Annotated[int | None, "of which the provider had cached"]
    output_tokens: Annotated[int | None, "tokens received"]
    usd: Annotated[float | None, "cost in dollars, 0 for a local model; NULL where the price is unknown"]
    ms: Annotated[float, "from the first try to the reply, retries included; for a batch its share of the batch"]
    tries: Annotated[int, "1 where the first attempt succeeded"]
    asked_at: Annotated[datetime, "when the reply came (UTC)"]


TABLES: tuple[type[Row], ...] = (
    Run, Stage, Collection, Fit, Document, Passage, Token, Feature, Excerpt, Panel, Neighbour, Lens,
    Explanation, OutputLabel, LabelEdit, Draw, Simulation, Judgement, Score, Verdict, Grouped, Certified, Call,
)  # fmt: skip
