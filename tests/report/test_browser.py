import pytest

pytestmark = pytest.mark.browser

DARKNESS = """() => {
  const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number);
  return (r + g + b) / 765;
}"""

GROUNDS = """() => [...document.querySelectorAll('article, figure, .lead, pre, .scroll')].map(e => {
  const [r, g, b] = getComputedStyle(e).backgroundColor.match(/[0-9.]+/g).map(Number);
  return (r + g + b) / 765;
})"""


@pytest.fixture(scope="module")
def address(tmp_path_factory, sample) -> str:
    return sample().save(tmp_path_factory.mktemp("report") / "report.html").as_uri()


def opened(page, address):
    page.goto(address)
    page.wait_for_selector("html[data-drawn]")
    return page


def test_it_opens_from_a_file_in_silence(browser_page, page_log, address):
    opened(browser_page, address)
    assert page_log.errors == []
    assert page_log.requests == [address]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_sideways(browser_page, address, width):
    browser_page.set_viewport_size({"width": width, "height": 800})
    opened(browser_page, address)
    for details in browser_page.query_selector_all("summary"):
        details.click()
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= width
    right = "[...document.querySelectorAll('.plot svg')].map(svg => svg.getBoundingClientRect().right)"
    assert max(browser_page.evaluate(right)) <= width


def test_figures_are_drawn_with_their_curves(browser_page, address):
    opened(browser_page, address)
    assert browser_page.locator(".plot").count() == 2
    assert browser_page.locator(".plot .scatterlayer .trace path.js-line").count() == 2
    assert browser_page.locator(".plot .bars .point").count() == 2
    assert browser_page.locator(".plot .annotation").first.text_content() == "diverged"


def test_the_theme_turns_by_keyboard_and_figures_follow(browser_page, address):
    opened(browser_page, address)
    tick = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    light, ink = browser_page.evaluate(DARKNESS), browser_page.evaluate(tick)
    browser_page.keyboard.press("Tab")
    assert browser_page.evaluate("document.activeElement.className") == "skip"
    browser_page.keyboard.press("Tab")
    assert browser_page.evaluate("document.activeElement.id") == "theme"
    browser_page.keyboard.press("Enter")
    assert light > 0.9
    assert browser_page.evaluate(DARKNESS) < 0.2
    assert browser_page.evaluate(tick) != ink
    browser_page.reload()
    assert browser_page.evaluate(DARKNESS) < 0.2
    browser_page.locator("#theme").press("Space")
    assert browser_page.evaluate(DARKNESS) == light


def test_it_follows_the_system(browser_page, address):
    browser_page.emulate_media(color_scheme="dark")
    opened(browser_page, address)
    assert browser_page.evaluate(DARKNESS) < 0.2


def test_the_skip_link_leads_past_the_controls(browser_page, address):
    opened(browser_page, address)
    browser_page.keyboard.press("Tab")
    browser_page.keyboard.press("Enter")
    assert browser_page.evaluate("document.activeElement.id") == "main"


def test_curves_are_switched_by_keyboard(browser_page, address):
    opened(browser_page, address)
    shown = browser_page.locator(".plot .scatterlayer .trace path.js-line")
    button = browser_page.get_by_role("button", name="untreated", exact=True)
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert shown.count() == 1
    button.press("Enter")
    assert shown.count() == 2


def test_print_is_light_even_from_dark(browser_page, address):
    browser_page.emulate_media(color_scheme="dark")
    opened(browser_page, address)
    tick = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    on_screen = browser_page.evaluate(tick)
    browser_page.emulate_media(media="print", color_scheme="dark")
    assert browser_page.evaluate(DARKNESS) == 1
    browser_page.wait_for_function(f"{tick} !== {on_screen!r}")
    grounds = browser_page.evaluate(GROUNDS)
    assert min(grounds) > 0.9
    assert not browser_page.locator("#theme").is_visible()


def test_a_frame_in_a_notebook_draws_and_keeps_its_styles(browser_page, page_log, sample):
    browser_page.set_content("<h1>Notebook</h1>" + sample()._repr_html_())
    frame = browser_page.frame_locator("iframe")
    frame.locator(".plot .bars .point").first.wait_for()
    outside = browser_page.evaluate("getComputedStyle(document.querySelector('h1')).letterSpacing")
    assert outside == "normal"
    assert page_log.errors == []


def test_without_scripts_the_description_and_the_data_are_there(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert "untreated loss falls" in page.locator("figure .plot").first.inner_text()
    page.locator("summary").first.click()
    assert page.locator("details table").first.is_visible()
    context.close()
