#!/usr/bin/env python3
"""The page in a real Chromium, from the first look to the finetuned model; screenshots are kept.

usage: browser_test.py PROGRAMS_FOLDER SCREENSHOTS_FOLDER
  PROGRAMS_FOLDER     where needle-serve, needle-train and needle-export lie
  SCREENSHOTS_FOLDER  gets NAME-WIDTH-THEME.png
exit code 77: skipped, there is no Chromium or no Playwright (pip install playwright; the browser is the system's)
"""
import json
import os
import pathlib
import shutil
import sys
import tempfile
import zipfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from serving import Server, as_described  # noqa: E402

WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
TRAINING_MS = 280_000  # a tiny training on a busy machine


# Texts that are hard to read on what is behind them (WCAG 2.1, 1.4.3: 4.5 to 1, large ones 3 to 1), and controls whose text is cut or
# stands in two lines.
FAINT_OR_CUT = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const rgb = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => { for (; node; node = node.parentElement) { const color = rgb(getComputedStyle(node).backgroundColor); if (color[3] === 255) return color; } return [255, 255, 255, 255]; };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()) || node.matches('input, select, textarea');
    if (!own || !node.checkVisibility({visibilityProperty: true}) || node.closest(':disabled, option, .hidden-text, label:has(:disabled)')) continue;
    const style = getComputedStyle(node);
    const text = node.ownerSVGElement ? style.fill : style.color;
    const [a, b] = [light(rgb(text)), light(behind(node))].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 600);
    if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5)) found.push(`faint, ${((a + 0.05) / (b + 0.05)).toFixed(2)}: ${node.outerHTML.slice(0, 100)}`);
    if (node.matches('button:not(.token, #jobs button), label.button') && (node.scrollWidth > node.clientWidth + 1 || node.clientHeight > 2.6 * parseFloat(style.fontSize))) {
      found.push(`cut or broken: ${node.outerHTML.slice(0, 100)}`);
    }
  }
  return found;
}"""
PLACES = """() => Object.fromEntries([...document.querySelectorAll('header *, #views *, .bar *')].filter((node) => node.checkVisibility()).map((node, at) => {
  const box = node.getBoundingClientRect();
  return [`${at} ${node.tagName} ${node.id || node.textContent.trim().slice(0, 20)}`, [box.x, box.width, box.y + scrollY].map(Math.round).join(' ')];
}))"""


class Story:
    def __init__(self, page, port, screenshots):
        self.page = page
        self.url = f"http://127.0.0.1:{port}/"
        self.screenshots = screenshots
        self.complaints = []
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.complaints.append(f"asked elsewhere: {request.url}")
                if not request.url.startswith((self.url, "blob:", "data:")) else None)

    def picture(self, name):
        """The page as it is, wide and on a phone, light and dark; nowhere may it be wider than the screen."""
        for size, theme in [(WIDE, "light"), (WIDE, "dark"), (PHONE, "light"), (PHONE, "dark")]:
            self.page.set_viewport_size(size)
            self.page.emulate_media(color_scheme=theme)
            wide = self.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= size["width"], f"{name}: {wide} pixels wide at {size['width']}: {self.widest()}"
            wrong = self.page.evaluate(FAINT_OR_CUT)
            assert not wrong, (name, size["width"], theme, wrong)
            self.page.screenshot(path=self.screenshots / f"{name}-{size['width']}-{theme}.png", full_page=True)
        self.page.set_viewport_size(WIDE)
        self.page.emulate_media(color_scheme="light")

    def widest(self):
        return self.page.evaluate("""() => [...document.querySelectorAll('body *')].filter(node => node.getBoundingClientRect().right > innerWidth + 1)
            .map(node => node.tagName + '#' + node.id + '.' + node.className).slice(0, 5)""")

    def text(self, selector):
        return self.page.inner_text(selector)

    def names(self):
        """Every control has a name that can be read aloud."""
        nameless = self.page.evaluate("""() => [...document.querySelectorAll('button, input, select, textarea, [role=img]')].filter(node => {
            if (node.closest('[hidden]')) return false;
            const label = node.labels?.[0]?.textContent.trim() || node.getAttribute('aria-label') || node.textContent.trim() || node.querySelector('title')?.textContent;
            return !label;
        }).map(node => node.outerHTML.slice(0, 120))""")
        assert not nameless, nameless

    def said(self, part):
        self.page.wait_for_function("part => document.getElementById('message').textContent.includes(part)", arg=part)


def looks_first(story):
    page = story.page
    page.goto(story.url)
    story.said("There is no model yet")
    assert page.evaluate("document.activeElement.tagName") == "BODY"
    story.names()
    story.picture("1-first-look")


def keeps_still(story):
    """Choosing a page or a view moves no control; each one shows that it has the focus."""
    page = story.page
    for size in [WIDE, PHONE]:
        page.set_viewport_size(size)
        places = page.evaluate(PLACES)
        for view in ["json", "why", "cards"]:
            page.click(f"[data-view={view}]")
            assert page.evaluate(PLACES) == places, view
        header = """() => [...document.querySelectorAll('header *')].filter((node) => node.checkVisibility()).map((node) => {
            const box = node.getBoundingClientRect();
            return [box.x, box.width, box.y + scrollY].map(Math.round).join(' ');
        })"""
        before = page.evaluate(header)
        page.click("#tab-finetune")
        assert page.evaluate(header) == before, "the header moves with the page"
        page.click("#tab-try")
        page.evaluate("document.activeElement.blur()")
        seen = set()
        for _ in range(40):
            page.keyboard.press("Tab")
            control, ring = page.evaluate("""() => {
                const node = document.activeElement;
                const shown = node.closest('.button, .editor') ?? node;
                return [node.id || node.textContent.trim(), getComputedStyle(shown).outlineStyle !== 'none' && parseFloat(getComputedStyle(shown).outlineWidth) >= 2];
            }""")
            if control in seen:
                break
            if page.evaluate("document.activeElement === document.body"):
                continue  # the browser's own controls
            assert ring, f"{control}: nothing shows that it has the focus"
            seen.add(control)
        assert {"tab-try", "upload-model", "theme", "examples", "upload-tools", "format", "tools", "query", "run"} <= seen, seen
    page.set_viewport_size(WIDE)


def edits_tools(story):
    page = story.page
    page.fill("#tools", '[\n  {"name": "a", "parameters": {}},\n  {"name": "b" "x": 1}\n]')
    assert story.text("#tools-state").startswith("Line 3: column 16"), story.text("#tools-state")
    assert page.get_attribute("#tools", "aria-invalid") == "true"
    story.picture("2-tools-with-a-mistake")
    page.click("#to-line")
    assert page.evaluate("(({selectionStart: a, selectionEnd: b, value}) => value.slice(a, b))(document.getElementById('tools'))") == '  {"name": "b" "x": 1}'
    page.fill("#tools", '{"tools": [\n{"name": "a"},\n{"type": "function", "function": {"name": "a"}}\n]}')
    assert story.text("#tools-state").startswith("Line 3: a tool called a is declared twice"), story.text("#tools-state")
    for style, count in [("Travel (OpenAI style)", 2), ("Office (MCP style)", 2), ("Home (flat style)", 3)]:
        page.select_option("#examples", style)
        assert story.text("#tools-state") == f"{count} tools"
    page.set_input_files("#upload-tools", {"name": "t.json", "mimeType": "application/json", "buffer": b'[{"name": "up"}]'})
    page.wait_for_function("() => document.getElementById('tools-state').textContent === '1 tool'")
    page.select_option("#examples", "Home (flat style)")


def makes_rows(story):
    page = story.page
    page.focus("#tab-try")
    page.keyboard.press("ArrowRight")  # the other page, by keyboard alone
    assert page.is_visible("#page-finetune")
    page.fill("#job input[name=name]", "mine")
    page.fill("#job input[name=count]", "90")
    story.names()
    story.picture("3-new-finetuning")
    page.click("#job button[type=submit]")
    page.wait_for_selector("#job table.rows td.call-text")
    assert "90 rows" in story.text("#job") and "good to train on" in story.text("#job")
    page.click("text=Add a row by hand")
    page.fill("[aria-label='New row: request']", "wake me at dawn")
    page.fill("[aria-label='New row: calls as JSON']", '[{"name": "set_alarm", "arguments": {"tim": "dawn"}}]')
    page.click("#job details button:text('Add')")
    story.said("rows[0].answers[0].arguments")
    page.fill("[aria-label='New row: calls as JSON']", '[{"name": "set_alarm", "arguments": {"time": "dawn"}}]')
    page.click("#job details button:text('Add')")
    page.wait_for_selector("text=91 rows")
    story.picture("4-rows-checked")


def trains(story):
    page = story.page
    page.select_option("#job select[name=shape]", "tiny")
    page.fill("#job input[name=epochs]", "6")
    page.click("text=Start training")
    page.wait_for_selector("#job h2:has-text('training')")
    page.reload()  # the job goes on, and is found again
    page.wait_for_selector("#job h2:has-text('training'), #job h2:has-text('exporting'), #job h2:has-text('done')", timeout=10_000)
    page.wait_for_selector("#job svg .curve, #job h2:has-text('done')", timeout=TRAINING_MS)
    story.names()
    story.picture("5-training")
    page.wait_for_selector("#job h2:has-text('mine: done')", timeout=TRAINING_MS)
    assert "exact match" in story.text("#job")
    page.click("#job summary:has-text('Validation scores')")
    for summary in page.query_selector_all("#job summary:has-text('Wrong answers')"):
        summary.click()
    story.names()
    story.picture("6-result")


def is_as_described(server):
    """A finetuning with its curve and reports is what /openapi.json says."""
    document = json.loads(server.ask("GET", "/openapi.json")[1])
    job = json.loads(server.ask("GET", "/playground/jobs")[1])["data"][0]["id"]
    text = server.ask("GET", f"/playground/jobs/{job}")[1]
    progress = json.loads(text)["progress"]
    assert progress["curve"] and progress["validation"] and progress["finetuned"]["failures"] is not None
    as_described(document, document["paths"]["/playground/jobs/{job}"]["get"], text)


def downloads(story, folder):
    with story.page.expect_download() as download:
        story.page.click("text=Download bundle")
    path = folder / "bundle.zip"
    download.value.save_as(path)
    with zipfile.ZipFile(path) as bundle:
        assert bundle.testzip() is None
        names = {name.removeprefix("mine/") for name in bundle.namelist()}
        expected = {"README.md", "mine.needle", "model.json", "model.safetensors", "report.json", "report.md", "test.jsonl",
                    "tokenizer.model", "tools.json", "train.jsonl", "validation.jsonl"}
        assert expected <= names, names
        (folder / "copy.needle").write_bytes(bundle.read("mine/mine.needle"))
        (folder / "broken.needle").write_bytes(bundle.read("mine/mine.needle")[:-1000])


def asks(story):
    page = story.page
    page.click("text=Try it")
    assert page.input_value("#model") == "mine"
    page.fill("#query", "wake me up at 7 am")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#results .card")
    page.wait_for_function("() => document.querySelector('#results .state').textContent.includes('tokens')")
    page.click("text=JSON")
    assert isinstance(json.loads(story.text("#results pre"))["calls"], list)
    page.click("button:text('See why')")
    page.wait_for_selector("#results .tokens button")
    assert page.locator("#results .query-line").inner_text() == "wake me up at 7 am"
    assert "forced by the grammar" in story.text("#results")
    page.focus("#results .tokens button[tabindex='0']")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement === document.querySelectorAll('#results .tokens button')[1]")
    story.names()
    story.picture("7-see-why")


def adds_and_compares(story, folder):
    page = story.page
    page.set_input_files("#upload-model", folder / "broken.needle")
    page.wait_for_selector("#message.bad")
    page.set_input_files("#upload-model", folder / "copy.needle")
    story.said("copy is loaded")
    page.select_option("#model", "mine")
    page.check("#compare")
    page.select_option("#other-model", "copy")
    page.click("button:text('Calls')")
    page.click("#run")
    page.wait_for_function("() => document.getElementById('verdict').textContent === 'Same answer'")
    assert page.locator("#results .result").count() == 2
    story.picture("8-compared")


def corrects(story, server):
    """A wrong answer is corrected on the page, refused while it is wrong itself, and trained on in the next finetuning."""
    page = story.page
    page.click("#tab-finetune")
    cases = page.locator("#job .failure")
    assert cases.count() >= 2, "six passes over 90 rows should leave something wrong"
    details = page.locator("#job details:has(.failure)")
    if details.get_attribute("open") is None:
        details.locator("summary").click()
    assert max(case.bounding_box()["height"] for case in cases.all()) < 420, "an answer that does not end fills the page"
    assert not page.is_checked("[aria-label='Take case 1']")
    query = page.input_value("[aria-label='Case 1: request']")
    button = "button:text('New finetuning with the chosen cases')"
    page.fill("[aria-label='Case 1: calls as JSON']", "[{")
    assert page.is_checked("[aria-label='Take case 1']")  # what was edited is meant
    page.click(button)
    story.said("Case 1: the calls are not JSON")
    page.fill("[aria-label='Case 1: calls as JSON']", '[{"name": "set_alarm", "arguments": {"tim": "noon"}}]')
    page.click(button)
    story.said("rows[0].answers[0].arguments")
    page.fill("[aria-label='Case 1: request']", f"{query}, at noon that is")
    page.fill("[aria-label='Case 1: calls as JSON']", '[{"name": "set_alarm", "arguments": {"time": "noon"}}]')
    story.names()
    story.picture("9-corrected")
    page.click(button)
    page.wait_for_selector("#job h2:has-text('ready to train')")
    story.said("A new finetuning with 92 rows, 1 of them added")  # case 2 was not chosen
    jobs = json.loads(server.ask("GET", "/playground/jobs")[1])["data"]
    assert [job["rows"] for job in jobs] == [92, 91], jobs
    rows = json.loads(server.ask("GET", f"/playground/jobs/{jobs[0]['id']}/rows/91")[1])["rows"]
    assert [row["query"] for row in rows] == [f"{query}, at noon that is"], rows
    assert rows[0]["answers"] == [{"name": "set_alarm", "arguments": {"time": "noon"}}]
    for place in ["26 to 50", "51 to 75", "76 to 92"]:
        page.click("#job button:text('Later')")
        page.wait_for_selector(f"#job .bar:has-text('{place}')")
    assert "at noon that is" in story.text("#job table.rows")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("button:text('Remove')")
    page.wait_for_function("() => document.querySelectorAll('#jobs [data-job]').length === 1")
    page.click("#jobs [data-job]")
    page.wait_for_selector("#job h2:has-text('mine: done')")


def begins_again(story):
    """Rows of a finished finetuning begin the next, from where it ended; cancelled, it can go on."""
    page = story.page
    page.click("#tab-finetune")
    page.click("text=Train on with more rows")
    page.wait_for_selector("#job h2:has-text('ready to train')")
    assert "91 rows" in story.text("#job")
    page.fill("#job input[name=epochs]", "100")
    page.click("text=Start training")
    page.click("button:text('Cancel')")
    page.wait_for_selector("#job h2:has-text('cancelled')", timeout=60_000)
    assert page.is_visible("button:text('Continue')")
    story.picture("10-cancelled")


def main():
    programs, screenshots = (pathlib.Path(argument).resolve() for argument in sys.argv[1:3])
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("Playwright is not installed: skipped (scripts/setup installs it)")
        return 77
    if chromium is None:
        print("there is no chromium: skipped (apt-get install chromium)")
        return 77
    screenshots.mkdir(parents=True, exist_ok=True)
    for old in screenshots.glob("*.png"):
        old.unlink()
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = pathlib.Path(temporary)
        (folder / "here").mkdir()
        environment = {"NEEDLE_HOME": str(folder / "home"), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        with Server(programs / "needle-serve", cwd=folder / "here", environment=environment) as server:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport=WIDE, accept_downloads=True)
            page.set_default_timeout(20_000)
            story = Story(page, server.port, screenshots)
            try:
                looks_first(story)
                keeps_still(story)
                edits_tools(story)
                makes_rows(story)
                trains(story)
                is_as_described(server)
                downloads(story, folder)
                asks(story)
                adds_and_compares(story, folder)
                corrects(story, server)
                begins_again(story)
            except Exception:
                page.screenshot(path=screenshots / "failed.png", full_page=True)
                print("the page said:", story.text("#message"), story.complaints, file=sys.stderr)
                raise
            # Refusals that a step provoked are the browser's to report; errors of the page's own are not.
            own = [text for text in story.complaints if "the server responded with a status" not in text]
            assert not own, own
            browser.close()
    print(f"the whole story was told; screenshots in {screenshots}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
