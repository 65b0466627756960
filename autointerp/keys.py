"""What work is the same work: hashes of everything that determines a row.

Keys are chained: an explanation's key contains its collection's, a simulation's its explanation's. A changed setting,
prompt or weight file gives new keys and so new work beside the old; nothing is ever overwritten.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autointerp import __version__, corpus, prompts, streams
from autointerp.config import (
    PAID,
    DictionarySection,
    ModelSection,
    Settings,
    asked_of,
    fingerprint,
    method_of,
    model_of,
)
from autointerp.dictionary import Dictionary
from autointerp.explainers import Method, named
from autointerp.explainers.method import LENS_PART
from autointerp.explainers.revise import METHOD as REVISE
from autointerp.rows import Run
from autointerp.subject import Subject, resolve_model


@dataclass(frozen=True)
class Keys:
    """The ids that a configuration asks for."""

    dictionary: str  # its name
    collection_id: str
    hookpoint: str  # canonical text
    rounds: tuple["Round", ...]  # one more than explainer.rounds; the last holds everything
    simulator_id: str
    chooser_id: str | None  # the simulator whose grades on select choose the label, where it is another one
    judges: dict[str, str]  # kind -> judge_id
    detector_id: str | None  # the judge whose detection on select chooses the label, where one does

    @property
    def explainers(self) -> dict[str, str]:
        """Method -> explainer_id, those of all rounds."""
        return self.rounds[-1].explainers

    @property
    def scorer_id(self) -> str:
        """The scoring design of the grades that are printed."""
        return self.rounds[-1].scorer_id

    def run(self, settings: Settings, place: int) -> Run:
        """The run row: these ids beside the settings that they came from. `place`: which of their dictionaries."""
        text = settings.model_dump_json()
        asked = [text, __version__, self.collection_id, self.explainers, self.simulator_id, self.scorer_id]
        return Run(
            run_id=fingerprint(asked if not self.judges else [*asked, self.judges]),
            name=settings.run.name,
            settings=text,
            code_version=__version__,
            collection_id=self.collection_id,
            explainer_ids=sorted(self.explainers.values()),
            simulator_id=self.simulator_id,
            scorer_id=self.scorer_id,
            features=None,
            dictionary=self.dictionary,
            place=place,
            chooser_id=self.chooser_id,
            judge_ids=sorted(self.judges.values()) or None,
            detector_id=self.detector_id,
        )


@dataclass(frozen=True)
class Round:
    """What is compared on select after some rounds of revising: the explainers so far, and their scoring design."""

    explainers: dict[str, str]  # method -> explainer_id
    scorer_id: str

    def of(self, run: Run) -> Run:
        """A run cut down to this round."""
        return replace(run, explainer_ids=sorted(self.explainers.values()), scorer_id=self.scorer_id)


def keys(settings: Settings, sketch: Subject, section: DictionarySection, dictionary: Dictionary) -> Keys:
    """The ids of a configuration for one of its dictionaries; reads file names, sizes and prompts, loads nothing."""
    hookpoint = sketch.hookpoint(section.hookpoint or settings.subject.hookpoint)
    # What changes speed alone (device, batch size) stays out: it must not change rows.
    collected = {
        "subject": folder_fingerprint(resolve_model(settings.subject.model)),
        "hookpoint": hookpoint,
        "dtype": settings.subject.dtype,
        "prepend_bos": settings.subject.prepend_bos,
        "max_norm_ratio": settings.subject.max_norm_ratio,
        "dictionary": [dictionary.name, dictionary.identity],
        "corpus": corpus_fingerprint(settings.corpus.source),
        "corpus_read": corpus_read(settings),
        "collect": settings.collect.model_dump(exclude={"features"}),
        "seed": settings.run.seed,
    }
    if settings.subject.quantization != "none":  # what is not asked for leaves ids as they were before it could be
        collected["quantization"] = settings.subject.quantization
    if settings.subject.random:  # by run.seed, which is there already
        collected["random_subject"] = True
    if dictionary.wanted is not None:
        collected["features"] = dictionary.wanted.tolist()
    collection_id = fingerprint(collected)
    cfg = settings.simulator
    # A paid simulator sees the chosen label alone: who claims the hard negatives has chosen it on select.
    chooser_id = simulator_id(settings, cfg.claims) if cfg.paid else None
    predicts = simulator_id(settings, cfg.kind)
    judges = {str(kind): judge_id(settings, kind) for kind in settings.judge.kinds}
    detector_id = judges["detection"] if settings.judge.chooses else None
    chooser = chooser_id or predicts
    rounds = _rounds(settings, fingerprint([chooser, detector_id]) if detector_id else chooser)
    return Keys(dictionary.name, collection_id, hookpoint, rounds, predicts, chooser_id, judges, detector_id)


def _rounds(settings: Settings, chooser: str) -> tuple[Round, ...]:
    """Round by round: a revision is made from what the rounds before it scored on select (by `chooser`: whoever
    ranks the candidates), so its id holds theirs."""
    explainers = {method: explainer_id(settings, method) for method in settings.explainer.methods}
    found = [Round(explainers, scorer_id(settings, explainers))]
    for i in range(1, settings.explainer.rounds + 1):
        earlier = found[-1]
        asked = _asked(settings, REVISE, REVISE.prompt, settings.explainer)
        revised = fingerprint([asked, chooser, earlier.scorer_id, i])
        explainers = earlier.explainers | {f"{REVISE.name}-{i}": revised}
        found.append(Round(explainers, scorer_id(settings, explainers)))
    return tuple(found)


# Raised when the code of a stage changes what it would write for the same settings.
MINED_VERSION = 1  # those of methods that ask a model stand beside their code
SIMULATOR_VERSION = 2
SCORER_VERSION = 3
JUDGE_VERSION = 1


def shard_collection_id(whole: str, shards: Sequence[str]) -> str:
    """The id of a collection that holds these shards of the corpus (`i/n`, in any order) of a whole one."""
    return fingerprint([whole, sorted(shards)])


def explainer_id(settings: Settings, entry: str) -> str:
    """Hash of method, prompt, model and the parameters that the method uses, for an entry of `explainer.methods`."""
    cfg = settings.explainer
    if entry == "mined":
        return fingerprint(["mined", MINED_VERSION, cfg.max_words, settings.run.seed, cfg.candidates])
    return fingerprint(_asked(settings, *named(method_of(entry)), asked_of(cfg, entry)))


def _asked(settings: Settings, method: Method, prompt: str, who: ModelSection) -> list[object]:
    """What the labels of a method that asks a model depend on."""
    cfg, model = settings.explainer, model_of(who)
    used: list[object] = [
        method.name, method.version, cfg.max_words, settings.run.seed, model.provider, model.name,
        prompts.fingerprint(prompt), cfg.excerpts, cfg.samples, cfg.max_new_tokens,
    ]  # fmt: skip
    if model.base_url is not None:  # another server may serve another model under the same name
        used.append({"base_url": model.base_url})
    if not method.one_reply:
        used.append({"temperature": cfg.temperature})
    if cfg.logit_lens:
        used.append({"lens": prompts.fingerprint(LENS_PART)})
    return used


def simulator_id(settings: Settings, kind: str) -> str:
    """Hash of a kind of simulator and the parameters that it uses."""
    cfg = settings.simulator
    used: dict[str, object] = {"kind": kind}
    if kind in ("embedding", "lookup"):
        used |= {"encoder": cfg.encoder, "floor_quantile": cfg.floor_quantile}
    if kind in PAID:
        model = model_of(cfg)
        used |= {"provider": model.provider, "model": model.name, "prompt": prompts.fingerprint(cfg.prompt_file)}
        if model.base_url is not None:  # another server may serve another model under the same name
            used["base_url"] = model.base_url
    if kind == "logprob" and model.provider != "local":
        used |= {"tokenizer": cfg.tokenizer, "top_logprobs": cfg.top_logprobs}
    if kind == "chat":
        used |= {"per_call": cfg.per_call, "max_new_tokens": cfg.max_new_tokens}
    return fingerprint([used, SIMULATOR_VERSION])


def judge_id(settings: Settings, kind: str) -> str:
    """Hash of a kind of judge and everything that decides what it is asked."""
    cfg = settings.judge
    model = model_of(cfg)
    used: dict[str, object] = {
        "kind": kind, "provider": model.provider, "model": model.name, "prompt": prompts.fingerprint(cfg.prompt(kind)),
        "passages": cfg.passages, "per_call": cfg.per_call, "max_new_tokens": cfg.max_new_tokens,
    }  # fmt: skip
    if model.base_url is not None:  # another server may serve another model under the same name
        used["base_url"] = model.base_url
    return fingerprint([used, JUDGE_VERSION])


def scorer_id(settings: Settings, explainers: Mapping[str, str]) -> str:
    """Hash of the scoring design: whatever decides which passages are drawn.

    That is the simulator whose claims B is made of, but not the one that predicts, so that several are graded on the
    same passages; the selected features, whose labels the threshold is fitted on and nulls are taken from; and the
    explainers (method -> id), because the candidates of a feature are ranked on the union of their B.
    """
    claims = simulator_id(settings, settings.simulator.claims)
    design = [settings.scoring.model_dump(), claims, sorted(explainers.values()), settings.features.model_dump()]
    return fingerprint([*design, settings.run.seed, SCORER_VERSION])


def joined(scorer: str, n: int) -> str:
    """The design that compares the candidates of a feature on select with the first n labels that people gave it.

    A design's id holds its explainers, since another one makes another union of hard negatives. Labels of people come
    whenever they come: were they in it, each would make all grades of all features anew. So a label joins the
    candidates of its own feature only, under an id that begins with the design's; other features stay as they are.
    """
    return f"{scorer}+{n}" if n else scorer


def corpus_fingerprint(source: str) -> list[object]:
    """The text behind `corpus.source`: its files, or a dataset's name, configuration, split and commit.

    Raises CorpusError for a corpus that is not there, or a dataset without a commit that the hub cannot be asked for.
    """
    if not streams.is_stream(source):
        return [file_fingerprint(path) for path in corpus.files(source)]
    stream = streams.check(source)
    if stream.folder is None:
        return [streams.PREFIX, stream.name, stream.config, stream.split, stream.commit()]
    found = sorted(path for path in stream.folder.rglob("*") if path.is_file())
    return [streams.PREFIX, stream.config, stream.split, *(file_fingerprint(path) for path in found)]


def corpus_read(settings: Settings) -> list[object]:
    """What is taken from the text. A chat's template counts; where it is within tokenizer_config.json, the subject's
    fingerprint holds it."""
    cfg = settings.corpus
    read: list[object] = [cfg.tokens, cfg.messages_field if cfg.chat else cfg.text_field]
    if cfg.max_documents:
        read.append({"max_documents": cfg.max_documents})
    if cfg.chat:
        where = Path(resolve_model(settings.subject.model))
        templates = sorted(where.rglob("*.jinja")) if where.is_dir() else []
        read.append({"chat": [file_fingerprint(path) for path in templates]})
    return read


def file_fingerprint(path: Path) -> list[object]:
    """Name, size, and md5 of the first and last 64 KiB: enough to see that a text file changed, at any size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.md5(file.read(65_536))
        file.seek(max(size - 65_536, 0))
        digest.update(file.read(65_536))
    return [path.name, size, digest.hexdigest()]


def folder_fingerprint(where: str) -> object:
    """A model folder by its weight and configuration files; a hub name by itself."""
    folder = Path(where)
    if not folder.is_dir():
        return where
    wanted = sorted(p for p in folder.iterdir() if p.suffix in {".safetensors", ".json", ".bin", ".model"})
    return [file_fingerprint(path) for path in wanted]
