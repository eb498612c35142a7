"""Tests the management page in headless Chromium, mostly with the keyboard.

    page.py URL TOKENFILE DIRECTORY IMAGE…    test a larder that has these complete images
    page.py --mock DIRECTORY                  test the mock with normal and hostile data
    page.py --pictures DIRECTORY              write page-light.png, page-dark.png and page-phone.png of the normal mock

DIRECTORY is for the browser's profile and a screenshot of a failure. The environment variable AXE is the path of axe.min.js of
axe-core. Every wait has a limit; durations are not tested.
Needs chromium, chromium-driver and python3-selenium.
"""

import base64
import contextlib
import os
import pathlib
import signal
import sys
import tempfile
import urllib.request

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import page_mock

# In seconds: enough for a poll every 15 s on a busy machine.
LIMIT = 40
# More than the focusable elements of a page with a full list.
TABS_MAX = 400
DESKTOP, PHONE = (1200, 900), (320, 640)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--no-proxy-server")


@contextlib.contextmanager
def browser(directory):
    """Runs a browser with an empty profile. Takes a screenshot if the block fails."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={tempfile.mkdtemp(dir=directory)}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(service=Service("/usr/bin/chromedriver"), options=options)
    try:
        yield Page(driver)
    except BaseException:
        driver.save_screenshot(str(directory / "failed.png"))
        print(*driver.get_log("browser"), sep="\n")
        raise
    finally:
        driver.quit()


class Page:
    def __init__(self, driver):
        self.driver = driver

    # ---- Reading the page

    def wait(self, what, condition):
        return WebDriverWait(self.driver, LIMIT, poll_frequency=0.1).until(lambda _: condition(), f"not within {LIMIT} s: {what}")

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def text(self, selector):
        """Returns the text of an element, empty if it is hidden, with spaces instead of no-break spaces."""
        return self.js("const node = document.querySelector(arguments[0]); return node.checkVisibility() ? node.innerText : ''", selector).replace("\u00a0", " ")

    def texts(self, selector):
        return self.js("return [...document.querySelectorAll(arguments[0])].map((node) => node.innerText)", selector)

    def images(self):
        return self.texts("#image-rows button.link")

    def is_open(self, dialog):
        return self.js("return document.getElementById(arguments[0]).open", dialog)

    def wait_for(self, selector, part):
        self.wait(f"{part!r} in {selector}, which says {self.text(selector)!r}", lambda: part in self.text(selector))

    def console_errors(self, *expected):
        """Returns the console messages except expected network failures."""
        return [entry["message"] for entry in self.driver.get_log("browser")
                if entry["level"] != "INFO" and not (entry["source"] == "network" and any(part in entry["message"] for part in expected))]

    # ---- Using the page

    def open(self, url):
        self.driver.get(url)
        self.wait("images", self.images)
        self.wait_for("#version", "version")

    def press(self, *keys):
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def tab_to(self, label):
        """Presses Tab until an element with that label or text has the focus, and checks that the focus is visible."""
        script = """const node = document.activeElement, style = getComputedStyle(node);
            return [node.getAttribute('aria-label') ?? node.labels?.[0]?.innerText ?? node.innerText, style.outlineStyle]"""
        for _ in range(TABS_MAX):
            self.press(Keys.TAB)
            found, outline = self.js(script)
            if found.replace("\u00a0", " ").strip() == label:
                assert outline != "none", f"the focus on {label!r} is not visible"
                return
        raise AssertionError(f"Tab does not reach {label!r}")

    def type(self, selector, text):
        field = self.driver.find_element(By.CSS_SELECTOR, selector)
        field.clear()
        field.send_keys(text)

    def emulate(self, size=DESKTOP, scheme="light"):
        width, height = size
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def picture(self, file, height, begin="body"):
        """Writes a screenshot of `height` pixels, starting at an element."""
        top = self.js("return document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY", begin)
        clip = {"x": 0, "y": max(0, top - 16), "width": self.js("return innerWidth"), "height": height, "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        file.write_bytes(base64.b64decode(shot["data"]))


def step(text):
    print("-- " + text, flush=True)


# ---- Checks for any server ----------------------------------------------------------------------------------------------

def check_headers(url):
    step("the files have the security headers")
    for path in page_mock.FILES:
        with urllib.request.urlopen(url.rstrip("/") + path, timeout=LIMIT) as response:
            for name, value in {"Content-Security-Policy": page_mock.POLICY, "X-Content-Type-Options": "nosniff",
                                "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}.items():
                assert response.headers[name] == value, f"{path}: {name}: {response.headers[name]}"


def check_images(page, expected):
    step("the list shows the images and whether they are complete")
    for name in expected:
        page.wait(f"{name} in {page.images()}", lambda name=name: name in page.images())
        page.wait(f"{name} is complete", lambda name=name: any(name in row and "complete" in row for row in page.texts("#image-rows tr")))
    step("a search filters the list, and one without results says so")
    page.type("#filter [name=pattern]", expected[0].split("/", 1)[1])
    page.wait("one image", lambda: page.images() == [expected[0]])
    page.type("#filter [name=pattern]", "no-such-image")
    page.wait_for("#images-note", "No matching images")
    page.type("#filter [name=pattern]", " " + Keys.BACKSPACE)
    page.wait("all images", lambda: set(expected) <= set(page.images()))


def check_detail(page, name):
    step("keyboard: Tab to an image, Enter opens it with config and layers, a button copies the digest, Escape closes it, and the focus returns")
    page.js("document.activeElement.blur()")
    page.tab_to(name)
    page.press(Keys.ENTER)
    page.wait("the image's content", lambda: page.texts("#detail .tree li"))
    assert page.text("#detail-title") == name
    body = page.text("#detail-body")
    assert "sha256:" in body and "Config" in body and "layer" in body, body
    for label, said in (("Copy digest of the image", "Copied the digest"), ("Copy pull command for Docker", f"/{name}")):
        page.tab_to(label)
        page.press(Keys.ENTER)
        page.wait_for("#notice", said)
    page.press(Keys.ESCAPE)
    page.wait("the dialog is closed", lambda: not page.is_open("detail"))
    assert page.js("return document.activeElement.innerText") == name


def check_pin(page, name, token):
    step("keyboard: a pin asks for the token, rejects a wrong one, and is set with the right one")
    page.tab_to(f"Pin {name}")
    page.press(Keys.ENTER)
    page.wait("the token is asked for", lambda: page.is_open("token"))
    assert page.js("return document.activeElement.name") == "token"
    page.press("wrong-token", Keys.ENTER)
    page.wait("the error for the wrong token", lambda: page.text("#token-error"))
    assert page.is_open("token")
    assert page.js("return sessionStorage.length + localStorage.length + document.cookie.length") == 0, "a wrong token was stored"
    page.press(token, Keys.ENTER)
    page.wait_for("#pin-list", name)
    page.wait("the pin in the list of images", lambda: any(name in row and "pinned" in row for row in page.texts("#image-rows tr")))
    step("the focus is on the unpin button, which removes the pin without asking")
    page.wait("the focus", lambda: page.js("return document.activeElement.getAttribute('aria-label')") == f"Unpin {name}")
    page.press(Keys.ENTER)
    page.wait("the removal of the pin", lambda: name not in page.text("#pin-list"))


def check_prune(page, name):
    step("the prune dialog shows what would be removed, and clears it when the pattern changes")
    page.wait("the focus", lambda: page.js("return document.activeElement !== document.body"))
    page.js("document.getElementById('prune-open').focus()")
    page.press(Keys.ENTER)
    page.wait("the dialog", lambda: page.is_open("prune"))
    page.type("#prune [name=pattern]", name)
    page.press(Keys.ENTER)
    page.wait_for("#prune-report", "1 image would be removed")
    assert name in page.text("#prune-report") and page.text("#prune-go") == "Remove 1 image…"
    step("keyboard: Enter shows the preview again, and only the red button removes, after a confirmation")
    page.press(Keys.ENTER)
    page.wait_for("#prune-report", "1 image would be removed")
    page.tab_to("Remove 1 image…")
    page.press(Keys.ENTER)
    page.wait("the confirmation", lambda: page.is_open("confirm"))
    assert "Remove 1 image?" == page.text("#confirm-title")
    page.press(Keys.ESCAPE)
    page.wait("the confirmation is closed", lambda: not page.is_open("confirm"))
    assert page.is_open("prune")
    page.js("document.querySelector('#prune [name=pattern]').focus()")
    page.press(Keys.END)
    page.press("x")
    page.wait("nothing can be removed", lambda: page.text("#prune-go") == "" and page.text("#prune-report") == "")
    page.press(Keys.ESCAPE)
    page.wait("the dialog is closed", lambda: not page.is_open("prune"))
    assert name in page.images()


def check_width(page, dialogs=()):
    step("no horizontal scrolling, in light and dark, on a desktop and at 320 pixels")
    script = "const root = document.scrollingElement; return [root.scrollWidth, innerWidth]"
    backgrounds = set()
    for scheme in ("light", "dark"):
        for size in (DESKTOP, PHONE):
            page.emulate(size, scheme)
            needed, width = page.wait("the size", lambda size=size: (found := page.js(script))[1] >= size[0] and found)
            assert width == size[0] and needed <= width, f"{scheme}, {size[0]} wide: the page is {needed} of {width} wide"
            backgrounds.add(page.js("return getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2, f"light and dark have the same background: {backgrounds}"
    page.emulate()


def check_accessibility(page, where):
    step(f"axe-core reports nothing: {where}")
    script = pathlib.Path(os.environ["AXE"]).read_text() + """;
        const done = arguments[arguments.length - 1];
        axe.run(document).then((found) => done([found.passes.length, found.violations.map(({ id, help, nodes }) =>
          [id, help, nodes.slice(0, 3).map((node) => node.html.slice(0, 300))])]))"""
    page.driver.set_script_timeout(LIMIT)
    for scheme in ("light", "dark"):
        for size in (DESKTOP, PHONE):
            page.emulate(size, scheme)
            passes, violations = page.driver.execute_async_script(script)
            assert passes > 10 and violations == [], f"{scheme}, {size[0]} wide: {violations}"
    page.emulate()


def check_nothing_injected(page):
    script = """return [window.injected === undefined,
        document.querySelectorAll('img, iframe, object, embed, svg script, style, [onerror], [onload], [onclick], [src^="x"]').length,
        document.querySelectorAll('script').length,
        [...document.querySelectorAll('a')].every((link) => link.getAttribute('href').startsWith('#') || link.closest('noscript')
          || link.getAttribute('href').startsWith('/'))]"""
    assert page.js(script) == [True, 0, 1, True], page.js(script)


# ---- The modes ----------------------------------------------------------------------------------------------------------

def run_live(url, token_file, directory, expected):
    check_headers(url)
    with browser(directory) as page:
        page.emulate()
        page.open(url)
        check_images(page, expected)
        check_detail(page, expected[0])
        assert page.console_errors() == []
        check_pin(page, expected[0], pathlib.Path(token_file).read_text().strip())
        assert page.console_errors("401") == []
        check_prune(page, expected[0])
        check_activity(page, expected[0])
        check_width(page)
        check_accessibility(page, "with larder")
        check_nothing_injected(page)
        assert page.console_errors() == []
        page.picture(directory / "live.png", DESKTOP[1])


def check_activity(page, name):
    step("the page shows the state, the requests that filled the cache, the configuration, and that of clients")
    assert "No problems" in page.text("#state") or "disk" in page.text("#state"), page.text("#state")
    page.wait_for("#request-rows", name.split("/", 1)[1].rsplit(":", 1)[0])
    assert "in effect" in page.text("#configuration-state")
    assert "hosts.toml" in page.text("#client-files") and "http://127.0.0.1:" in page.js("return document.querySelector('#client-form [name=server]').value")
    step("an image that does not exist can be added by name, and the failure is reported")
    absent = name.rsplit(":", 1)[0] + ":no-such-tag"
    page.type("#add-form [name=image]", absent)
    page.press(Keys.ENTER)
    page.wait_for("#added", "failed")
    assert absent in page.text("#added")
    step("the log has the warning about it")
    page.wait_for("#log-lines", "no-such-tag")


def run_mock(directory):
    friendly = page_mock.Mock(0, page_mock.friendly()).start()
    complete = [each["image"] for each in friendly.data["images"] if each["complete"]]
    check_headers(friendly.url)
    with browser(directory) as page:
        page.emulate()
        page.open(friendly.url)
        check_images(page, complete[:3])
        check_detail(page, complete[0].replace("alpine:3.20", "nginx:1.27"))
        check_pin(page, "docker.io/library/nginx:1.27", page_mock.TOKEN)
        check_prune(page, "docker.io/library/nginx:1.27")
        check_prefetch(page, friendly)
        check_state(page, friendly)
        check_sorting(page)
        check_adding(page, friendly)
        check_overview(page)
        check_test(page, friendly)
        check_downloads(page, friendly)
        check_paging(page, friendly)
        check_history(page)
        check_clients(page)
        check_activity_of_mock(page)
        check_news(page, friendly)
        check_width(page)
        check_accessibility(page, "with the mock")
        page.js("document.querySelector('#image-rows button.link').click()")
        page.wait("the image's content", lambda: page.texts("#detail .tree li"))
        check_accessibility(page, "details of an image")
        page.press(Keys.ESCAPE)
        # Of a wrong token and of an address that is no URL.
        assert page.console_errors("401", "400") == []
        check_silence(page, friendly)
    check_locked(directory)
    check_hostile(directory)
    check_without_script(directory, friendly)


def check_state(page, mock):
    step("the header and the title show the problems, and that there are none")
    page.wait_for("#state", "1 upstream down since")
    assert "1 image incomplete" in page.text("#state") and page.driver.title.startswith("1 upstream down"), page.driver.title
    problems, mock.data["state"] = mock.data["state"], {"level": "ok", "problems": []}
    page.wait_for("#state", "No problems")
    assert page.driver.title == "Larder"
    mock.data["state"] = problems
    page.wait_for("#state", "1 upstream down since")


def check_sorting(page):
    step("keyboard: the head of a column sorts by it, and again in the other order")
    by_name = page.images()
    page.js("document.querySelector('[data-sort=size]').focus()")
    for order, first in (("descending", "scipy-notebook"), ("ascending", "pause")):
        page.press(Keys.ENTER)
        page.wait(f"{first} first", lambda first=first: first in page.images()[0])
        assert page.js("return document.querySelector('[data-sort=size]').closest('th').ariaSort") == order
    page.js("document.querySelector('[data-sort=name]').focus()")
    page.press(Keys.ENTER)
    page.wait("names in order", lambda: page.images() == by_name)


def check_adding(page, mock):
    step("keyboard: images are added by name, with the result of each")
    for name, result in (("alpine:3.20", "complete"), ("no-such-image", "404")):
        page.type("#add-form [name=image]", name)
        page.press(Keys.ENTER)
        page.wait_for("#added", result)
    assert [path for _, path, _ in mock.changes[-2:]] == ["/api/v1/prefetch"] * 2, mock.changes


def check_history(page):
    step("keyboard: the span of the history can be selected, and a single busy hour is visible")
    page.js("document.querySelector('#span [value=day]').focus()")
    page.press(Keys.ARROW_RIGHT)
    page.wait_for("#history-summary", "In the last week")
    assert "h.01" in page.js("return document.querySelector('#chart-hits .dot').getAttribute('d')")
    page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    page.wait_for("#history-summary", "In the last hour")


def check_clients(page):
    step("the configuration of clients follows the selected client and the typed address")
    assert "_default/hosts.toml" in page.text("#client-files") and "Assumes" in page.text("#client-assumptions")
    page.type("#client-form [name=server]", "http://larder.test:80")
    page.wait_for("#client-files", "http://larder.test:80")
    page.type("#client-form [name=server]", "no URL")
    page.wait_for("#client-error", "is not a URL")


def check_activity_of_mock(page):
    step("requests can be limited to failures, and the log and the configuration are shown")
    assert len(page.texts("#request-rows tr")) == 12
    page.js("document.getElementById('failures').focus()")
    page.press(Keys.SPACE)
    page.wait("the failures", lambda: len(page.texts("#request-rows tr")) == 3)
    assert "504" in page.text("#request-rows") and "client-gone" in page.text("#request-rows")
    assert "1 error and 2 warnings" in page.text("#log-note") and "503 SlowDown" in page.text("#log-lines")
    assert "/etc/larder/larder.yaml" in page.text("#configuration-state") and "port" in page.text("#configuration-state")


def check_overview(page):
    step("overview, history, upstreams and registries show their numbers")
    assert page.text("#tile-images") == "12" and "11 complete" in page.text("#tile-images-note")
    assert "%" in page.text("#tile-hits") and "GB" in page.text("#tile-saved") and "2.0 GB" in page.text("#tile-disk")
    assert "without a download" in page.js("return document.querySelector('#chart-bytes svg').getAttribute('aria-label')")
    assert "registries" in page.text("#sources-keys") and "peers" in page.text("#sources-keys")
    upstreams = page.text("#upstream-list")
    for text in ("unreachable", "retry in", "last answered", "not used yet", "76 of 100 pulls left"):
        assert text in upstreams, f"{text} is not in {upstreams}"
    # The registry of one image that is due for a check cannot be asked.
    assert page.text("#image-rows").count("not checked") == 1
    assert len(page.texts("#registry-rows tr")) == 3


def check_test(page, mock):
    step("a registry can be tested, and a failure has a remedy")
    page.tab_to("Test quay.io")
    page.press(Keys.ENTER)
    page.wait_for("#detail-body", "start quay.io")
    assert page.text("#detail-title") == "Test of quay.io" and "failed" in page.text("#detail-body")
    assert mock.changes[-1][1:] == ("/api/v1/check", {"target": "quay.io"}), mock.changes
    page.press(Keys.ESCAPE)
    page.wait("the dialog is closed", lambda: not page.is_open("detail"))


def check_news(page, mock):
    step("events, images that are kept present, and a tag whose move is held and accepted")
    page.wait_for("#event-list", "docker.io/library/nginx:1.27")
    assert "move held" in page.text("#event-list") and "timed out" in page.text("#event-list"), page.text("#event-list")
    shown = len(page.texts("#event-list > li"))
    page.tab_to("Show all 14 events")
    page.press(Keys.ENTER)
    page.wait("all events", lambda: len(page.texts("#event-list > li")) == 14 > shown)
    for part in ("platform", "1 missing", "12 of 31 loaded", "no tag matches"):
        page.wait_for("#sync-list", part)
    page.tab_to("Sync now base")
    page.press(Keys.ENTER)
    page.wait_for("#notice", "base is loaded")
    assert mock.changes[-1][1:] == ("/api/v1/sync", {"name": "base"}), mock.changes
    name = "quay.io/jetstack/cert-manager-controller:v1.16.1"
    page.type("#filter [name=pattern]", "cert-manager")
    page.wait("the image", lambda: page.images() == [name])
    assert "moved upstream" in page.text("#image-rows")
    page.tab_to(name)
    page.press(Keys.ENTER)
    page.wait_for("#detail-body", "Before")
    page.tab_to(f"Accept move… {name}")
    page.press(Keys.ENTER)
    page.wait("the question", lambda: page.is_open("confirm"))
    page.tab_to("Accept")
    page.press(Keys.ENTER)
    page.wait_for("#notice", f"The move of {name} is accepted")
    assert mock.changes[-1][1:] == ("/api/v1/tags/accept", {"image": name, "digest": page_mock.digest(606)}), mock.changes
    page.type("#filter [name=pattern]", "")
    page.press("x", Keys.BACKSPACE)
    page.wait("all images", lambda: len(page.images()) > 5)


def check_downloads(page, mock):
    step("a download shows its progress and can be cancelled, and partial downloads can be resumed")
    page.wait_for("#flights", "/s, from quay.io")
    assert page.js("const bar = document.querySelector('#flights progress'); return bar.value / bar.max > 0.6")
    assert "docker.io" in page.text("#partials")
    page.js("document.querySelector('#flights button').focus()")
    page.press(Keys.ENTER)
    page.wait("the confirmation", lambda: page.is_open("confirm"))
    page.press(Keys.ENTER)
    page.wait_for("#downloads-note", "No downloads in progress")
    page.js("document.getElementById('resume').focus()")
    page.press(Keys.ENTER)
    page.wait("no partial downloads", lambda: page.js("return document.getElementById('partials-box').hidden"))
    assert [path for _, path, _ in mock.changes][-2:] == ["/api/v1/flights", "/api/v1/flights/resume"], mock.changes


def check_prefetch(page, mock):
    step("the detail of an incomplete image fetches the missing content")
    name = next(each["image"] for each in mock.data["images"] if not each["complete"])
    page.tab_to(name)
    page.press(Keys.ENTER)
    page.wait_for("#detail", "194.6 MB missing")
    page.wait("the image's content", lambda: page.texts("#detail .tree li"))
    page.tab_to(f"Prefetch {name}")
    page.press(Keys.ENTER)
    page.wait_for("#notice", f"{name} is queued")
    assert not page.is_open("detail") and mock.changes[-1][1:] == ("/api/v1/prefetch", {"image": name}), mock.changes


def check_paging(page, mock):
    step("a long list is paged")
    data = mock.data["images"]
    mock.data["images"] = [page_mock.image(number, f"docker.io/many/image:{number:03}", 1, ["linux/amd64"], 60) for number in range(120)]
    page.type("#filter [name=pattern]", "many")
    page.wait_for("#images-note", "1 to 50 of 120 images")
    for expected in ("51 to 100 of 120 images", "101 to 120 of 120 images"):
        page.js("document.getElementById('next').focus()")
        page.press(Keys.ENTER)
        page.wait_for("#images-note", expected)
    assert page.js("return document.getElementById('next').disabled")
    mock.data["images"] = data
    page.type("#filter [name=pattern]", " " + Keys.BACKSPACE)
    page.wait_for("#images-note", "12 images")


def check_silence(page, mock):
    step("the page reports that the server does not respond, and that it responds again")
    mock.is_silent = True
    page.wait_for("#silence", "No response since")
    assert "No response since" in page.text("#state") and page.driver.title.startswith("No response since")
    mock.is_silent = False
    page.wait("the end of the warning", lambda: page.text("#silence") == "")
    page.wait_for("#notice", "responds again")
    assert "1 upstream down" in page.text("#state")


def check_locked(directory):
    step("from another machine: reading needs the token, and the page waits for it")
    mock = page_mock.Mock(0, page_mock.friendly()).start()
    mock.is_locked = True
    with browser(directory) as page:
        page.driver.get(mock.url)
        page.wait("the token is asked for", lambda: page.is_open("token"))
        assert "bearer token" in page.text("#token-error")
        page.press(Keys.ESCAPE)
        page.wait_for("#locked", "requires the token")
        page.js("document.getElementById('unlock').focus()")
        page.press(Keys.ENTER)
        page.wait("the token is asked for again", lambda: page.is_open("token"))
        page.press(page_mock.TOKEN, Keys.ENTER)
        page.wait("images", page.images)
        assert page.text("#locked") == ""
        assert page.console_errors("401") == []


def check_hostile(directory):
    step("markup from upstreams and clients is shown as text everywhere")
    mock = page_mock.Mock(0, page_mock.hostile()).start()
    with browser(directory) as page:
        page.emulate()
        page.open(mock.url)
        for selector in ("#state", "#image-rows", "#added", "#upstream-list", "#pin-list", "#flights", "#partials", "#request-rows", "#log-lines",
                         "#configuration-state", "#event-list", "#sync-list"):
            page.wait_for(selector, page_mock.HOSTILE)
        check_nothing_injected(page)
        page.js("document.querySelector('#image-rows button.link').focus()")
        page.press(Keys.ENTER)
        page.wait("the image's content", lambda: page.texts("#detail .tree li"))
        assert page.text("#detail-body").count("<img src=x") >= 5
        check_nothing_injected(page)
        page.emulate(PHONE)
        page.wait("no horizontal scrolling in the dialog", lambda: page.js(
            "const dialog = document.getElementById('detail'); return innerWidth == 320 && dialog.scrollWidth <= dialog.clientWidth"))
        page.press(Keys.ESCAPE)
        page.wait("the dialog is closed", lambda: not page.is_open("detail"))
        check_width(page)
        check_nothing_injected(page)
        assert page.console_errors() == []


def check_without_script(directory, mock):
    step("without JavaScript the page names the alternative")
    with browser(directory) as page:
        page.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        page.driver.get(mock.url)
        assert "larder list" in page.driver.find_element(By.TAG_NAME, "body").text


def take_pictures(directory):
    for name, size, scheme, begin, height in (("light", DESKTOP, "light", "body", 1372), ("dark", DESKTOP, "dark", "#images", 1456),
                                              ("phone", (390, 844), "light", "#downloads", 1500)):
        mock = page_mock.Mock(0, page_mock.friendly()).start()
        with tempfile.TemporaryDirectory() as profiles, browser(pathlib.Path(profiles)) as page:
            page.emulate(size, scheme)
            page.open(mock.url)
            page.wait_for("#flights", "/s, from")
            page.js("document.activeElement.blur()")
            page.picture(directory / f"page-{name}.png", height, begin)


def main(arguments):
    match arguments:
        case ["--mock", directory]:
            run_mock(pathlib.Path(directory))
        case ["--pictures", directory]:
            take_pictures(pathlib.Path(directory))
        case [url, token_file, directory, *expected] if expected:
            run_live(url, token_file, pathlib.Path(directory), expected)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    # Close the browser on SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main(sys.argv[1:])
