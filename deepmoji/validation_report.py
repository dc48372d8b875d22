"""The page that says what was checked: a table of all rules, the failing ones first, then the rows that break them."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8885; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums }
td { overflow-wrap: anywhere }
.ok, .bad { color: #fff; border-radius: .3rem; padding: .05rem .5rem; white-space: nowrap }
.ok { background: #1a7f37 } .bad { background: #cf222e }
.verdict { font-size: 1.1rem }
"""


def render(summary: Mapping[str, Any], rules: Sequence[Mapping[str, Any]]) -> str:
    """A page complete in itself. `rules` are records: suite, rule, says, checked, failed, passed, observed, places,
    examples."""
    broken = [rule for rule in rules if not rule["passed"]]
    verdict = (
        f'<span class="bad">{len(broken)} of {len(rules)} rules fail</span>'
        if broken
        else f'<span class="ok">all {len(rules)} rules hold</span>'
    )
    parts = [
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>Data validation</title>',
        f"<style>{STYLE}</style></head>\n<body>\n<h1>Data validation</h1>\n<p class='verdict'>{verdict}</p>",
        _numbers(summary),
    ]
    if broken:
        parts += ["<h2>Failing rules</h2>", _table(broken), *(_details(rule) for rule in broken)]
    suites = dict.fromkeys(str(rule["suite"]) for rule in rules)
    for suite in suites:
        parts += [f"<h2>{escape(suite.capitalize())}</h2>", _table([rule for rule in rules if rule["suite"] == suite])]
    return "\n".join([*parts, "</body>\n</html>\n"])


def _table(rules: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        f"<tr><td>{_badge(rule)}</td><td>{escape(rule['rule'])}</td><td>{escape(rule['says'])}</td>"
        f'<td class="n">{rule["checked"]:,}</td><td class="n">{rule["failed"]:,}</td>'
        f"<td>{escape(rule['observed'])}</td></tr>"
        for rule in rules
    ]
    head = "<tr><th></th><th>rule</th><th>what it says</th><th>checked</th><th>breaking it</th><th>observed</th></tr>"
    return "\n".join(["<table>", head, *rows, "</table>"])


def _badge(rule: Mapping[str, Any]) -> str:
    return '<span class="ok">holds</span>' if rule["passed"] else '<span class="bad">fails</span>'


def _details(rule: Mapping[str, Any]) -> str:
    """Where a rule fails, and up to five rows that break it."""
    places = ", ".join(f"{escape(place['place'])}: {place['rows']:,}" for place in rule["places"])
    parts = [f"<h3>{escape(rule['suite'])}: {escape(rule['rule'])}</h3>", f"<p>Rows by place: {places}</p>"]
    if rule["examples"]:
        names = list(dict.fromkeys(name for row in rule["examples"] for name in row))
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        parts.append(f"<table>\n<tr>{head}</tr>")
        for row in rule["examples"]:
            parts.append("<tr>" + "".join(f"<td>{escape(_shown(row.get(name)))}</td>" for name in names) + "</tr>")
        parts.append("</table>")
    return "\n".join(parts)


def _shown(value: object) -> str:
    return "—" if value is None else str(value).replace("\0", "␀")


def _numbers(summary: Mapping[str, Any]) -> str:
    """The numbers of the summary, nested ones by dotted name."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td class='n'>{escape(text)}</td></tr>\n" for name, text in _flat(summary)
    )
    return f"<details><summary>Numbers</summary>\n<table>\n{rows}</table></details>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)))
    return flat
