#!/usr/bin/env python3
"""The dashboard in a real browser, as a person uses it: looked at, in light and dark and on a phone, and worked with the
keyboard alone. Screenshots go to target/dashboard. Needs Chromium and nothing else: it is driven through a pipe.

    cargo build --release --workspace
    python3 tests/peers/dashboard.py
"""

import base64
import contextlib
import itertools
import json
import os
import select
import subprocess
import tempfile
import time

from hosts import EXAMPLES, ROOT, build, edgent, host

SHOTS = ROOT / "target/dashboard"
PATIENCE_S = 60


class Browser:
    """Chromium by its DevTools protocol: JSON messages, each ended by a zero byte."""

    def __init__(self, to, of):
        self.to, self.of, self.rest, self.events, self.session = to, of, b"", [], None
        self.numbers = itertools.count(1)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def message(self):
        until = time.monotonic() + PATIENCE_S
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.of], [], [], max(until - time.monotonic(), 0))
            read = os.read(self.of, 1 << 16) if ready else b""
            assert read, "the browser says nothing"
            self.rest += read
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def call(self, method, **parameters):
        number = next(self.numbers)
        session = {"sessionId": self.session} if self.session else {}
        os.write(self.to, json.dumps({"id": number, "method": method, "params": parameters, **session}).encode() + b"\0")
        while True:
            message = self.message()
            if message.get("id") == number:
                assert "error" not in message, (method, message)
                return message["result"]
            self.events.append(message)

    def tell(self, script):
        """The value of a script in the page."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, script, what):
        """Asks again and again until the script gives something."""
        end = time.monotonic() + PATIENCE_S
        # The page may not be there yet.
        script = f"(() => {{ try {{ return {script} }} catch {{ return null }} }})()"
        while not (value := self.tell(script)):
            assert time.monotonic() < end, f"never {what}: {self.tell('document.body.innerText')}"
        return value

    def press(self, key, code=0, text=""):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                      **({"text": text} if text and kind == "keyDown" else {}))

    def tab_to(self, identifier):
        """Reaches an element as one does without a mouse."""
        for _ in range(40):
            if self.tell("document.activeElement.id") == identifier:
                return
            self.press("Tab", 9)
        raise AssertionError(f"Tab never reaches '{identifier}'")

    def look(self, name, width, height, scheme):
        """A screenshot; nothing may stick out to the side."""
        phone = width < 500
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        chain = "document.getElementById('chain')"
        fits = f"{chain}.getAttribute('viewBox').startsWith('0 0 ' + ({chain}.clientWidth < 500 ? '400 ' : '1000 '))"
        self.until(fits, "drawn for this width")
        assert self.tell("document.documentElement.scrollWidth <= innerWidth"), f"{name}: wider than the window"
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        (SHOTS / f"{name}.png").write_bytes(base64.b64decode(shot))

    def complaints(self):
        """Errors of scripts, of the network, and breaches of the page's policy."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self.events if event.get("method") in kinds]

    def hosts_asked(self):
        requests = [event["params"]["request"]["url"] for event in self.events
                    if event.get("method") == "Network.requestWillBeSent"]
        return {url.split("/")[2] for url in requests if url.startswith("http")}


@contextlib.contextmanager
def browser():
    # Chromium reads at 3 and writes at 4.
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()

    def place():
        low, high = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(low, 3)
        os.dup2(high, 4)

    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe",
                 f"--user-data-dir={profile}"]
        process = subprocess.Popen(["chromium", *flags], preexec_fn=place, close_fds=False, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Browser(ours_out, ours_in)
        finally:
            process.terminate()
            process.wait(timeout=30)


def device(page, address, link):
    page.call("Page.navigate", url=f"http://{address}/")
    page.until("document.getElementById('about').textContent.includes('branchy-alexnet')", "told what is served")
    page.until("document.getElementById('state').textContent === 'edge connected'", "told of the edge")
    for _ in range(3):
        edgent("infer", *EXAMPLES, "--device", link)
    page.until("document.querySelectorAll('#latency circle, #latency path').length >= 30", "shown 30 answers")
    assert page.tell("document.querySelectorAll('#chain rect').length") >= 7
    assert page.tell("document.querySelectorAll('#chain .exit').length") == 5
    assert page.tell("document.querySelectorAll('#chain .exit.taken').length") == 1

    # What if: by the keyboard, from the slowest link to the fastest.
    chosen = "document.getElementById('choice').textContent"
    page.tab_to("rate")
    page.press("Home", 36)
    page.until(f"document.getElementById('rate-text').textContent === '10 kbit/s' && {chosen}.includes('by the device alone')",
               "planned for 10 kbit/s: the device alone")
    page.press("End", 35)
    page.until(f"document.getElementById('rate-text').textContent === '1.0 Gbit/s' && {chosen}.includes('by the edge alone')",
               "planned for 1 Gbit/s: the edge alone")
    assert page.tell("document.querySelectorAll('#plans tr.chosen').length") == 1

    # An image.
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    chooser = page.call("DOM.querySelector", nodeId=root, selector="#image")["nodeId"]
    picture = next(path for path in EXAMPLES if path.stem == "bag")
    page.call("DOM.setFileInputFiles", nodeId=chooser, files=[str(picture)])
    page.until("!document.getElementById('ask').disabled", "ready to ask")
    page.tell("document.activeElement.blur()")
    page.tab_to("deadline")
    for digit in "5000":
        page.press(digit, ord(digit), digit)
    page.tab_to("ask")
    page.press("Enter", 13, "\r")
    answer = page.until("document.querySelector('#answer .good, #answer .bad') && document.getElementById('answer').innerText",
                        "answered about an image")
    assert answer.startswith("bag") and "5000 ms" in answer, answer


def main():
    SHOTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser() as page:
        bundle = build("models/branchy-alexnet/branchy-alexnet.onnx", f"{folder}/bundle")
        with host("edge", bundle) as (edge_link, edge_http):
            with host("device", bundle, "--edge", edge_link, "--emulate-slowdown", 50) as (link, http):
                device(page, http, link)
                for name, width, height, scheme in [("light", 1280, 900, "light"), ("dark", 1280, 900, "dark"),
                                                    ("phone", 390, 844, "light"), ("phone-dark", 390, 844, "dark")]:
                    page.look(name, width, height, scheme)
                assert page.hosts_asked() == {http}, page.hosts_asked()
            page.until("document.getElementById('state').textContent === 'no word from the host'", "told that it is gone")
            gone = [entry for entry in page.complaints() if entry["params"].get("entry", {}).get("source") != "network"]
            assert not gone, gone
            page.call("Page.navigate", url=f"http://{edge_http}/")
            page.until("document.getElementById('title').textContent === 'Edgent: edge'", "told that it is an edge")
            assert page.until("document.getElementById('numbers').innerText.includes('parts run')", "shown numbers")
            assert page.tell("document.getElementById('what-if').hidden"), "an edge does not plan"
            page.look("edge", 1280, 900, "light")
    print(f"screenshots: {SHOTS.relative_to(ROOT)}")
    print("2 passed, 0 failed")


if __name__ == "__main__":
    main()
