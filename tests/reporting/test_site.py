"""The published web page: what it holds, and how it behaves under real keys and clicks in a
browser."""

import itertools
import math
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import browser
import pandas as pd
import pytest

import bench
from bench.analysis import results
from bench.evaluation.audit import symptoms
from bench.evaluation.audit.findings import Audit
from bench.reporting import templates
from bench.reporting.site import page as site
from bench.reporting.site import pivots, svg_chart
from bench.reporting.site.sources import PublishedRun

HOSTILE = "net </script><script>alert(1)</script>"
SUITE = f"""
schema = 1
name = "small"
title = "A small run"
[data]
name = "digits"
limit = 60
[[models]]
name = "lenet"
weights = "digits"
[[models]]
name = "lenet"
label = "{HOSTILE}"
weights = "random"
[[attacks]]
name = "fgsm"
label = "FGSM"
norm = "linf"
eps = [0, 0.1, 0.3]
[[attacks]]
name = "noise"
label = "noise <b>"
norm = "linf"
eps = [0.1, 0.3]
[[attacks]]
name = "pgd"
label = "PGD to the next"
norm = "l2"
eps = [1]
goal = "targeted"
target = "next"
params = {{ steps = 3 }}
"""
CELLS = 2 * 6
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c63600000000200014873b6e30000000049454e44ae426082"
)  # a PNG of one black pixel


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PublishedRun:
    """Two models under three attacks, with one figure of examples."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "small.toml").write_text(SUITE)
    bench.run(folder / "small.toml", out=folder, device="cpu")
    (folder / "plots").mkdir()
    (folder / "plots" / "examples-lenet-fgsm.png").write_bytes(PIXEL)
    return PublishedRun(
        folder, "small", results.read_results(folder), "bench run small.toml", "ab" * 32
    )


@pytest.fixture(scope="module")
def page(run: PublishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published")
    (out / "results.csv").write_text("made by the publication")
    return site.write_site([run], out)


class Elements(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def values(self, tag: str, attribute: str) -> list[str | None]:
        return [
            found[attribute] for name, found in self.found if name == tag and attribute in found
        ]


# ---------------------------------------------------------------------------- what the page holds


def test_the_same_runs_give_the_same_bytes(run: PublishedRun, tmp_path: Path) -> None:
    first, second = (site.write_site([run], tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_every_cell_has_a_row_without_any_script(run: PublishedRun, page: Path) -> None:
    elements = Elements(page.read_text())
    assert len(elements.values("tbody", "data-model")) == CELLS == len(run.found.table)
    rates = [line.robust.text for line in site.build_rows(run)]
    text = re.sub("<[^>]+>", "", page.read_text().partition('<table id="cells"')[2])
    assert all(rate in text for rate in rates)


def test_a_label_from_a_file_is_never_markup_or_script(page: Path) -> None:
    text = page.read_text()
    assert "<script>alert" not in text
    assert "noise <b>" not in text
    assert [tag for tag, _ in Elements(text).found].count("script") == 2  # the data, the page's own


def test_the_policy_lets_only_the_pages_own_script_run_and_no_request_out(page: Path) -> None:
    text = page.read_text()
    own = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    assert f"script-src '{templates.hash_script(own[0])}'" in policy.replace("&#39;", "'")
    assert policy.startswith("default-src")
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_nothing_on_the_page_points_to_a_network(page: Path) -> None:
    elements = Elements(page.read_text())
    asked = [*elements.values("img", "src"), *elements.values("a", "href")]
    assert asked
    assert all(where and "//" not in where for where in asked)


def test_the_page_opens_with_curves_and_a_pivot_and_ends_with_every_cell(page: Path) -> None:
    text = page.read_text()
    sections = [name for name in Elements(text).values("section", "id") if name]
    assert sections[:2] == ["charts", "results"]
    assert sections[-2:] == ["every-cell", "counting"]
    linked = [name for name in Elements(text).values("a", "href") if name and name[0] == "#"]
    assert linked == [f"#{name}" for name in sections]


def test_a_pivot_holds_attacks_by_eps_with_clean_accuracy_and_worst_case(
    run: PublishedRun,
) -> None:
    table = run.found.table
    twin = table.query("attack == 'FGSM' and model == 'lenet'").assign(attack="twin")
    found = run.found.replace(table=pd.concat([table, twin]), worst=run.found.worst)
    first = pivots.pivot_attacks(found)[0]
    assert first.columns == ["attack", "clean", "eps 0.1", "eps 0.3"]
    assert [row[0] for row in first.rows] == ["FGSM = twin", "noise <b>", "worst case"]
    assert len({row[1] for row in first.rows}) == 1
    worst = run.found.worst.query("model == 'lenet' and norm == 'linf' and eps == 0.3").iloc[0]
    assert first.rows[-1][3].startswith(f"{100 * worst['robust_accuracy']:.1f} % [")


def test_a_pivot_of_targeted_attacks_holds_their_success_without_a_column_of_clean(
    run: PublishedRun,
) -> None:
    (view,) = (v for v in pivots.pivot_attacks(run.found) if v.caption.startswith("lenet, L2"))
    assert view.columns == ["attack", "eps 1"]
    assert "success rate, clean accuracy" in view.caption
    assert [row[0] for row in view.rows] == ["PGD to the next"]


def test_the_worst_case_is_drawn_below_the_attacks(page: Path) -> None:
    styles = [style for style in Elements(page.read_text()).values("g", "class") if style]
    assert styles[:3] == ["worst", "tone1", "tone0"]


def test_a_click_on_an_example_opens_its_picture_in_full_size(page: Path) -> None:
    elements = Elements(page.read_text())
    assert set(elements.values("img", "src")) <= set(elements.values("a", "href"))


def test_only_tables_that_were_published_are_offered(page: Path) -> None:
    links = Elements(page.read_text()).values("a", "href")
    assert "results.csv" in links
    assert "results.parquet" not in links


def test_example_figures_are_copied_beside_the_page_and_named(page: Path) -> None:
    (source,) = Elements(page.read_text()).values("img", "src")
    assert source is not None
    assert (page.parent / source).read_bytes() == PIXEL
    assert "lenet under FGSM" in page.read_text()


def test_two_runs_of_one_name_do_not_share_figures(run: PublishedRun, tmp_path: Path) -> None:
    twice = site.write_site([run, run._replace(name="small (2)")], tmp_path)
    sources = Elements(twice.read_text()).values("img", "src")
    assert len(set(sources)) == 2
    assert "small (2)" in twice.read_text()


def _sign(attack: str, eps: float) -> symptoms.ObservedSymptom:
    return symptoms.ObservedSymptom(
        name=symptoms.FLAT_LOSS.name, model="lenet", attack=attack, norm="linf" if attack else "",
        eps=eps, count=7, n=60, evidence="seen on 7 of 60", examples=tuple(range(7)),
        threshold="5 of 60",
    )  # fmt: skip


def test_a_sign_of_the_audit_stands_on_the_rows_that_it_speaks_of(run: PublishedRun) -> None:
    against = [_sign("FGSM", 0.1), _sign("", math.nan)]
    audit = Audit(["lenet"], against, [])
    lines = site.build_rows(run._replace(found=run.found.replace(audit=audit)))
    flagged = {(line.model, line.attack, line.eps.text): len(line.symptoms) for line in lines}
    assert flagged["lenet", "FGSM", "0.1"] == 2
    assert flagged["lenet", "FGSM", "0.3"] == 1  # a sign of the model speaks of what sees the model
    assert flagged["lenet", "FGSM", "0"] == 0  # at eps 0 there is no attack
    assert flagged["lenet", "noise <b>", "0.3"] == 0
    assert not any(count for (model, _, _), count in flagged.items() if model != "lenet")


# ----------------------------------------------------------------------------------- the charts


def test_a_chart_states_the_counts_of_the_table_and_starts_at_the_clean_accuracy(
    run: PublishedRun,
) -> None:
    first = svg_chart.build_charts(run.found.table, run.found.worst)[0]
    fgsm, noise, worst = first.lines
    assert [text for _, text in first.labels] == ["0", "0.1", "0.3"]
    matches = [re.search(r"\((\d+)/60\)", value) for value in fgsm.values]
    rows = run.found.table.query("model == 'lenet' and attack == 'FGSM'")
    assert [int(match[1]) for match in matches if match] == list(rows["robust_correct"])
    assert noise.values[0] == fgsm.values[0]
    assert worst.label == "worst case"


@pytest.mark.parametrize(
    ("radii", "texts", "shown"),
    [
        ((4 / 255, 8 / 255), ("4/255", "8/255"), ["0", "4/255", "8/255"]),
        ((0.0274510, 0.0313725), ("0.0274510", "0.0313725"), ["0", "0.0313725"]),
    ],
)
def test_labels_below_a_chart_are_whole_and_do_not_touch(
    run: PublishedRun, radii: tuple[float, float], texts: tuple[str, str], shown: list[str]
) -> None:
    rows = run.found.table[run.found.table["eps"].isin([0.1, 0.3])]
    table = rows.assign(
        eps=rows["eps"].map(dict(zip([0.1, 0.3], radii, strict=True))),
        eps_text=rows["eps"].map(dict(zip([0.1, 0.3], texts, strict=True))),
    )
    labels = svg_chart.build_charts(table, run.found.worst)[0].labels
    assert [text for _, text in labels] == shown
    ends = [(x - 3.3 * len(text), x + 3.3 * len(text)) for x, text in labels]
    assert ends[-1][1] <= svg_chart.WIDTH
    assert all(before < after for (_, before), (after, _) in itertools.pairwise(ends))


def test_a_line_does_not_lead_across_an_eps_that_its_attack_was_not_asked_at(
    run: PublishedRun,
) -> None:
    table = run.found.table
    sparse = table[(table["attack"] != "noise <b>") | (table["eps"] == 0.3)]
    noise = svg_chart.build_charts(sparse, run.found.worst)[0].lines[1]
    clean = run.found.table.query("model == 'lenet'")["clean_correct"].iloc[0]
    assert f"({clean}/60)" in noise.values[0]
    assert noise.values[1] == "—"
    assert len(noise.marks) == noise.path.count("M") == 2


def test_a_point_without_a_neighbour_has_its_interval(run: PublishedRun) -> None:
    table = run.found.table
    sparse = table[(table["attack"] != "noise <b>") | (table["eps"] == 0.3)]
    fgsm, noise, _ = svg_chart.build_charts(sparse, run.found.worst)[0].lines
    assert noise.bars.count("M") == 2
    assert noise.band == fgsm.bars == ""


def test_attacks_with_equal_counts_share_a_curve_but_never_with_the_worst_case(
    run: PublishedRun,
) -> None:
    table = run.found.table
    twin = table.query("attack == 'FGSM'").assign(attack="twin")
    lines = svg_chart.build_charts(pd.concat([table, twin]), run.found.worst)[0].lines
    assert [line.label for line in lines] == ["FGSM = twin", "noise <b>", "worst case"]


def test_targeted_attacks_are_no_line_of_robust_accuracy(run: PublishedRun) -> None:
    axes = {each.axis for each in svg_chart.build_charts(run.found.table, run.found.worst)}
    assert axes == {"eps (L-inf)"}


def test_a_line_is_cut_where_a_cell_failed(run: PublishedRun) -> None:
    table = run.found.table.copy()
    table.loc[1, ["status", "reason"]] = ["failed", "out of memory"]
    table.loc[1, ["robust_correct", "robust_low", "robust_high"]] = None
    line = svg_chart.build_charts(table, run.found.worst)[0].lines[0]
    assert line.path.count("M") == 2
    assert line.values[1] == "—"
    assert len(line.marks) == 2


# -------------------------------------------------------------------------------- in a browser

in_a_browser = pytest.mark.skipif(
    browser.executable() is None, reason="there is no Chromium on the path to open the page in"
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    profile = tmp_path_factory.mktemp("profile")
    with browser.opened(profile) as opened:
        yield opened
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture
def shown(chromium: browser.Page, page: Path) -> Iterator[browser.Page]:
    """The page in a wide window; whatever a test does, it asks nothing but files and no script
    complains."""
    chromium.open(page, width=1300)
    yield chromium
    assert all(url.startswith("file:") for url in chromium.requests)
    assert chromium.complaints == []


ROBUST = "th:has(.sort):nth-child(9)"
"""The header of robust accuracy, where one run is shown."""


def _column(shown: browser.Page, index: int) -> list[str]:
    rows = "[...document.querySelectorAll('#cells tbody:not([hidden]) tr:first-child')]"
    return list(shown.ask(f"{rows}.map(r => r.cells[{index}].textContent)"))


@in_a_browser
def test_a_header_sorts_by_number_and_the_second_time_the_other_way(shown: browser.Page) -> None:
    shown.point(f"{ROBUST} .sort", click=True)
    rising = [float(text.split()[0]) for text in _column(shown, 8)]
    assert shown.ask(f"document.querySelector('{ROBUST}').ariaSort") == "ascending"
    assert rising == sorted(rising)
    assert rising[0] < rising[-1]
    shown.point(f"{ROBUST} .sort", click=True)
    falling = [float(text.split()[0]) for text in _column(shown, 8)]
    assert falling == rising[::-1]


@in_a_browser
def test_what_has_no_number_comes_last_whichever_way_it_is_sorted(shown: browser.Page) -> None:
    floors = _column(shown, 11)
    missing = floors.count("—")
    assert 0 < missing < len(floors)
    for _ in range(2):
        shown.point("#cells th:nth-child(12) .sort", click=True)
        assert _column(shown, 11)[-missing:] == ["—"] * missing


@in_a_browser
def test_words_and_choices_narrow_the_rows_and_reset_brings_them_back(shown: browser.Page) -> None:
    shown.point("#text", click=True)
    shown.type("FGSM lenet")
    assert _column(shown, 1) == ["FGSM"] * 3
    assert shown.ask("document.getElementById('shown').textContent") == f"3 of {CELLS} rows"
    choose = "(s => { s.value = '0.3'; s.dispatchEvent(new Event('input', {bubbles: true})) })"
    shown.ask(f"{choose}(document.querySelector('select[data-by=eps]'))")
    assert len(_column(shown, 1)) == 1
    shown.type(" nothing like it")
    assert shown.ask("document.getElementById('none').hidden") is False
    shown.point("button[type=reset]", click=True)
    shown.ask("new Promise(r => setTimeout(r))")
    assert len(_column(shown, 1)) == CELLS


@in_a_browser
@pytest.mark.parametrize("key", ["Enter", " "])
def test_a_row_opens_and_closes_by_the_keyboard(shown: browser.Page, key: str) -> None:
    shown.ask("document.querySelector('#cells thead tr th:last-child button').focus()")
    shown.press("Tab")  # from the last header to the first row
    expanded = "document.activeElement.getAttribute('aria-expanded')"
    detail = "document.getElementById(document.activeElement.getAttribute('aria-controls'))"
    assert shown.ask(expanded) == "false"
    shown.press(key)
    assert shown.ask(expanded) == "true"
    text = shown.ask(f"{detail}.innerText")
    assert "robust_accuracy_8bit" in text
    assert "cross-entropy" in text
    shown.press(key)
    assert shown.ask(f"{detail}.hidden") is True


@in_a_browser
def test_a_row_tells_of_its_own_cell_after_sorting(shown: browser.Page) -> None:
    shown.point(f"{ROBUST} .sort", click=True)
    shown.point("#cells tbody .more", click=True)
    row = shown.ask("document.querySelector('#cells tbody').innerText")
    robust, detail = row.split("Columns")
    (value,) = re.findall(r"robust_accuracy\n([\d.]+ %)", detail)
    assert f"{value} [" in robust


@in_a_browser
def test_a_chart_is_read_by_arrow_keys_and_by_the_pointer(shown: browser.Page) -> None:
    at = "document.querySelector('.chart .at').textContent"
    value = "document.querySelector('.chart [data-values]').textContent"
    assert shown.ask(at) == "at eps 0.3"
    last = shown.ask(value)
    shown.ask("document.querySelector('.chart > svg').focus()")
    shown.press("ArrowLeft")
    assert shown.ask(at) == "at eps 0.1"
    assert shown.ask(value) != last
    shown.press("Tab")
    shown.press("Enter")
    assert shown.ask("document.querySelector('.chart g.on') !== null")
    shown.point(".chart > svg", share=0.1)
    assert shown.ask(at) == "at eps 0"


@in_a_browser
def test_the_page_follows_the_preferred_colours_until_its_button_says_otherwise(
    chromium: browser.Page, page: Path
) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    chromium.open(page, width=1300, scheme="dark")
    dark = chromium.ask(ground)
    chromium.open(page, width=1300, scheme="light")
    light = chromium.ask(ground)
    chromium.point("#theme", click=True)
    assert chromium.ask(ground) == dark != light


@in_a_browser
@pytest.mark.parametrize("width", [1300, 420])
def test_the_page_fits_its_window_and_shows_something(
    chromium: browser.Page, page: Path, width: int, tmp_path: Path
) -> None:
    chromium.open(page, width=width)
    assert chromium.ask("document.documentElement.scrollWidth") <= width
    picture = tmp_path / "page.png"
    picture.write_bytes(chromium.picture())
    from matplotlib.image import imread

    shades = imread(picture)[..., :3].reshape(-1, 3)
    dark = (shades.mean(axis=1) < 0.5).mean()  # ink on paper: neither blank nor black
    assert 0.005 < dark < 0.3
    assert chromium.complaints == []


@in_a_browser
def test_on_a_narrow_screen_nothing_is_clipped_or_broken_and_charts_are_legible(
    chromium: browser.Page, page: Path
) -> None:
    chromium.open(page, width=420)
    more = "for (let k = 0; k < 6; k++) row.append(row.lastElementChild.cloneNode(true))"
    rows = "document.querySelectorAll('.stacked tbody tr')"
    chromium.ask(f"{rows}.forEach((row) => {{ {more} }})")  # as many eps as a long suite has
    wide = "s => s.scrollWidth > s.clientWidth"
    boxes = "[...document.querySelectorAll('.stacked .scroll, .scroll:has(> #cells)')]"
    assert chromium.ask(f"{boxes}.filter({wide}).length") == 0
    assert chromium.ask(f"{boxes}.length") > 1
    text = re.sub("<[^>]+>", "", page.read_text().partition('id="classes"')[2])
    assert re.search(r"\d: \d+\.\d % \[\d+\.\d,\xa0\d", text)  # best class
    broken = "[...document.querySelectorAll('#cells small')].filter(s => s.offsetHeight > 24)"
    assert chromium.ask(f"{broken}.length") == 0
    scale = "(s => s.clientWidth / s.viewBox.baseVal.width)(document.querySelector('.chart > svg'))"
    size = "parseFloat(getComputedStyle(document.querySelector('.chart > svg text')).fontSize)"
    assert chromium.ask(f"{scale} * {size}") >= 9


@in_a_browser
def test_a_script_that_got_into_the_page_would_not_run(
    chromium: browser.Page, page: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.html"
    bad = "<script>document.title = 'taken'; fetch('https://example.org')</script>"
    broken.write_text(page.read_text().replace("</main>", f"{bad}</main>"))
    chromium.open(broken, width=1300)
    assert chromium.ask("document.title") == "A small run"
    assert any("Content Security Policy" in each for each in chromium.complaints)
    assert all(url.startswith("file:") for url in chromium.requests)
