"""An attribution with the labels of a finished run: what the command prints, and its JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autointerp.attributed import Attribution, Check, Pair, by_feature
from autointerp.report import Reading, number
from autointerp.show import visible
from autointerp.tally import Bar

BAR = 12  # characters of the longest bar
PER_TOKEN = 3  # firings shown beside a token, and as many labelled ones after them
LABELLED = 5  # labelled features listed after those that contribute most
PARTS = {  # what contributes, as it is said
    "features": "features", "error": "reconstruction error", "bias": "the dictionary's bias",
    "masked": "masked positions",
}  # fmt: skip
LEAST = 0.7  # correlation with ablation below which contributions are called unreliable


@dataclass(frozen=True)
class Explained:
    """An attribution, and the labels by feature; a feature without a label is not in them."""

    found: Attribution
    dictionary: str
    labels: dict[int, str]


class Attributor:
    """The subject and one dictionary of a finished run, ready to attribute texts. Imports torch when it is made."""

    def __init__(self, reading: Reading) -> None:
        """Loads both. Raises a UserError where either is gone, or is not what was collected with."""
        from autointerp import attribute, probe, targets

        place = targets.collected(reading)
        self.settings, self.hookpoint = reading.settings, place.keys.hookpoint
        self.subject = attribute.for_attribution(reading.settings)
        self.dictionary = probe.completed(reading.settings, self.subject, place.dictionary, self.hookpoint)
        self.labels = {label.feature: label.label for label in reading.labels if label.label is not None}

    def explain(self, text: str, bar: Bar, target: str | None, position: int | None, checked: int) -> Explained:
        """The text attributed; arguments as of `attribute.attribute`. Raises a UserError."""
        from autointerp import attribute

        found = attribute.attribute(
            self.subject, self.dictionary, self.hookpoint, text, bar, target=target, position=position,
            checked=checked, seed=self.settings.run.seed,
        )  # fmt: skip
        return Explained(found, self.dictionary.name, self.labels)


def by_token(found: Attribution) -> list[list[Pair]]:
    """What fires on each token, largest contribution by size first."""
    at: list[list[Pair]] = [[] for _ in found.tokens]
    for pair in found.pairs:
        at[pair.position].append(pair)
    return at


def as_json(explained: Explained, top: int) -> dict[str, Any]:
    """Everything as plain dicts and lists: totals, all pairs, and the `top` features, each with its label or null."""
    found, labels = explained.found, explained.labels
    whole = asdict(found)
    whole["pairs"] = [pair | {"label": labels.get(pair["feature"])} for pair in whole["pairs"]]
    return whole | {
        "dictionary": explained.dictionary, "totals": totals(found),
        "features": [
            {"feature": feature, "label": labels.get(feature), "contribution": value}
            for feature, value in list(by_feature(found.pairs).items())[:top]
        ],
    }  # fmt: skip


def totals(found: Attribution) -> dict[str, float]:
    """Contributions over all tokens: of features, of the reconstruction error, of the bias, of masked positions."""
    return {
        "features": sum(pair.contribution for pair in found.pairs), "error": sum(found.error),
        "bias": sum(found.bias), "masked": sum(found.masked),
    }  # fmt: skip


def trust(check: Check) -> tuple[str, bool]:
    """The correlation with ablation in words, and whether the contributions can be believed for it."""
    if not check.n:
        return "not checked against ablation", False
    if check.pearson is None:
        return f"against ablation: no correlation can be told from {check.n} pairs", False
    line = (
        f"against ablation of {check.n} (feature, token) pairs: r {check.pearson:.2f}, rank r "
        f"{number(check.spearman)}; {check.n_random} random ones alone: r {number(check.pearson_random)}"
    )
    if check.pearson >= LEAST:
        return line, True
    return f"{line}. Below {LEAST:g}: some features saturate, and do more than a slope can tell", False


# -- terminal ----------------------------------------------------------------------------------------------------------


def to_terminal(explained: Explained, console: Console, top: int) -> None:
    """The target, a row per token with what fires there, the features that matter most, and how far to trust it."""
    found = explained.found
    target = found.target
    console.print(Text.assemble(
        "target ", (f"«{visible(target.token)}»", "bold"), f"  probability {target.probability:.2%}, "
        f"logit {target.logit:.2f}, {target.logit_over_mean:.2f} over the mean logit",
    ))  # fmt: skip
    likely = ", ".join(f"«{visible(token.token)}» {token.probability:.1%}" for token in found.predicted)
    console.print(Text(f"likeliest {likely}", style="dim"))
    console.print(Text(f"{visible(explained.dictionary)} at {visible(found.hookpoint)}", style="dim"))
    console.print()
    console.print(_tokens(explained))
    console.print()
    console.print(_features(explained, top))
    console.print()
    line = "   ".join(f"{PARTS[name]} {value:+.2f}" for name, value in totals(found).items())
    console.print(Text(f"all together: {line}", style="dim"))
    line, believed = trust(found.check)
    console.print(Text(line, style="green" if believed else "yellow"))


def _tokens(explained: Explained) -> Table:
    found = explained.found
    at = by_token(found)
    sums = [sum(pair.contribution for pair in pairs) for pairs in at]
    largest = max((abs(value) for value in sums), default=0.0)
    strongest = abs(found.pairs[0].contribution) if found.pairs else 0.0
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", justify="right", style="dim")
    table.add_column("token", no_wrap=True)
    table.add_column("features", justify="right")
    table.add_column("", min_width=BAR, no_wrap=True)
    table.add_column("firing here, by contribution", ratio=1, overflow="fold")
    for i, token in enumerate(found.tokens):
        share = sums[i] / largest if largest else 0.0
        masked = not at[i] and found.masked[i] != 0
        table.add_row(
            str(i), Text(visible(token) or "␣", style=_style(share)), "" if masked else f"{sums[i]:+.2f}", _bar(share),
            Text("masked: a special token or an attention sink", style="dim") if masked
            else _firing(at[i], strongest, explained.labels),
        )  # fmt: skip
    return table


def _firing(pairs: list[Pair], strongest: float, labels: Mapping[int, str]) -> Text:
    """The firings that contribute most, then labelled ones that are not among them."""
    first, rest = pairs[:PER_TOKEN], pairs[PER_TOKEN:]
    shown = first + [pair for pair in rest if pair.feature in labels][:PER_TOKEN]
    line = Text()
    for pair in shown:
        line.append("  " if line else "")
        share = pair.contribution / strongest if strongest else 0.0
        line.append(_name(pair.feature, labels), style=_style(share))
        line.append(f" {pair.contribution:+.2f}", style="dim")
    if len(pairs) > len(shown):
        line.append(f"  and {len(pairs) - len(shown)} more", style="dim")
    return line


def _features(explained: Explained, top: int) -> Table:
    found = explained.found
    whole = by_feature(found.pairs)
    largest = max((abs(value) for value in whole.values()), default=0.0)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("feature", "contribution"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", min_width=BAR, no_wrap=True)
    table.add_column("label", ratio=2, overflow="fold")
    table.add_column("most at", ratio=1, overflow="fold")
    first = list(whole.items())
    labelled = [item for item in first[top:] if item[0] in explained.labels][:LABELLED]
    for place, (feature, value) in enumerate(first[:top] + labelled):
        if place == top:
            table.add_row()
        most = next(pair for pair in found.pairs if pair.feature == feature)
        tried = "" if most.ablated is None else f", ablated {most.ablated:+.2f}"
        label = explained.labels.get(feature)
        table.add_row(
            str(feature), f"{value:+.3f}", _bar(value / largest if largest else 0.0),
            Text(visible(label)) if label is not None else Text("(no label)", style="dim"),
            Text(f"{visible(found.tokens[most.position])} {most.contribution:+.2f}{tried}", style="dim"),
        )  # fmt: skip
    return table


def _name(feature: int, labels: Mapping[int, str]) -> str:
    return f"{feature} {visible(labels[feature])}" if feature in labels else str(feature)


def _bar(share: float) -> Text:
    """A bar as long as a share of the largest, -1 to 1: green for, red against."""
    return Text("█" * round(BAR * abs(share)) or "▏", style="green" if share > 0 else "red" if share < 0 else "dim")


def _style(share: float) -> str:
    """Background for a contribution as a share of the largest, -1 to 1."""
    if abs(share) < 0.02:
        return ""
    depth = round(40 + 150 * min(abs(share), 1.0) ** 0.7)
    return f"white on rgb({'24' if share > 0 else depth},{depth if share > 0 else '24'},36)"
