"""The report page: one HTML file with its style and its pictures inside, for the KFP UI's sandboxed frame and for a browser.

It loads nothing, runs no script, follows the reader's light or dark setting and fits a phone. Every text is escaped; only
the drawings of ``charts`` go in as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """A table cell: its text, a smaller second line, and a tone (``good``, ``bad``, ``warn``, ``muted`` or none)."""

    text: str
    detail: str = ""
    tone: str = ""
    badge: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under headings; columns named in ``numeric`` are aligned right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    numeric: frozenset[str] = frozenset()
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Facts:
    """Labelled values."""

    items: Sequence[tuple[str, str]]
    kind: str = field(default="facts", init=False)


@dataclass(frozen=True)
class Figures:
    """Charts side by side where there is room: title, drawing, caption."""

    figures: Sequence[tuple[str, Markup, str]]
    kind: str = field(default="figures", init=False)


@dataclass(frozen=True)
class Notes:
    """Remarks, one paragraph each."""

    texts: Sequence[str]
    tone: str = ""
    kind: str = field(default="notes", init=False)


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    title: str
    blocks: Sequence[Table | Facts | Figures | Notes]
    intro: str = ""


@dataclass(frozen=True)
class Banner:
    """What the reader must know first: a verdict, its tone, a sentence, and the reasons."""

    verdict: str
    tone: str
    headline: str
    reasons: Sequence[str] = ()


def render_page(
    title: str, sections: Sequence[Section], *, kicker: str = "", subtitle: str = "", banner: Banner | None = None
) -> str:
    """The whole page as text.

    Args:
        title: heading and window title.
        sections: the parts, in order.
        kicker: a word or two above the title, such as the kind of report.
        subtitle: a line below it.
        banner: the verdict on top.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE)
    style = Markup(_STYLE)  # noqa: S704 - a constant of this module
    return template.render(title=title, kicker=kicker, subtitle=subtitle, banner=banner, sections=sections, style=style)


_STYLE = """
:root { color-scheme: light dark; --page: #f5f6f9; --card: #ffffff; --ink: #1b2330; --muted: #697386; --grid: #e3e7ee;
  --first: #2f6fed; --second: #e08a1e; --good: #1f9d61; --bad: #d64545; --warn: #b7791f;
  --good-soft: #e6f6ee; --bad-soft: #fdebeb; --warn-soft: #fdf4e1; --muted-soft: #eef1f6; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12161d; --card: #1a202a; --ink: #e8ecf3; --muted: #97a2b4; --grid: #2c3543;
    --first: #6b9dff; --second: #f0aa52; --good: #4fc98e; --bad: #f07f7f; --warn: #e3b155;
    --good-soft: #173327; --bad-soft: #3b2022; --warn-soft: #362c18; --muted-soft: #252d39; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 Inter, ui-sans-serif, system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 48px; }
header { margin-bottom: 20px; }
.kicker { color: var(--muted); font-size: 12px; font-weight: 600; letter-spacing: .08em; text-transform: uppercase; }
h1 { margin: 2px 0 0; font-size: 27px; line-height: 1.2; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { margin: 0 0 4px; font-size: 17px; letter-spacing: -.005em; }
h3 { margin: 0 0 2px; font-size: 14px; }
.subtitle, .intro, figcaption { color: var(--muted); }
.subtitle { margin-top: 4px; overflow-wrap: anywhere; }
.intro { margin: 0 0 12px; max-width: 75ch; }
section, .banner { background: var(--card); border: 1px solid var(--grid); border-radius: 12px; padding: 20px 22px;
  margin-bottom: 16px; }
.banner { border-left: 6px solid var(--tone); background: var(--soft); }
.banner .verdict { display: inline-block; padding: 2px 12px; border-radius: 999px; background: var(--tone); color: var(--card);
  font-weight: 700; font-size: 13px; letter-spacing: .05em; text-transform: uppercase; }
.banner .headline { margin: 8px 0 0; font-size: 18px; font-weight: 600; }
.banner ul { margin: 8px 0 0; padding-left: 20px; }
.good { --tone: var(--good); --soft: var(--good-soft); } .bad { --tone: var(--bad); --soft: var(--bad-soft); }
.warn { --tone: var(--warn); --soft: var(--warn-soft); } .muted { --tone: var(--muted); --soft: var(--muted-soft); }
.scroll { overflow-x: auto; margin: 0 -4px; padding: 0 4px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--muted); font-weight: 600; font-size: 12.5px; padding: 6px 14px 6px 0; white-space: nowrap;
  border-bottom: 1px solid var(--grid); }
td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--grid); vertical-align: top;
  overflow-wrap: break-word; }
tr:last-child td { border-bottom: 0; }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; white-space: nowrap; }
.detail { display: block; color: var(--muted); font-size: 12.5px; overflow-wrap: anywhere; }
.number .detail { overflow-wrap: normal; }
td .badge { white-space: normal; } td.good, td.bad, td.warn, td.muted { color: var(--tone); }
.badge { display: inline-block; padding: 1px 9px; border-radius: 999px; background: var(--soft); color: var(--tone);
  font-weight: 600; font-size: 12.5px; white-space: nowrap; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 12px 20px; margin: 0; }
dt { color: var(--muted); font-size: 12.5px; } dd { margin: 0; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(380px, 100%), 1fr)); gap: 22px 28px; }
figure { margin: 0; min-width: 0; } figure svg { display: block; width: 100%; max-width: 560px; height: auto;
  stroke-linejoin: round; stroke-linecap: butt; }
figcaption { font-size: 13px; }
.notes p { margin: 0 0 6px; } .notes p:last-child { margin: 0; }
.notes.warn, .notes.bad, .notes.good { background: var(--soft); border-radius: 8px; padding: 10px 14px; }
.block + .block { margin-top: 18px; }
@media (max-width: 560px) { main { padding: 18px 12px 32px; } section, .banner { padding: 16px 14px; } h1 { font-size: 22px; }
  td { min-width: 8.5em; } td.number { min-width: 0; } table { font-size: 14px; }
  dl { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); } }
@media print { body { background: none; } section, .banner { break-inside: avoid; } }
"""

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<header>
{% if kicker %}<div class="kicker">{{ kicker }}</div>{% endif %}
<h1>{{ title }}</h1>
{% if subtitle %}<div class="subtitle">{{ subtitle }}</div>{% endif %}
</header>
{% if banner %}
<div class="banner {{ banner.tone }}">
<span class="verdict">{{ banner.verdict }}</span>
<p class="headline">{{ banner.headline }}</p>
{% if banner.reasons %}<ul>{% for reason in banner.reasons %}<li>{{ reason }}</li>{% endfor %}</ul>{% endif %}
</div>
{% endif %}
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
{% if section.intro %}<p class="intro">{{ section.intro }}</p>{% endif %}
{% for block in section.blocks %}
<div class="block">
{% if block.kind == "table" %}
<div class="scroll"><table>
<thead><tr>{% for column in block.columns %}<th{% if column in block.numeric %} class="number"{% endif %}>{{ column }}</th>
{%- endfor %}</tr></thead>
<tbody>
{% for row in block.rows %}
<tr>
{% for cell in row %}
{% set number = "number" if block.columns[loop.index0] in block.numeric else "" %}
{% if cell is string %}
<td class="{{ number }}">{{ cell }}</td>
{% elif cell.badge %}
<td class="{{ number }}"><span class="badge {{ cell.tone }}">{{ cell.text }}</span>
{%- if cell.detail %}<span class="detail">{{ cell.detail }}</span>{% endif %}</td>
{% else %}
<td class="{{ number }} {{ cell.tone }}">{{ cell.text }}
{%- if cell.detail %}<span class="detail">{{ cell.detail }}</span>{% endif %}</td>
{% endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% elif block.kind == "facts" %}
<dl>{% for label, value in block.items %}<div><dt>{{ label }}</dt><dd>{{ value }}</dd></div>{% endfor %}</dl>
{% elif block.kind == "figures" %}
<div class="figures">
{% for heading, drawing, caption in block.figures %}
<figure><h3>{{ heading }}</h3>{{ drawing }}{% if caption %}<figcaption>{{ caption }}</figcaption>{% endif %}</figure>
{% endfor %}
</div>
{% else %}
<div class="notes {{ block.tone }}">{% for text in block.texts %}<p>{{ text }}</p>{% endfor %}</div>
{% endif %}
</div>
{% endfor %}
</section>
{% endfor %}
</main>
</body>
</html>
"""
