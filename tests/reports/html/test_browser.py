"""The report in a browser: charts are drawn, hovering and sorting work, nothing overflows, nothing is complained of."""

import shutil
from pathlib import Path

import pytest

from patchmerger.reports.html.page import write_report

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # playwright's own

RESULTS = Path(__file__).parents[3] / "results"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    """A browser without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="it drives the browser")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of a comparison, a sweep, a transfer and a benchmark, and one file that is cut short."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "cut.json").write_text((RESULTS / "digits.json").read_text()[:3000])
    files = [RESULTS / f"{n}.json" for n in ("digits", "sweep-cifar10-small", "transfer-small", "bench-inference-cpu")]
    return write_report([*files, folder / "cut.json"], folder / "report.html").path


@pytest.fixture
def opened(browser, report):
    """Opens the page; whatever the browser complains of, or asks the network for, fails the test."""
    complaints: list[str] = []
    pages = []

    def open_page(width: int = 1440, scheme: str = "light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
        page.goto(report.as_uri())
        page.wait_for_function("document.querySelectorAll('.plot .main-svg').length > 0")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not complaints


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "light"), (1440, "dark")])
def test_charts_are_drawn_and_nothing_overflows(opened, width, scheme):
    page = opened(width, scheme)
    assert page.evaluate("[...document.querySelectorAll('.plot')].every(p => p.querySelector('.main-svg'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.table, pre, svg') &&
        e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(wide) == []
    # no mark or label of a chart is cut off at its side
    assert page.evaluate("""[...document.querySelectorAll('.plot')].flatMap(p => {
        const box = p.getBoundingClientRect();
        return [...p.querySelectorAll('text')].filter(t => t.getBoundingClientRect().width > 0 &&
            (t.getBoundingClientRect().right > box.right + 1 || t.getBoundingClientRect().left < box.left - 1)
        ).map(t => t.textContent);
    })""") == []  # fmt: skip
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(23, 26, 32)")


def test_hovering_shows_the_numbers_of_a_model(opened):
    page = opened()
    page.locator("#chart-1-1").scroll_into_view_if_needed()
    mark = page.locator("#chart-1-1 .points path").nth(1).bounding_box()
    page.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
    page.wait_for_selector("#chart-1-1 .hoverlayer .hovertext")
    text = page.locator("#chart-1-1 .hoverlayer").text_content()
    assert "merged" in text
    assert "times as fast" in text


def test_tables_sort_with_the_mouse_and_with_the_keyboard(opened):
    page = opened()
    table = page.locator("#section-2 table").first
    button = table.locator("thead button", has_text="accuracy")
    headings = table.locator("thead button").all_text_contents()
    place = next(number for number, heading in enumerate(headings) if heading.strip().startswith("accuracy"))
    rows = "[...document.querySelector('#section-2 table').tBodies[0].rows]"
    column = f"{rows}.map(r => Number(r.cells[{place}].dataset.value))"
    before = page.evaluate(column)
    button.click()
    assert page.evaluate(column) == sorted(before, reverse=True)
    assert button.locator("..").get_attribute("aria-sort") == "descending"
    button.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(column) == sorted(before)
    assert button.locator("..").get_attribute("aria-sort") == "ascending"
    table.locator("thead button").first.click()
    names = table.locator("tbody th").all_text_contents()
    assert [name.strip() for name in names] == sorted((name.strip() for name in names), key=_with_numbers)
    assert button.locator("..").get_attribute("aria-sort") == "none"


def _with_numbers(name: str) -> list:
    """As people sort: 8 before 16."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split("-")]


def test_the_scheme_changes_and_the_page_prints(opened, tmp_path):
    page = opened()
    colour = "getComputedStyle(document.querySelector('#chart-1-1 .xtick text')).fill"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    for _ in range(50):  # not wait_for_function, which must evaluate again: the page's policy forbids that
        if page.evaluate(colour) != light:
            break
        page.wait_for_timeout(200)
    assert page.evaluate(colour) != light
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert page.evaluate("document.querySelectorAll('details[open]').length") == 0


def test_the_page_is_all_there_without_scripts(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator(".verdict").count() == 4
    assert page.locator("noscript").count() > 0
    assert "cut.json" in page.locator(".unread").text_content()
    context.close()
