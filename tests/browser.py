"""MLflow server and Chromium for browser tests."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import requests
from PIL import Image

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --window-size=1200,900"
).split()
SETTINGS = {"mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true", "mlflow.assistant.panelOpen_v1": "false"}
"""Local storage of MLflow's pages. Closes the assistant, which opens automatically and hides half of the page."""
HIDE = """document.head.insertAdjacentHTML('beforeend',
    '<style>.modebar, [data-assistant-ui] { display: none !important }</style>')"""
"""Hides the hover controls of charts and the assistant's button."""
WAIT_S = 90
ROOT = Path(__file__).parents[1]


class Server:
    """`make mlflow` on a free port; can be stopped and restarted."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "jobs/ui.py", "--root", str(self.folder), "--port", str(self.port), "--create"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        wait_for(lambda: requests.get(f"{self.address}/health", timeout=5).ok)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(30)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            if condition():
                return
        except requests.RequestException:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.2)


class Browser:
    """Chromium, driven by selenium."""

    def __init__(self, address: str, profile: Path, pictures: Path):
        from selenium import webdriver  # a test dependency

        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        self.address, self.pictures = address, pictures
        self.driver.get(f"{address}/health")  # local storage belongs to an origin, so open one of its pages first
        for name, value in SETTINGS.items():
            self.driver.execute_script("localStorage.setItem(arguments[0], arguments[1])", name, value)

    def open(self, page: str, *texts: str) -> None:
        """Open a page and wait until it shows all texts."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/#/{page}")
        self.see(*texts)

    def see(self, *texts: str) -> None:
        """Wait until the page shows all texts."""
        try:
            wait_for(lambda: all(text in self.text for text in texts))
        except AssertionError:
            missing = [text for text in texts if text not in self.text]
            raise AssertionError(f"{self.driver.current_url} does not show {missing}, but: {self.text[:600]}") from None

    @property
    def text(self) -> str:
        return self.driver.find_element("tag name", "body").text

    def click(self, path: str) -> None:
        """Click the first element of an XPath."""
        wait_for(lambda: self.driver.find_elements("xpath", path))
        self.driver.find_elements("xpath", path)[0].click()

    def scroll_to(self, path: str) -> None:
        """Scroll to the first element of an XPath."""
        self.driver.execute_script("arguments[0].scrollIntoView()", self.driver.find_elements("xpath", path)[0])

    def picture(self, name: str, settle_s: float = 2.0) -> None:
        """Save a screenshot after `settle_s`, since charts and images load after the text."""
        self.driver.execute_script(HIDE)
        time.sleep(settle_s)
        file = self.pictures / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(file))
        with Image.open(file) as image:
            image.convert("RGB").quantize(96).save(file, optimize=True)

    def quit(self) -> None:
        self.driver.quit()
